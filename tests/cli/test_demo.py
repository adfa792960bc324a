"""The demo on a tiny model."""

from __future__ import annotations

from typer.testing import CliRunner

from depthdial.cli.app import app
from depthdial.cli.demo import PROMPTS


def test_the_demo_shows_text_depth_and_cost(tiny_folder, tiny_plugin):
    args = ["demo", "--model", str(tiny_folder), "--plugin", str(tiny_plugin), "--max-new-tokens", "6", "--no-color"]
    result = CliRunner().invoke(app, args, catch_exceptions=False)
    assert result.exit_code == 0
    for prompt in PROMPTS:
        assert f"> {prompt}" in result.stdout
    for said in ("layers used:", "MFLOPs per token", "of 6; true cost 0.", "budget 1.0, the untouched model:"):
        assert said in result.stdout
