"""Maps of others: what is malformed is one line that names the file and the field, whatever is wrong with it."""

from __future__ import annotations

import io
import json
import math
import random
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from rich.console import Console

from depthdial.cli import main
from depthdial.core.names import public_name
from depthdial.maps.folder import MapFolder, map_identity
from depthdial.maps.html import map_page
from depthdial.maps.parse import from_text, parse_table
from depthdial.maps.plot import draw
from depthdial.maps.schema import KEY, DepthMap, arrow_table
from depthdial.maps.store import part_file, read_map, read_run, write_map
from depthdial.maps.summary import summarise
from depthdial.maps.table import tables

CASES = 200
ODD: list[Any] = [
    None, True, 2.5, 6.0, -1, 0, 2**40, 10**30, math.nan, math.inf, "", "a", "\ud800", "\x1b[2J", [], [1], [[1]], {},
    [2, 3, 3], [5, 4], [99], [True], ["2"], {"a": [None]}, "$x_{", "[bold]",
]  # fmt: skip


@pytest.fixture(scope="module")
def sound(tiny_map) -> pa.Table:
    return arrow_table(tiny_map)


def with_facts(found: pa.Table, facts: Any) -> pa.Table:
    raw = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    return found.replace_schema_metadata({KEY: raw})


def facts_in(found: pa.Table) -> dict[str, Any]:
    return json.loads(found.schema.metadata[KEY])


def replaced(found: pa.Table, name: str, values: Any) -> pa.Table:
    return found.set_column(found.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("layers", 6.0, "`layers` must be a whole number"),
        ("layers", True, "`layers` must be a whole number"),
        ("layers", "6", "`layers` must be a whole number"),
        ("layers", 0, "`layers` must be a whole number from 1"),
        ("layers", 10**9, "`layers` must be a whole number"),
        ("routed", 3, "`routed` must list layers"),
        ("routed", [2.0], "`routed` must list layers"),
        ("routed", [6], "`routed` must list layers from 0 to 5"),
        ("routed", [3, 2], "`routed` must name each layer once, in order"),
        ("always_on", -1, "`always_on` must be a whole number"),
        ("budget", "0.8", "`budget` must be a number or null"),
        ("budget", math.nan, "`budget` must be a number or null"),
        ("offset", [], "`offset` must be a number or null"),
        ("model", None, "`model` must be text"),
        ("model", "\ud800", "`model` must be text"),
        ("plugin", 5, "`plugin` must be text"),
        ("alternatives", 2.5, "`alternatives` must be a whole number"),
        ("format_version", 1.0, "format version"),
        ("format_version", {"a": 1}, "format version"),
    ],
)
def test_facts_of_a_wrong_kind_are_named(sound, name, value, says):
    with pytest.raises(ValueError, match=f"^it.*{says}"):
        parse_table(with_facts(sound, {**facts_in(sound), name: value}), "it")


@pytest.mark.parametrize("raw", [b"{", b"[" * 200_000, b"1" * 5000, b"[]", b"\xff", b"null"])
def test_facts_that_are_no_json_are_no_map(sound, raw):
    with pytest.raises(ValueError, match="it is not a depth map"):
        parse_table(with_facts(sound, raw), "it")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("token_ids", lambda v: [[x + 0.5 for x in r] for r in v], "`token_ids` is list<.*double>"),
        ("layers_used", lambda v: [[float(x) + 0.5 for x in r] for r in v], "`layers_used` is list<.*double>"),
        ("token_ids", lambda v: [None, *v[1:]], "`token_ids` has a row without a value"),
        ("pieces", lambda v: [[None, *r[1:]] for r in v], "`pieces` has a list with an empty place"),
        ("id", lambda v: [None] * len(v), "`id` has a row without a value"),
        ("id", lambda v: [[x] for x in v], "`id` is list<"),
        ("task", lambda v: [b"\xff"] * len(v), "`task` is binary"),
        ("group", lambda v: [{"a": 1}] * len(v), "`group` is struct"),
        ("pieces", lambda v: [r[1:] for r in v], "row 1: `pieces` has"),
        ("generated", lambda v: [[*r, True] for r in v], "row 1: `generated` has"),
        ("token_class", lambda v: [["verb"] * len(r) for r in v], "`token_class` has 'verb', which is none"),
        ("layers_used", lambda v: [[7] * len(r) for r in v], "`layers_used` has 7, outside 0 to 6"),
        ("layers_used", lambda v: [[-1] * len(r) for r in v], "`layers_used` has -1"),
        ("layers_used", lambda v: [[2**20] * len(r) for r in v], "`layers_used` is list<.*int64>"),
        ("token_ids", lambda v: [[-5] * len(r) for r in v], "`token_ids` has -5"),
        ("run_mask", lambda v: [r[:-1] for r in v], "`run_mask` has"),
        ("scores", lambda v: [r[:-1] for r in v], "`scores` has"),
        ("scores", lambda v: [[2.0] * len(r) for r in v], "`scores` has 2, outside 0 to 1"),
        ("entropy", lambda v: [[-1.0] * len(r) for r in v], "`entropy` has -1"),
        ("entropy", lambda v: [r[:-1] for r in v], "`entropy` has"),
        ("alternatives", lambda v: [r[:-1] for r in v], "`alternatives` has"),
        ("alternative_probs", lambda v: [None] * len(v), "only one of `alternatives`"),
        ("token_ids", lambda v: [[] for _ in v], "row 1 has no tokens"),
    ],
)  # fmt: skip
def test_columns_of_a_wrong_kind_are_named(sound, name, change, says):
    result = replaced(sound, name, pa.array(change(sound.column(name).to_pylist())))
    with pytest.raises(ValueError, match=f"it.*{says}"):
        parse_table(result, "it")


def test_other_types_that_hold_the_same_are_read(sound, tiny_map):
    """What pandas and datasets make of the columns when they write them again."""
    result = replaced(sound, "task", sound.column("task").cast(pa.large_string()))
    result = replaced(result, "token_ids", sound.column("token_ids").cast(pa.large_list(pa.int64())))
    result = replaced(result, "entropy", sound.column("entropy").cast(pa.list_(pa.float64())))
    result = replaced(result, "group", pa.chunked_array([sound.column("group").combine_chunks().dictionary_encode()]))
    back = parse_table(result, "it")
    assert [row.text for row in back.rows] == [row.text for row in tiny_map.rows]
    assert [row.token_ids.tolist() for row in back.rows] == [row.token_ids.tolist() for row in tiny_map.rows]


def test_a_column_twice_and_json_without_end(sound):
    with pytest.raises(ValueError, match="has the column `task` twice"):
        parse_table(sound.append_column("task", sound.column("task")), "it")
    with pytest.raises(ValueError, match="nested too deeply"):
        from_text("[" * 200_000)


@pytest.mark.parametrize("text", ["[" * 200_000, '"a"', "[1]", "{}", '{"format_version": [1]}', "1" * 5000])
def test_a_strange_map_json_is_one_line(tmp_path, tiny_map, text):
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(ValueError, match=r"map\.json is (damaged|of format)") as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_of_others_in_the_folder_are_left_alone(tmp_path, tiny_map):
    facts = map_identity(tiny_map.facts, "b4", {}, {})
    output = MapFolder(tmp_path / "map", facts)
    write_map(tiny_map, part_file(output.path, 0))
    (output.path / "data" / "part-final.parquet").write_bytes(b"x")
    (output.path / "data" / "part-00001.parquet").mkdir()
    again = MapFolder(output.path, facts, resume=True)
    assert part_file(output.path, 0) in again.parts and len(again.parts) == 2


def test_names_of_others_are_shown_and_not_obeyed(tmp_path, tiny_map, sound, capsys):
    facts = {**facts_in(sound), "model": "m\x1b[2J\x07[bold]$x_{", "plugin": "p\x9b31m"}
    result = replaced(with_facts(sound, facts), "task", pa.array(["\x1b]0;t\x07", "b\r\n\u202ec", "$\\q"]))
    file = tmp_path / "map.parquet"
    parquet.write_table(result, file)
    with pytest.raises(SystemExit) as caught:
        main(["map", "summary", str(file), "--output", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    assert not any(sign in out for sign in "\x1b\x07\x9b\u202e\r") and "m\\x1b[2J\\x07[bold]$x_{" in out
    assert (tmp_path / "out" / "summary.png").is_file()


def mutant(found: pa.Table, draw_: random.Random) -> pa.Table:
    """A map with one to three things wrong, or only unusual."""
    for _ in range(draw_.randint(1, 3)):
        facts, name = facts_in(found), draw_.choice(found.column_names)
        match draw_.randrange(7):
            case 0:
                found = with_facts(found, {**facts, draw_.choice(list(facts)): draw_.choice(ODD)})
            case 1:
                facts.pop(draw_.choice(list(facts)))
                found = with_facts(found, facts)
            case 2:
                found = (
                    found.drop_columns([name]) if draw_.random() < 0.3 else replaced(found, name, pa.nulls(len(found)))
                )
            case 3:
                other = found.column(draw_.choice(found.column_names))
                found = replaced(found, name, other)
            case 4:
                values = found.column(name).to_pylist()
                values[draw_.randrange(len(values))] = None
                found = replaced(found, name, pa.array(values, found.schema.field(name).type))
            case 5:
                values = [
                    v[: draw_.randrange(len(v) + 1)] if hasattr(v, "__len__") else v for v in found[name].to_pylist()
                ]
                found = replaced(found, name, pa.array(values, found.schema.field(name).type))
            case _:
                kind = draw_.choice(
                    [pa.string(), pa.float64(), pa.list_(pa.float64()), pa.list_(pa.string()), pa.binary()]
                )
                plain: Any = {"string": "x", "double": 1.5, "binary": b"\xff"}.get(
                    str(kind), [draw_.choice([1, 2])] * 3
                )
                if str(kind) == "list<element: string>" or kind == pa.list_(pa.string()):
                    plain = ["\x1b[1m"] * 3
                found = replaced(found, name, pa.array([plain] * len(found), kind))
    return found  # fmt: skip


def test_no_map_of_others_ends_in_anything_but_one_line(sound, tmp_path):
    """Seeded: whatever is wrong with a folder, reading, summarising and drawing it work or say one line."""
    console = Console(file=io.StringIO(), width=100)
    draw_, message = random.Random(19), {}
    for case in range(CASES):
        file = tmp_path / "map.parquet"
        result = mutant(sound, draw_)
        if not result.schema.metadata:  # an operation took it away
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pyarrow's own
            parquet.write_table(result, file)
        if draw_.random() < 0.2:
            content = bytearray(file.read_bytes())
            for _ in range(draw_.randint(1, 4)):
                content[draw_.randrange(len(content))] = draw_.randrange(256)
            file.write_bytes(content[: draw_.randrange(len(content))] if draw_.random() < 0.5 else content)
        try:
            map_page([read_map(file)])
            summary = summarise(file, scope="all")
            for part in tables(summary):
                console.print(part)
            json.dumps(summary.to_json(), allow_nan=False)
            if case % 20 == 0:
                draw(summary, tmp_path / "summary.png")
        except ValueError as error:
            message[case] = error
    assert CASES / 3 < len(message) < CASES
    assert not [error for error in message.values() if isinstance(error, UnicodeError) or "\n" in str(error)]
    assert all(str(error).startswith(str(tmp_path)) for error in message.values()), "each names the file"


def test_a_place_of_this_machine_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    for place in (str(tmp_path / "secret" / "base"), "../base", "~/models/base", "/base/", "c:\\models\\base"):
        assert public_name(place).endswith("base") and "/" not in public_name(place), place
        assert "secret" not in public_name(place) and "models" not in public_name(place)
    assert public_name("here") == "here" and public_name("org/base") == "org/base" and public_name("") == ""
    assert public_name(".") == tmp_path.name


def test_map_json_and_parts_hold_no_path(tmp_path, tiny_folder, tiny_plugin):
    (tmp_path / "prompts.txt").write_text("the quick\n")
    where = ["--prompts", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "map"), "--raw"]
    model = ["--model", str(tiny_folder), "--plugin", str(tiny_plugin), "--dtype", "float32"]
    with pytest.raises(SystemExit) as caught:
        main(["map", *where, *model, "--max-new-tokens", "2"])
    assert caught.value.code == 0
    for file in (tmp_path / "map").rglob("*"):
        if file.is_file():
            assert str(tiny_folder.parent).encode() not in file.read_bytes(), file
    result: DepthMap = read_map(tmp_path / "map")
    assert result.facts.model == tiny_folder.name
