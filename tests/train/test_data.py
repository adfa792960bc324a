"""Files to records: formats, filters, splits, and what is said of bad input."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.train.data import CHUNK, Record, digest, holdout, read
from depthdial.train.shapes import turn

ROWS = [
    {"source": "set/kilt_one", "prompt": "Q1", "completion": "A1"},
    {"source": "set/two", "prompt": "Q2", "completion": "A2"},
    {"text": "Plain words.", "split": "test"},
]


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def lines(rows: list) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


def records(count: int) -> list[Record]:
    return [Record("made", tuple(turn(f"Question {i}", "Answer"))) for i in range(count)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz", "rows.anything"])
@pytest.mark.parametrize("form", [lines, json.dumps])
def test_lines_and_lists_packed_or_not_read_the_same(tmp_path: Path, name: str, form):
    found = read(write(tmp_path / name, form(ROWS)))
    assert [r.source for r in found] == ["set/kilt_one", "set/two", "rows/test"]
    assert [list(r.messages) for r in found] == [turn("Q1", "A1"), turn("Q2", "A2"), []]
    assert found[2].text == "Plain words."


@pytest.mark.parametrize("name", ["tale.txt", "tale.txt.gz"])
def test_plain_text_is_cut_at_paragraphs_and_joins_exactly(tmp_path: Path, name: str):
    text = "\n\n".join(f"Paragraph {i} " + "word " * 60 for i in range(200))
    found = read([write(tmp_path / name, text)])
    assert "".join(r.text for r in found) == text
    assert len(found) > 2
    assert all(len(r.text) <= CHUNK and r.text.endswith("\n\n") for r in found[:-1])
    assert [r.ends for r in found] == [False] * (len(found) - 1) + [True]
    assert {r.source for r in found} == {"tale"}


def test_a_folder_stands_for_its_data_files_by_name(tmp_path: Path):
    write(tmp_path / "b.jsonl", lines(ROWS[:1]))
    write(tmp_path / "a.txt", "Words.")
    write(tmp_path / "notes.md", "Not data.")
    assert [r.source for r in read(tmp_path)] == ["a", "set/kilt_one"]


def test_messages_are_tidied(tmp_path: Path):
    talk = [{"role": "system", "content": ""}, *turn(" Hi\r\nyou ", "\nHello "), *turn("Bye", " "), *turn("Lost", "x")]
    (found,) = read(write(tmp_path / "talk.jsonl", lines([{"messages": talk}])))
    assert list(found.messages) == turn("Hi\nyou", "Hello")


def test_rows_without_text_are_left_out_and_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path / "some.jsonl", lines([ROWS[0], {"prompt": "Q", "completion": " "}, {"text": "\n"}]))
    assert len(read(path)) == 1
    assert "2 of 3 rows left out: without text (2, first in line 2)" in caplog.text


def test_fields_that_are_not_used_are_named_once_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [ROWS[0], {**ROWS[1], "score": 1, "note\x1b[2J": "x"}, {**ROWS[2], "score": 2}]
    read([write(tmp_path / "a.jsonl", lines(rows)), write(tmp_path / "b.json", json.dumps(rows[1:]))])
    one, two = caplog.messages
    assert one.endswith("a.jsonl: fields not used: 'note\\x1b[2J' (first in line 2), score (first in line 2)")
    assert two.endswith("b.json: fields not used: 'note\\x1b[2J' (first in row 1), score (first in row 1)")


def test_rows_that_are_left_out_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    false, half = {**ROWS[0], "label": False}, {"prompt": "Q", "completion": 5}
    path = write(tmp_path / "a.jsonl", lines([false, ROWS[0], half, false, {"text": " "}, half]) + "{\n")
    assert len(read(path)) == 1
    assert (
        "6 of 7 rows left out: labelled false (2, first in line 1); completion is a number; give text "
        "(2, first in line 3); without text (1, first in line 5); not JSON (" in caplog.text
    )
    with pytest.raises(
        ValueError, match=r"a\.jsonl: no row can be learnt from: labelled false \(1, first in line 1\); c"
    ):
        read(write(tmp_path / "a.jsonl", lines([false, half])))


def test_many_reasons_are_not_all_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [{"messages": [*turn("Q", "A"), {"role": f"king {i}", "content": ""}]} for i in range(20)]
    read(write(tmp_path / "a.jsonl", lines([ROWS[0], *rows])))
    assert "20 of 21 rows left out" in caplog.text and "king 5" in caplog.text and "king 6" not in caplog.text
    assert "; and 14 reasons more" in caplog.text


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "Q"}, "line 2: prompt stands without answer"),
        ({"messages": [{"role": "king", "content": ""}]}, r"line 2: messages\[0\].role is 'king'"),
        (7, "line 2: the row is a number"),
    ],
)
def test_strict_stops_at_a_row_that_does_not_fit(tmp_path: Path, row: object, why: str):
    path = write(tmp_path / "a.jsonl", lines([ROWS[0], row]))
    assert len(read(path)) == 1
    with pytest.raises(ValueError, match=why) as caught:
        read(path, strict=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="line 4: not JSON"):
        read(write(tmp_path / "b.jsonl", lines(ROWS) + '{"text": \n'), strict=True)


def test_strict_keeps_to_rows_that_are_understood(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", lines([ROWS[0], {**ROWS[0], "label": False}, {"text": " "}]))
    assert len(read(path, strict=True)) == 1


@pytest.mark.parametrize("name", ["A.TXT", "a.Txt", "a.txt.GZ", "A.TXT.gz"])
def test_endings_in_any_case_are_plain_text(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"Words.") if name.lower().endswith("gz") else b"Words.")
    assert [(r.text, r.source.lower()) for r in read(tmp_path)] == [("Words.", "a")]


def test_endings_of_rows_in_any_case_are_found_in_a_folder(tmp_path: Path):
    write(tmp_path / "a.JSONL", lines(ROWS[2:]))
    write(tmp_path / "b.Json", json.dumps(ROWS[2:]))
    assert [r.source for r in read(tmp_path)] == ["a/test", "b/test"]


def test_byte_order_marks_are_no_text(tmp_path: Path):
    marked = "\ufeff" + lines(ROWS[:1]) + "\ufeff" + lines(ROWS[2:])  # two files, joined
    assert len(read(write(tmp_path / "a.jsonl", marked))) == 2
    (found,) = read(write(tmp_path / "a.txt", "\ufeffWords."))
    assert found.text == "Words."


def test_a_record_knows_where_it_stands(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", "\n" + lines(ROWS[:1]))
    (found,) = read(path)
    assert found.where == f"{path} line 2"
    assert found == Record("set/kilt_one", tuple(turn("Q1", "A1")))


def test_the_digest_tells_rows_apart():
    one = [Record("a", tuple(turn("Q", "A")), where="x"), Record("a", text="\ud83d")]
    same = [Record("b", tuple(turn("Q", "A")), where="y"), Record("c", text="\ud83d")]
    assert digest(one) == digest(same)
    others = [one[:1], one[::-1], [Record("a", tuple(turn("Q", "A")), context=(1,)), one[1]]]
    others += [[one[0], Record("a", text="\ud83d", ends=False)], [Record("a", tuple(turn("Q", "B"))), one[1]]]
    assert len({digest(one), *map(digest, others)}) == 6


def test_a_line_separator_inside_a_string_does_not_end_the_row(tmp_path: Path):
    (found,) = read(write(tmp_path / "a.jsonl", json.dumps({"text": "one\u2028two"}, ensure_ascii=False)))
    assert found.text == "one\u2028two"


@pytest.mark.parametrize(
    ("options", "sources"),
    [
        ({"drop": ["kilt_*"]}, ["set/two", "rows/test"]),
        ({"drop": ["set/*"]}, ["rows/test"]),
        ({"keep": ["set/*"]}, ["set/kilt_one", "set/two"]),
        ({"keep": ["set/*"], "drop": ["two"]}, ["set/kilt_one"]),
    ],
)
def test_sources_are_kept_and_dropped_by_pattern(tmp_path: Path, options: dict, sources: list[str]):
    assert [r.source for r in read(write(tmp_path / "rows.jsonl", lines(ROWS)), **options)] == sources


def test_limit_draws_by_seed_in_file_order(tmp_path: Path):
    path = write(tmp_path / "many.jsonl", lines([{"text": f"{i:03}"} for i in range(100)]))
    one, again, other = (read(path, limit=10, seed=s) for s in (1, 1, 2))
    assert one == again != other
    assert [r.text for r in one] == sorted(r.text for r in one)
    assert len(one) == 10
    assert len(read(path, limit=1000)) == 100


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.jsonl", " \n", "empty file"),
        ("broken.json", '[{"text": "a"},\n oops]', "line 2: not JSON"),
        ("prose.jsonl", "Once upon a time", r"no row can be learnt from: not JSON \(.*\(1, first in line 1\)"),
        ("shape.jsonl", lines([{"title": "a", "year": 1}]), r"no field is known \(title, year\); accepted: .*line 1"),
        ("shape.json", json.dumps([{"title": "a"}]), r"no field is known \(title\).*row 1"),
        ("number.jsonl", "12\n", r"the row is a number; give an object"),
        ("list.json", "[]", "no rows"),
        ("silent.jsonl", lines([{"text": ""}, {"prompt": "Q", "completion": ""}]), "no text in any row"),
        ("asks.jsonl", lines([{"messages": [{"role": "user", "content": "Hi"}]}]), "no text in any row"),
        ("role.jsonl", lines([{"messages": [{"role": "x", "content": ""}]}]), r"messages\[0\].role is 'x'.*line 1"),
        ("half.json", json.dumps([{"text": "\ud83d"}]), r"text holds '\\ud83d', half.*row 1"),
        ("deep.jsonl", '{"a":' * 99999, "too deeply.*line 1"),
        ("deep.json", "[" * 99999, "too deeply"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str, text: str, message: str):
    path = write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_paths_and_filters_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no data files given"):
        read([])
    with pytest.raises(ValueError, match=r"missing\.jsonl: no such data file"):
        read(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="folder without data files"):
        read(tmp_path)
    path = write(tmp_path / "rows.jsonl", lines(ROWS))
    with pytest.raises(ValueError, match=r"filtered out.*sources seen: rows/test, set/kilt_one, set/two"):
        read(path, drop=["*"])
    with pytest.raises(ValueError, match="limit is 0"):
        read(path, limit=0)


@given(st.permutations(range(60)), st.integers(0, 3))
def test_holdout_does_not_depend_on_order_or_company(order: list[int], seed: int):
    made = records(60)
    _, held = holdout(made, 0.3, seed)
    shuffled = [made[i] for i in order]
    assert {r.key for r in holdout(shuffled, 0.3, seed)[1]} == {r.key for r in held}
    few = shuffled[:20]
    assert {r.key for r in holdout(few, 0.3, seed)[1]} == {r.key for r in held} & {r.key for r in few}


def test_holdout_parts_cover_all_and_keep_duplicates_together():
    made = records(2000)
    train, held = holdout(made, 0.1)
    assert len(train) + len(held) == 2000
    assert 150 < len(held) < 250
    other_answers = [Record("other", tuple(turn(r.messages[0]["content"].upper() + " ", "Else"))) for r in made]
    assert [r.key for r in holdout(other_answers, 0.1)[1]] == [r.key for r in held]
    assert holdout(made, 0)[1] == [] == holdout(made, 1)[0]
    with pytest.raises(ValueError, match="fraction is 2"):
        holdout(made, 2)
