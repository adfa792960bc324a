"""Where data lies: files, folders, data sets of `datasets`; what is there, and what is said of what is not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.models.fake_hub import fake_hub

from depthdial.train.data import read
from depthdial.train.files import Dataset, File, sources_of
from depthdial.train.messages import turn

ROWS = [{"question": f"Q{i}", "answer": f"A{i}"} for i in range(3)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def saved(path: Path, **splits: list[dict]) -> Path:
    sets: Any = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    (datasets.DatasetDict(sets) if len(sets) > 1 else next(iter(sets.values()))).save_to_disk(str(path))
    return path


def questions(data: str | Path) -> list[str]:
    return [record.messages[0]["content"] for record in read(data)]


def test_a_folder_that_datasets_wrote(tmp_path: Path):
    path = saved(tmp_path / "sums", train=ROWS)
    records = read(path)
    assert [list(record.messages) for record in records] == [turn(f"Q{i}", f"A{i}") for i in range(3)]
    assert records[1].where == f"{path} row 2" and records[1].source == "sums"


def test_of_several_splits_the_one_for_training_is_read_or_the_one_that_is_named(tmp_path: Path):
    path = saved(tmp_path / "sums", test=ROWS[:1], train=ROWS[1:])
    assert questions(path) == ["Q1", "Q2"]
    assert questions(f"{path}#test") == ["Q0"]
    with pytest.raises(ValueError, match=r"sums#dev: choose one of its splits, test, train, as .*sums#test"):
        read(f"{path}#dev")
    with pytest.raises(ValueError, match=r"choose one of its splits, one, two"):
        read(saved(tmp_path / "other", one=ROWS, two=ROWS))


def test_a_folder_as_it_is_cloned_from_the_hub(tmp_path: Path):
    folder = tmp_path / "clone" / "data"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(ROWS[1:]).to_parquet(folder / "train-00000-of-00001.parquet")
    datasets.Dataset.from_list(ROWS[:1]).to_parquet(folder / "test-00000-of-00001.parquet")
    assert questions(tmp_path / "clone") == ["Q1", "Q2"]
    assert questions(f"{tmp_path / 'clone'}#test") == ["Q0"]
    assert questions(f"{tmp_path / 'clone'}#train[:1]") == ["Q1"]


@pytest.mark.parametrize(
    ("name", "path", "config", "split"),
    [
        ("owner/sums", "owner/sums", None, None),
        ("owner/sums:all", "owner/sums", "all", None),
        ("owner/sums#train[:10]", "owner/sums", None, "train[:10]"),
        ("owner/sums-1.5:all#test", "owner/sums-1.5", "all", "test"),
    ],
)
def test_a_data_set_of_the_hub_by_its_name(name: str, path: str, config: str | None, split: str | None):
    assert sources_of(name) == [Dataset(path, config, split)]
    assert str(sources_of(name)[0]) == name


def python(code: str, **environment: str) -> str:
    """What a process prints that read the environment before it imported anything, or the last line of its error."""
    words = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})
    return done.stdout if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def test_a_data_set_is_fetched_from_the_hub(tmp_path: Path):
    with fake_hub() as hub:
        train, test = ("".join(json.dumps(row) + "\n" for row in rows).encode() for rows in (ROWS[1:], ROWS[:1]))
        hub.files["me/sums"] = {"README.md": b"# sums", "train.jsonl": train, "test.jsonl": test}
        hub.private["me/sums"] = False
        read_it = "[(r.source, r.messages[0]['content'], r.where) for r in read(name)]"
        code = f"from depthdial.train.data import read\nfor name in ('me/sums', 'me/sums#test'): print({read_it})"
        said = python(code, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path), HF_TOKEN="hf_none")
    assert said.splitlines() == [
        "[('sums', 'Q1', 'me/sums row 1'), ('sums', 'Q2', 'me/sums row 2')]",
        "[('sums', 'Q0', 'me/sums#test row 1')]",
    ]


def test_a_name_that_is_nowhere_is_refused_in_one_line():
    said = python("from depthdial.train.data import read; read('nobody/such-a-data-set')", HF_HUB_OFFLINE="1")
    assert "ValueError: nobody/such-a-data-set, no file or folder here, and as a data set of the hub: it cannot" in said


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "data/rows.jsonl", "a/b/rows.jsonl", "gone/rows.parquet", "rows", "a/b/c"]
)
def test_a_file_that_is_not_there_is_no_data_set(name: str):
    with pytest.raises(ValueError, match="no such data file"):
        sources_of(name)


def test_what_lies_in_a_folder_is_told_from_a_data_set(tmp_path: Path):
    (tmp_path / "b.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "a.csv").write_text("question,answer\nx,y\n")
    (tmp_path / "README.md").write_text("No data.")
    assert sources_of(tmp_path) == [File(tmp_path / "a.csv"), File(tmp_path / "b.jsonl")]


def test_the_digest_is_of_the_rows(tmp_path: Path):
    one, same, other = (
        sources_of(saved(tmp_path / name, train=rows))[0].sha256()
        for name, rows in (("one", ROWS), ("same", ROWS), ("other", ROWS[1:]))
    )
    assert one == same != other
