"""`depthdial serve` refuses, in one line, what it cannot serve. That it serves is tested in tests/serve."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("options", "word"),
    [(["--max-queue", "-1"], "max_queue"), (["--timeout", "0"], "timeout"), (["--api-key", ""], "API key"),
     (["--budget", "much"], "budget"), (["--prompt-budget", "much"], "--prompt-budget 'much'"),
     (["--prompt-budget", "1.1"], "prompt_budget must be"), (["--host", "256.0.0.1"], "256.0.0.1")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_loading(failed, options, word):
    assert word in failed("serve", *options)


def test_a_model_that_is_not_there_is_one_line(failed, tmp_path):
    assert "nothing" in failed("serve", "--port", "0", "--model", str(tmp_path / "nothing"))
