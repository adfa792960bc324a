"""Terminals of any encoding, and pipes that are closed: the command ends with 0, or with 2 and one line; never with a
traceback, and what a model wrote is never cut off."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from depthdial.cli import main, streams
from depthdial.cli.generate import console
from depthdial.maps.terminal import Ramp, show

EMOJI = "🙂🙃é"
POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def options(tiny_folder):
    told = ["--model", tiny_folder, "--plugin", "none", "--dtype", "float32", "--device", "cpu"]
    return [*map(str, told), "--max-new-tokens", "2"]


def ended(args, env=None, shell="", **kwargs):
    """What one run of the command says, as bytes; shell: redirections."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    command = [sys.executable, "-m", "depthdial", *args]
    if shell:
        command = ["bash", "-c", f'"$@" {shell}', "bash", *command]
    return subprocess.run(command, env={**known, **(env or {})}, capture_output=True, check=False, **kwargs)


def refused(result) -> str:
    err = result.stderr.decode("utf-8", "backslashreplace")
    lines = err.splitlines()
    assert result.returncode == 2 and "Traceback" not in err and len(lines) == 1, (result.returncode, err)
    return lines[0]


@pytest.mark.parametrize("env", [{}, {"LANG": "C"}, POSIX])
def test_an_argument_that_is_no_utf_8_is_named(env):
    assert "argument 2 is not UTF-8" in refused(ended(["generate", b"caf\xe9"], env))


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({}, b"caf\xe9"),
        ({"LANG": "C"}, b"caf\xe9"),
        ({"PYTHONIOENCODING": "ascii"}, b"caf\xe9"),
        ({}, "a".encode("utf-16")),
    ],
)
def test_standard_input_that_is_no_text_is_refused(env, text):
    assert "standard input is not utf-8 text" in refused(ended(["generate", "-"], env, input=text)).lower()


def test_empty_and_closed_standard_input_are_one_line():
    assert "the prompt is empty" in refused(ended(["generate", "-"], input=b""))
    assert "standard input is closed" in refused(ended(["generate", "-"], shell="<&-"))
    assert "standard input is closed" in refused(ended(["chat"], shell="<&-"))


def test_closed_standard_output_and_error_end_well():
    assert ended(["--help"], shell=">&-").returncode == 0
    result = ended(["--version"], shell="2>&-")
    assert result.returncode == 0 and result.stdout.startswith(b"depthdial")
    result = ended(["generate", ""], shell="2>&-")
    assert (result.returncode, result.stdout) == (2, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_said():
    assert "No space left" in refused(ended(["--help"], shell="> /dev/full"))


def test_a_reader_that_has_enough_is_no_error():
    result = ended(["--help"], shell="| true; echo ${PIPESTATUS[0]}")
    assert result.stdout == b"0\n" and not result.stderr


@pytest.mark.parametrize("locale", [{"LANG": "C"}, POSIX, {"PYTHONIOENCODING": "ascii"}])
def test_help_can_be_shown_in_any_terminal(locale):
    result = ended(["map", "--help"], locale)
    assert result.returncode == 0 and b"Usage" in result.stdout


def test_utf_8_arguments_are_read_where_the_locale_knows_ascii_alone():
    assert streams.arguments(["the", os.fsencode(EMOJI).decode("ascii", "surrogateescape")]) == ["the", EMOJI]


@pytest.mark.parametrize(
    ("encoding", "given"), [("utf-8", "\ufeffthe café\n"), ("latin-1", "the café"), ("ascii", "the café")]
)
def test_standard_input_is_read_in_the_terminals_encoding(monkeypatch, encoding, given):
    data = given.encode("utf-8" if encoding == "ascii" else encoding)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding=encoding))
    assert streams.read_input() == "the café"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_what_a_terminal_cannot_show_is_escaped_and_nothing_is_cut_off(monkeypatch, encoding, errors):
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding=encoding, errors=errors))
    streams.settle()
    pieces = ["begin ", EMOJI, " ▁ end"]
    show(console(False), pieces, [1, 2, 3], Ramp(1, 6))
    show(console(True), pieces, [1, 2, 3], Ramp(1, 6))
    sys.stdout.flush()
    written = "".join(pieces).encode(encoding, "backslashreplace")
    plain, coloured = held.getvalue().split(b"\n")[:2]
    assert plain == written and all(piece in coloured for piece in written.split(b" "))


def test_a_line_of_a_conversation_that_is_no_text_is_refused_by_itself(monkeypatch, capsys, options):
    lines = io.TextIOWrapper(io.BytesIO(b"caf\xe9\nthe fox\n/quit\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", lines)
    with pytest.raises(SystemExit) as caught:
        main(["chat", *options[:-2], "--max-new-tokens", "3"])
    out = capsys.readouterr().out
    assert caught.value.code == 0 and "half a character" in out and "3 tokens" in out


def test_names_of_others_cannot_steer_the_terminal(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "a", "--model", "no\x1b[2Jwhere/a\x9b31m/b", "--plugin", "none"])
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\x9b" not in err and "\\x1b[2J" in err


@pytest.mark.slow
@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, POSIX])
def test_a_whole_run_in_a_terminal_that_knows_ascii_alone(options, env):
    args = ["generate", "the " + EMOJI, *options]
    result, plain = ended(args, env), ended([*args, "--json"], {"LANG": "C.UTF-8"})
    text = json.loads(plain.stdout)["text"]
    assert result.returncode == plain.returncode == 0, result.stderr
    assert result.stdout.decode("ascii") == text.encode("ascii", "backslashreplace").decode() + "\n"
