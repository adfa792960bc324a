"""Where data lies: files, folders, data sets of `datasets`; what is there, and what is said of what is not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

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


def test_a_name_that_is_nowhere_is_refused_in_one_line():
    script = "from depthdial.train.data import read; read('nobody/such-a-data-set')"
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.environ['HF_HUB_OFFLINE'] = '1'; {script}"],
        capture_output=True,
        text=True,
    )
    assert (
        "ValueError: nobody/such-a-data-set, no file or folder here, and as a data set of the hub: it cannot be "
        in (done.stderr.splitlines()[-1])
    )


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
