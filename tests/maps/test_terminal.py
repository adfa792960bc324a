"""What is drawn, less its colours, is the text; colours are ordered, readable, and left out where not wanted."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from depthdial.maps.terminal import DepthPrinter, Ramp, WordPrinter, show

RAMP = Ramp(10, 30)
PIECES = ["Once", " upon", "", "\na", " time", " with [red]tags[/red] 漢", "é ", "x" * 200, "\n\n", "end"]
DEPTHS = [10, 12, 30, 25, 17, 28, 30, 11, 22, 19]
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def _no_wishes(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def drawn(pieces=PIECES, depths=DEPTHS, **console) -> str:
    file = io.StringIO()
    show(Console(file=file, width=40, **console), pieces, depths, RAMP)
    return file.getvalue()


@pytest.mark.parametrize("colours", ["truecolor", "256", "standard"])
def test_coloured_text_is_the_text(colours):
    out = drawn(force_terminal=True, color_system=colours)
    assert ANSI.search(out)
    assert ANSI.sub("", out) == "".join(PIECES) + "\n"


def test_plain_where_there_is_no_terminal():
    assert drawn() == "".join(PIECES) + "\n"
    assert drawn(["a\x1b[31mb\t"], [10]) == "a\x1b[31mb\t\n"  # a file gets every character


def test_plain_when_no_color_is_set(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert drawn(force_terminal=True, color_system="truecolor") == "".join(PIECES) + "\n"


@pytest.mark.parametrize("no_color", [False, True])
def test_a_model_cannot_command_the_terminal(no_color):
    out = drawn(["a\x1b[2Jb\x07\x9b"], [10], force_terminal=True, color_system="truecolor", no_color=no_color)
    assert ANSI.sub("", out) == "a␛[2Jb␇\ufffd\n"


def test_colours_follow_depth_and_letters_can_be_read():
    def light(rgb) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    lights = []
    for depth in range(10, 31):
        style = RAMP.style(depth)
        assert style.bgcolor is not None and style.bgcolor.triplet is not None and style.color is not None
        back, front = light(style.bgcolor.triplet), 1.0 if style.color.name == "#ffffff" else 0.0
        assert (max(back, front) + 0.05) / (min(back, front) + 0.05) > 4.5  # WCAG AA
        lights.append(back)
    assert lights == sorted(lights) and len(set(lights)) == 21


def test_depths_outside_the_ramp_and_a_ramp_of_one_depth_are_drawn():
    assert Ramp(10, 30).style(3) == Ramp(10, 30).style(10)
    assert Ramp(30, 30).style(30) and "30" in Ramp(30, 30).legend().plain
    assert [int(n) for n in re.findall(r"\d+", RAMP.legend().plain)] == [10, 14, 18, 22, 26, 30]


def test_bars_have_one_character_per_token():
    assert RAMP.bars([10, 30, 20]) == "▁█▅"
    assert RAMP.bars([10, 30, 20], "ascii") == ".@+"
    assert RAMP.bars([]) == ""


def test_pieces_are_written_as_they_come():
    file = io.StringIO()
    printer = DepthPrinter(Console(file=file), RAMP)
    printer.write("a", 10)
    assert file.getvalue() == "a" and not printer.coloured


@pytest.mark.parametrize("colours", ["truecolor", "256", "standard"])
@pytest.mark.parametrize("ramp", [RAMP, Ramp(2, 6), Ramp(4, 5), Ramp(30, 30)])
def test_the_legend_has_the_colours_of_the_text(colours, ramp):
    """With sixteen colours several depths share one: the legend says which, and shows each that the text can have."""

    def written(print_) -> dict[str, set[str]]:
        file = io.StringIO()
        print_(Console(file=file, force_terminal=True, color_system=colours, width=200))
        result = re.findall(r"\x1b\[([0-9;]+)m ?([^\x1b]*?) ?\x1b\[0m", file.getvalue())
        return {code: {text for other, text in result if other == code} for code, _ in result}

    depths = range(ramp.least, ramp.most + 1)
    text = written(lambda console: show(console, [f"{depth}" for depth in depths], list(depths), ramp))
    legend = written(lambda console: console.print(ramp.on(console).legend()))
    for code, marks in legend.items():
        for mark in marks:
            first, _, last = mark.partition("-")
            view = {f"{depth}" for depth in range(int(first), int(last or first) + 1)}
            assert view <= text[code], "what the legend says of a colour holds"
    if colours == "standard":
        assert set(legend) == set(text), "and it says it of all"


def wrapped(pieces: list[str], **console) -> str:
    file = io.StringIO()
    printer = WordPrinter(Console(file=file, width=12, **console), RAMP)
    for at, piece in enumerate(pieces):
        printer.write(piece, 10 + at)
    printer.end()
    return ANSI.sub("", file.getvalue())


def test_words_of_several_pieces_are_not_broken_at_the_edge():
    pieces = ["A", " pho", "to", "graph", " is", " light", ",", "\n\nwa", "ter and", " a", " ", " ir", "."]
    out = wrapped(pieces, force_terminal=True, color_system="truecolor")
    assert out.split() == "".join(pieces).split() and max(map(len, out.split("\n"))) <= 12
    out = wrapped(["one two", " thr", "ee four", " five"], force_terminal=True, color_system="truecolor")
    assert out == "one two\nthree four\nfive"
    assert wrapped(["one two", " thr", "ee four"]) == "one two three four"  # a file gets the text


def test_a_word_longer_than_a_line_and_wide_letters_lose_nothing():
    out = wrapped(
        ["ab ", "x" * 30, " 漢字", "漢字漢字", " c", "\n", "\td"], force_terminal=True, color_system="truecolor"
    )
    assert re.sub(r"\s", "", out) == "ab" + "x" * 30 + "漢字漢字漢字" + "cd"
