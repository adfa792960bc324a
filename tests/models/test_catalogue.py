"""docs/models.md is what the code says, and what it says is true."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

from depthdial.models.catalogue import SIZES, floor_of, kinds, markdown, obstacle, odds_of, summary
from depthdial.models.families import FAMILIES, family_of

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_is_what_the_code_says():
    """Write it anew with `depthdial models --markdown > docs/models.md`."""
    text, pins = PAGE.read_text(), (PAGE.parents[1] / "constraints.txt").read_text().splitlines()
    (pinned,) = (pin.removeprefix("transformers==") for pin in pins if pin.startswith("transformers=="))
    assert f"transformers {pinned}," in text, "a new pin asks for a new page"
    if transformers.__version__ == pinned:
        assert text == markdown()


def test_every_type_is_there_once():
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("|")]
    named = [each for row in rows if len(row) > 2 for cell in row[1:3] for each in cell.split("`")[1::2]]
    sizes = {kind for kind, _ in SIZES.values()}
    assert set(named) >= set(kinds()) and all(named.count(kind) == 1 for kind in kinds() if kind not in sizes)


def test_what_is_refused_is_refused_in_one_line():
    for kind in kinds():
        if kind not in FAMILIES:
            assert "\n" not in obstacle(kind)
            with pytest.raises(ValueError, match="cannot be converted yet; known: llama") as no:
                family_of(SimpleNamespace(model_type=kind))  # pyright: ignore[reportArgumentType]
            assert "\n" not in str(no.value)


def test_oddities_are_in_words():
    assert odds_of(FAMILIES["llama"]) == [] and "experts" in odds_of(FAMILIES["gpt_oss"])
    assert "llama: as Llama" in summary() and len(summary().splitlines()) == len(FAMILIES)


def test_a_floor_is_that_of_the_sizes():
    found = floor_of("SmolLM2-135M")
    assert found.weights == pytest.approx(134.5e6, rel=2e-3) and 0.6 < found.floor < 0.7
