"""Draw a token on a CPU: what `sampling.drawn` says, with the noise of those tokens only that could win.

Noise is Gumbel's, keyed by token, so that of one token needs nothing of another's. This file is *not* about which draw
of which text it is (`sampling.draw_key`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""SplitMix64's step, and the shifts and factors of its finaliser."""
SLACK = 1 - 1e-9
"""A nucleus may miss `top_p` by this: sums of equal probabilities must not end on either side of a round number."""
_NEAR = 4.0
"""Tokens whose scores are within this of the best are looked at first: one of them mostly wins."""
_SOME = 512
"""How many of the likeliest tokens are put in order at first to find a nucleus."""


def draw(logits: np.ndarray, temperature: float, top_k: int, top_p: float, key: int) -> int:
    """The token drawn. logits: fp32 [vocabulary]; top_k: 0 is all."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scores = logits / np.float32(temperature)
    if not np.isfinite(scores.max()):  # a broken pass, or a temperature that leaves nothing to chance
        return int(logits.argmax())
    most = min(top_k or scores.size, scores.size)
    if most < scores.size or top_p < 1:
        ids = np.sort(_kept(scores, most, top_p))
        return int(ids[_noisy(scores[ids], _words(key, ids)).argmax()])
    cut = scores.max() - np.float32(_NEAR)
    near = np.flatnonzero(scores >= cut)
    noisy = _noisy(scores[near], _words(key, near))
    # a token below the cut wins only with noise above this
    words = _words(key, None, scores.size)
    far = np.flatnonzero((words >= _least(float(noisy.max()) - float(cut))) & (scores < cut))
    ids = np.concatenate((near, far))
    values = np.concatenate((noisy, _noisy(scores[far], words[far])))
    return int(ids[values == values.max()].min())


def _noisy(scores: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Scores and Gumbel's noise, fp64."""
    return scores - np.log(-np.log(((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52))


def _words(key: int, ids: np.ndarray | None, count: int = 0) -> np.ndarray:
    """uint64, one of each token: SplitMix64 started at `key`. ids: of the tokens; None: the first `count`."""
    steps = _steps(count) if ids is None else (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
    word = steps + np.uint64(key)
    for shift, factor in ROUNDS:
        word ^= word >> np.uint64(shift)
        word *= np.uint64(factor)
    word ^= word >> np.uint64(31)
    return word


@lru_cache(maxsize=4)
def _steps(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)


def _least(noise: float) -> np.uint64:
    """The least word whose noise may be above `noise`, with room for rounding."""
    above = -math.expm1(-math.exp(-max(noise, -700.0))) + 2.0**-40  # the share of words above
    return np.uint64(max(0, 2**64 - 1 - int(above * 2**64)))


def _kept(scores: np.ndarray, most: int, top_p: float) -> np.ndarray:
    """The `most` likeliest tokens, of these the fewest whose probability reaches `top_p`; of equals the first. Only
    where one of the two leaves something out."""
    if top_p >= 1:
        return _first(scores, most)
    order = _first(scores, most if most < scores.size else min(_SOME, most))
    best = scores.max()
    total = np.exp((scores if most == scores.size else scores[order]).astype(np.float64) - best).sum()
    while True:
        share = np.exp(scores[order].astype(np.float64) - best) / total
        before = share.cumsum() - share
        if order.size == most or before[-1] >= top_p * SLACK:
            return order[before < top_p * SLACK]
        order = _first(scores, min(4 * order.size, most))


def _first(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` likeliest tokens, likeliest first."""
    if count >= scores.size:
        return np.argsort(-scores, kind="stable")
    bound = np.partition(scores, scores.size - count)[scores.size - count]
    found = np.flatnonzero(scores >= bound)  # more of them, where some are equal
    return found[np.argsort(-scores[found], kind="stable")][:count]
