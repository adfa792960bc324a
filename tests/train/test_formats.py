"""Contents of data files: packed or not, tables, and broken ones."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depthdial.train.data import read
from depthdial.train.messages import turn

TALK = turn("Hi, you", 'He said "hello"\nand left')
ROWS = [
    {"prompt": 'He said "x",\nthen: y', "completion": "A1", "n": 1},
    {"prompt": "Q2", "completion": "A2", "n": None},
]
PACK = {"": bytes, ".gz": gzip.compress, ".zst": lambda raw: pa.compress(raw, "zstd", asbytes=True)}


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def said(path: Path) -> list:
    return [list(record.messages) for record in read(path)]


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", ["rows.jsonl", "ROWS.JSONL", "rows.data"])
def test_packed_rows(tmp_path: Path, name: str, packed: str):
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(PACK[packed](lines(ROWS)) * (2 if packed else 1))  # frames one after the other are one file
    assert said(path) == [turn(ROWS[0]["prompt"], "A1"), turn("Q2", "A2")] * (2 if packed else 1)
    assert read(path)[0].source == name.rpartition(".")[0]


@pytest.mark.parametrize("packed", PACK)
def test_packed_text(tmp_path: Path, packed: str):
    path = tmp_path / f"tale.txt{packed}"
    path.write_bytes(PACK[packed](b"Once upon a time."))
    assert [(r.text, r.source) for r in read(tmp_path)] == [("Once upon a time.", "tale")]


def test_parquet_with_texts_and_with_messages(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist([{"messages": TALK}]), tmp_path / "b.parquet")
    assert said(tmp_path) == [turn(ROWS[0]["prompt"], "A1"), turn("Q2", "A2"), TALK]


def test_a_row_of_a_parquet_file_is_named_by_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [{"text": "x"}] * 1500 + [{"text": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert len(read(tmp_path)) == 1500
    assert "1 of 1501 rows left out: without text (1, first in row 1501)" in caplog.text


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_tables_with_any_delimiter(tmp_path: Path, mark: str):
    quoted = '"He said ""x"",\nthen: y"'
    text = f"\ufeff\nprompt{mark}completion{mark}n\r\n{quoted}{mark}A1{mark}1\r\nQ2{mark}A2{mark}\r\n"
    path = tmp_path / "rows.csv"
    path.write_text(text, newline="")
    assert said(path) == [turn(ROWS[0]["prompt"], "A1"), turn("Q2", "A2")]
    assert [record.where for record in read(path)] == [f"{path} line 4", f"{path} line 5"]


def test_tab_separated_rows_with_more_commas_than_tabs(tmp_path: Path):
    (tmp_path / "rows.tsv").write_text("text\tone, two, three\nA tale\tx\n")
    assert [record.text for record in read(tmp_path)] == ["A tale"]


@pytest.mark.parametrize("form", [json.dumps, str], ids=["JSON", "Python"])
def test_messages_in_a_cell(tmp_path: Path, form):
    cell = form(TALK).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'messages,score\n"{cell}",5\n')
    assert said(tmp_path) == [TALK]


def test_a_cell_that_begins_like_a_list_stays_text(tmp_path: Path):
    (tmp_path / "a.csv").write_text('question,answer\n"As JSON?","[{""a"": 1}]"\n"And?","[{\'role\': broken"\n')
    assert said(tmp_path) == [turn("As JSON?", '[{"a": 1}]'), turn("And?", "[{'role': broken")]


def test_a_row_with_too_many_cells_does_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "a.csv").write_text("text,n\nfine,1\nnot, quoted, 2\n" + "x" * 200_000 + ",1\n")
    assert [len(record.text) for record in read(tmp_path)] == [4, 200_000]
    assert "it has more cells than the first line has names (2); quote its texts (1, first in line 3)" in caplog.text


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl", b"{}\n\xff\xfe\x00", "line 2: not UTF-8 text"),
        ("a.jsonl.gz", b"\x1f\x8bnot really gzip", "broken gzip"),
        ("a.jsonl", gzip.compress(b"cut short" * 99, mtime=0)[:20], "broken gzip"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfdnot really", "broken zstd"),
        ("a.zst", pa.compress(b"cut short" * 99, "zstd", asbytes=True)[:12], "broken zstd"),
        ("a.parquet", b"no table", "broken Parquet"),
        ("a.jsonl", b"PAR1 and then nothing", "broken Parquet"),
        ("a.csv", b"text,n\n", "no rows"),
        ("a.csv", b"\n \n", "empty file"),
        ("a.csv", b'title,n\n"x",1\n', "no row can be learnt from: no field is known"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path: Path, name: str, raw: bytes, message: str):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.zst"])
def test_without_the_extra_the_command_that_installs_it_is_said(tmp_path: Path, name: str, monkeypatch):
    from depthdial.core import extras

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl.zst").write_bytes(PACK[".zst"](lines(ROWS)))
    monkeypatch.setattr(extras, "there", lambda package: package != "pyarrow")
    with pytest.raises(ValueError, match=rf"{name} needs pyarrow; install it with: pip install 'depthdial\[data\]'"):
        read(tmp_path / name)
