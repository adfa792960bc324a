"""Draw a token on a CPU: what `sampling.draw` says, with the noise of those tokens only that could win.

Noise is Gumbel's, keyed by token, so that of one token needs nothing of another's. This file is *not* about which draw
of which text it is (`sampling.draw_key`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
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
    if top_k or top_p < 1:
        ids = np.sort(_kept(scores, top_k or scores.size, top_p))
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
    steps = _steps(count) if ids is None else (ids.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    word = steps + np.uint64(key)
    for shift, factor in _ROUNDS:
        word ^= word >> shift
        word *= factor
    word ^= word >> np.uint64(31)
    return word


@lru_cache(maxsize=4)
def _steps(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN


def _least(noise: float) -> np.uint64:
    """The least word whose noise may be above `noise`, with room for rounding."""
    above = -math.expm1(-math.exp(-max(noise, -700.0))) + 2.0**-40  # the share of words above
    return np.uint64(max(0, 2**64 - 1 - int(above * 2**64)))


def _kept(scores: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """The `top_k` likeliest tokens, of these the fewest whose probability reaches `top_p`; of equals the first."""
    top_p *= SLACK if top_p < 1 else 1.0
    some = min(top_k, _SOME if top_p < 1 else top_k)
    total = None
    while True:
        order = _first(scores, some)
        if top_p >= 1:
            return order
        if total is None:
            best = float(scores[order[0]])
            all_of_them = order if some == top_k else scores if top_k >= scores.size else _first(scores, top_k)
            total = np.exp((scores if all_of_them is scores else scores[all_of_them]).astype(np.float64) - best).sum()
        share = np.exp(scores[order].astype(np.float64) - best) / total
        before = share.cumsum() - share
        if some >= top_k or before[-1] >= top_p:
            return order[before < top_p]
        some = min(4 * some, top_k)


def _first(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` likeliest tokens, likeliest first."""
    if count >= scores.size:
        return np.argsort(-scores, kind="stable")
    bound = np.partition(scores, scores.size - count)[scores.size - count]
    found = np.flatnonzero(scores >= bound)  # more of them, where some are equal
    return found[np.argsort(-scores[found], kind="stable")][:count]
