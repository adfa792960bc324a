"""The engine against the dense reference in random cases: every family and method, odd shapes, windows, both dtypes,
caches too small for all, shared beginnings, samples, drafts, cancels; pages that nobody may read hold nan.

A case that fails says its seed; FUZZ_SEED=seed and `-k alone` run it again. FUZZ_CASES: of the slow test, in all.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.laws.fuzz import drawn_case, run
from tests.laws.fuzz_check import check
from tests.laws.toys import TOYS

from depthdial.methods import METHODS
from depthdial.models.families import FAMILIES

CHUNKS, FEW, MANY = 8, 200, int(os.environ.get("FUZZ_CASES", "20000"))
PARTS = 40
ALONE = os.environ.get("FUZZ_SEED")


def tried(seed: int, tiny_model: Callable, tokenizer: Any, adapted: Callable) -> Counter[str]:
    case = drawn_case(seed)
    try:
        ran = run(case, tiny_model, tokenizer, adapted)
        return ran.counts + check(ran)
    except Exception as error:
        raise AssertionError(f"{error}\n{case}") from error


def tried_all(seeds: range, *made: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in seeds:
        counts += tried(seed, *made)
    print(dict(sorted(counts.items())))
    return counts


def assert_not_vacuous(counts: Counter[str]) -> None:
    """Each of these must have happened, or the comparison says nothing of it."""
    for what in (
        "skipped", "preempted", "beginnings of others", "forks", "cancelled", "stopped", "drafts right", "drafts wrong",
        "drawn", "greedy", "bfloat16", "native tokens", "torch tokens", "read in full, then skipped",
        "dials that moved",
    ):  # fmt: skip
        assert counts[what] > 0, f"no case had: {what}"
    assert counts["skipped"] > 1000 and counts["float32 tokens compared"] > 20 * counts["cases"]
    # what rounding decides is rare, or it would hide what is wrong
    for kind, gates, tokens in (("float32", 1e-4, 1e-3), ("bfloat16", 0.02, 0.1)):
        assert counts[f"{kind} gates at the cut"] <= 1 + gates * counts[f"{kind} places compared"]
        assert counts[f"{kind} ties of tokens"] <= 1 + tokens * counts[f"{kind} tokens compared"]
    assert counts["halves at the cut"] <= 1 + 0.02 * counts["texts"]
    assert counts["computed otherwise again"] <= 1 + 0.02 * counts["texts"]


@pytest.fixture(scope="module")
def totals() -> Counter[str]:
    """Of all chunks so far."""
    return Counter()


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_cases_equal_the_reference(tiny_model, tiny_tokenizer, adapted, totals: Counter[str], chunk: int):
    size = FEW // CHUNKS
    counts = tried_all(range(chunk * size, (chunk + 1) * size), tiny_model, tiny_tokenizer, adapted)
    assert counts["cases"] == size and counts["skipped"] > 100
    totals.update(counts)


def test_those_cases_had_all_there_is(totals: Counter[str]):
    if totals["cases"] < FEW:
        pytest.skip("says something after all chunks, in one process")
    assert_not_vacuous(totals)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_many_random_cases_equal_the_reference(tiny_model, tiny_tokenizer, adapted, part: int):
    size = MANY // PARTS
    first = 1_000_000 + part * size
    counts = tried_all(range(first, first + size), tiny_model, tiny_tokenizer, adapted)
    if size >= 100:
        assert_not_vacuous(counts)
        assert {family for family in FAMILIES if counts[f"family {family}"]} == set(FAMILIES)
        assert all(counts[f"method {name}"] for name in [*METHODS, *TOYS])


@pytest.mark.skipif(ALONE is None, reason="set FUZZ_SEED to the seed of a case")
def test_one_alone(tiny_model, tiny_tokenizer, adapted):
    assert ALONE is not None
    print(drawn_case(int(ALONE)))
    print(dict(sorted(tried(int(ALONE), tiny_model, tiny_tokenizer, adapted).items())))
