"""The fast draw is the slow one, and looks at few tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthdial.engine import draw as fast
from depthdial.engine.sampling import SamplingParams, draw_key, drawn


def logits_of(seed: int, size: int, spread: float, step: float = 0.0) -> torch.Tensor:
    """step: round to multiples of it, so that many are equal."""
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread
    return (logits / step).round() * step if step else logits


def both(logits: torch.Tensor, params: SamplingParams, key: int) -> tuple[int, int]:
    asked: Any = params  # None says that nobody cuts
    slow = int(drawn(logits, params, key))
    return fast.draw(logits.numpy(), asked.temperature, asked.top_k, asked.top_p, key), slow


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3000),
    st.sampled_from((0.0, 0.1, 1.0, 4.0, 30.0)),
    st.sampled_from((0.0, 0.0, 0.5, 8.0)),
    st.sampled_from((0.05, 0.8, 1.0, 3.0)),
    st.sampled_from((0, 0, 1, 7, 600, 2000)),
    st.sampled_from((1.0, 1.0, 1e-6, 0.3, 0.9, 0.9999)),
)
def test_equal_to_the_slow_draw(seed, size, spread, step, temperature, top_k, top_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = logits_of(seed, size, spread, step)
    for place in range(4):
        one, other = both(logits, params, draw_key(seed, 0, place))
        assert one == other


def test_equal_on_a_whole_vocabulary():
    for seed in range(20):
        params = SamplingParams(temperature=0.8, top_p=1.0 if seed % 2 else 0.95)
        one, other = both(logits_of(seed, 49152, 3.0), params, draw_key(seed, 0, 0))
        assert one == other


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_give_a_token(bad: float, top_p: float):
    """A row with broken logits must not fail the rows beside it."""
    logits = logits_of(0, 50, 8.0)
    assert fast.draw(logits.numpy(), 1e-38, 0, top_p, 1) == int(logits.argmax()), "no chance is left"
    assert fast.draw(torch.full((50,), bad).numpy(), 1.0, 0, top_p, 1) == 0
    logits[7] = bad
    one, other = both(logits, SamplingParams(temperature=1.0, top_p=top_p), 1)
    assert one == other != (7 if bad == -math.inf else None)


def test_equal_probabilities_end_a_nucleus_in_one_place():
    for size in range(1, 400):
        one, other = both(torch.zeros(size), SamplingParams(temperature=1.0, top_p=0.9), draw_key(1, 0, size))
        assert one == other


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_noise_is_made_for_few_tokens(top_p: float, monkeypatch: pytest.MonkeyPatch):
    looked_at, noisy = [], fast._noisy
    monkeypatch.setattr(fast, "_noisy", lambda scores, words: (looked_at.append(scores.size), noisy(scores, words))[1])
    logits = logits_of(0, 49152, 3.0)
    logits[:5] += 20.0  # as a language model's are: a few stand out
    for place in range(20):
        fast.draw(logits.numpy(), 1.0, 0, top_p, draw_key(0, 0, place))
    assert 20 <= sum(looked_at) < 20 * 49152 * 0.05


def test_the_least_word_is_safe():
    """Every word that gives more noise than asked for is at least the bound."""
    words = np.random.default_rng(0).integers(0, 2**64, 20000, dtype=np.uint64)
    noise = fast._noisy(np.zeros(words.size), words)
    for bound in (-3.0, 0.0, 1.0, 5.0, 9.0, 40.0, -1000.0):
        assert (words[noise > bound] >= fast._least(bound)).all()
    assert fast._least(20.0) > np.uint64(2**63)
