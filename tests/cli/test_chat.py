"""A conversation in the terminal, on a tiny model."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from depthdial.cli.app import app
from depthdial.engine.llm import LLM, SamplingParams


@pytest.fixture(scope="module")
def options(tiny_folder, tiny_plugin):
    return ["chat", "--model", str(tiny_folder), "--plugin", str(tiny_plugin), "--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def llm(tiny_folder, tiny_plugin):
    return LLM(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu")


def said(options: list[str], *lines: str) -> str:
    result = CliRunner().invoke(
        app, [*options, "--max-new-tokens", "6"], input="\n".join(lines), catch_exceptions=False
    )
    assert result.exit_code == 0
    return result.stdout


def text(llm: LLM, *contents: str, **params) -> str:
    roles = ["system"] if len(contents) % 2 == 0 else []
    roles += ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return llm.chat(messages, SamplingParams(max_tokens=6, **params))[0].text


def test_it_answers_remembers_and_forgets(options, llm):
    first = text(llm, "the fox")
    second = text(llm, "the fox", first, "dog")
    out = said(options, "the fox", "dog", "/reset", "dog")
    at = [out.index(piece) for piece in (first, second)]
    assert at == sorted(at) and out.rindex(text(llm, "dog")) > at[1] and second != text(llm, "dog")
    assert out.count("true cost") == 3 and "of 6; true cost 0." in out and out.count("of the prompt 1.000") == 3


def test_the_dial_turns_for_the_next_answer(options, llm):
    low, base = text(llm, "the fox", budget=0.7), text(llm, "the fox", budget=1.0)
    content = text(llm, "the fox", budget=0.7, prompt_budget="same")
    for lines, expected, cost in (
        (["/budget 1.0"], base, "true cost 1.000"),
        (["/lossless"], base, "true cost"),
        (["/lossless", "/lossless"], text(llm, "the fox"), "true cost 0."),
        (["/budget 0.7"], low, "true cost 0."),
        (["/budget 0.7", "/prompt-budget same"], content, "of the prompt 0."),
        (["/prompt-budget same", "/prompt-budget", "/budget 0.7"], low, "of the prompt 1.000"),
    ):
        out = said(options, *lines, "the fox")
        assert expected in out and cost in out


def test_it_begins_as_the_command_line_says(options, llm):
    drawn = text(llm, "the fox", temperature=2.0, top_k=3, seed=5)
    assert drawn in said([*options, "--temperature", "2", "--top-k", "3", "--seed", "5"], "the fox")
    assert drawn != text(llm, "the fox", temperature=2.0, top_k=0, seed=5)
    base = text(llm, "the fox", budget=1.0)
    assert base in said([*options, "--lossless"], "the fox") and base != text(llm, "the fox")
    assert base not in said([*options, "--lossless"], "/lossless", "the fox")


def test_lossless_has_no_budget(tiny_folder, tiny_plugin, failed):
    line = failed("chat", "--model", str(tiny_folder), "--plugin", str(tiny_plugin), "--lossless", "--budget", "0.8")
    assert "lossless" in line and "budget" in line


def test_a_system_message_is_in_the_prompt(options, llm):
    assert text(llm, "quick", "the fox") in said(options, "/system quick", "the fox")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("/budget x", "no number"),
        ("/budget 0.1", "0.700"),
        ("/prompt-budget x", "/prompt-budget 'x' is no number"),
        ("/prompt-budget 2", '"same"'),
        ("/prompt-budget 0.1", "0.700"),
        ("/budget 2", "budget"),
        ("/dance", "/help"),
        ("/budget nan", "nan"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_talk_goes_on(options, llm, line, word):
    out = said(options, line, "the fox")
    assert word in out and text(llm, "the fox") in out


def test_help_and_quit(options):
    out = said(options, "/help", "/quit", "the fox")
    assert "/lossless" in out and "true cost of" in out and "true cost 0" not in out


def test_it_refuses_before_the_first_question(tiny_folder, tiny_plugin, failed):
    line = failed("chat", "--model", str(tiny_folder), "--plugin", str(tiny_plugin), "--budget", "0.1")
    assert "budget" in line and "0.7" in line
    assert "--prompt-budget 'x'" in failed("chat", "--model", "nowhere", "--prompt-budget", "x")
