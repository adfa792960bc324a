"""The demo on a tiny model."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from depthdial.cli.app import app
from depthdial.cli.demo import PROMPTS
from depthdial.cli.options import MODEL
from depthdial.engine.llm import LLM, SamplingParams


def test_the_demo_shows_text_depth_and_cost(tiny_folder, tiny_plugin):
    args = ["demo", "--model", str(tiny_folder), "--plugin", str(tiny_plugin), "--max-new-tokens", "6", "--no-color"]
    result = CliRunner().invoke(app, args, catch_exceptions=False)
    assert result.exit_code == 0
    for prompt in PROMPTS:
        assert f"> {prompt}" in result.stdout
    assert "The question is read in full" in " ".join(result.stdout.split())
    for message in ("layers used:", "MFLOPs per written token", "of 6; true cost 0.", "of the prompt 1.000"):
        assert result.stdout.count(message) == (1 if message == "layers used:" else 3)
    assert result.stdout.count("budget 1.0, the untouched model:") == 3
    result = CliRunner().invoke(app, [*args, "--prompt-budget", "same"], catch_exceptions=False)
    assert result.stdout.count("of the prompt 0.") == 3 and "on the same dial" in " ".join(result.stdout.split())


def test_a_prompt_budget_that_is_none_is_refused_before_loading(failed):
    assert "--prompt-budget 'x'" in failed("demo", "--model", "nowhere", "--prompt-budget", "x")


@pytest.mark.real
@pytest.mark.slow
def test_what_the_untouched_model_gets_wrong_is_not_asked():
    """A fair picture: the base's own answers to the questions are right, and so is what is written on the dial."""
    llm = LLM(MODEL, device="cpu")
    tokens = [llm.chat_tokens([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    for budget in (1.0, None):
        outputs = llm.generate(tokens, SamplingParams(max_tokens=48, temperature=0.0, budget=budget))
        for out, words in zip(outputs, ("Paris", "carbon dioxide", "scatter"), strict=True):
            assert words in out.text and out.prompt_cost == 1.0
