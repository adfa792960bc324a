"""Which layers each text, or each token, would best go without: a dynamic program over what their absence costs.

A score is what is lost without a layer, or without two neighbours: these do each other's work, so that both together
cost another amount than the sum. Layers that are further apart are taken to add up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Ways(NamedTuple):
    """The cheapest ways of U units (texts, or tokens) through L layers, by how many of these are left out."""

    value: np.ndarray
    """float64 [U, K + 1]: the least that the absence of so many layers costs, by the scores."""
    dropped: np.ndarray
    """bool [U, K + 1, L]: which these are."""


def cheapest(single: np.ndarray, pair: np.ndarray, most: int) -> Ways:
    """single: float [U, L], the score of each layer's absence; pair: float [U, L - 1], of that of a layer and its next;
    most: K, the most layers that are left out.

    A state is whether the layer before was left out, and how many were so far: 2 L K steps, where there are 2^L ways.
    """
    units, depth = single.shape
    # what neighbours cost beyond their sum: at least what the dearer one does, or long runs of layers would pay
    joint = np.maximum(pair, np.maximum(single[:, :-1], single[:, 1:])) - single[:, :-1] - single[:, 1:]
    value = np.full((units, 2, most + 1), np.inf)
    value[:, 0, 0] = 0.0
    came = np.zeros((depth, units, 2, most + 1), dtype=bool)  # was the layer before left out, on the best way to here?
    for layer in range(depth):
        kept, left = value[:, 0], value[:, 1]
        ran = np.minimum(kept, left)
        alone, beside = kept[:, :-1], left[:, :-1] + (joint[:, layer - 1, None] if layer else 0.0)
        skipped = np.full((units, most + 1), np.inf)
        skipped[:, 1:] = np.minimum(alone, beside) + single[:, layer, None]
        came[layer, :, 0], came[layer, :, 1, 1:] = left < kept, beside < alone
        value = np.stack([ran, skipped], 1)
    return Ways(value.min(1), _traced(came, value[:, 1] < value[:, 0]))


def _traced(came: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Back from the last layer. came: bool [L, U, 2, K + 1]; last: bool [U, K + 1], is it left out?"""
    depth, units, _, counts = came.shape
    dropped = np.zeros((units, counts, depth), dtype=bool)
    unit, left = np.arange(units)[:, None], np.broadcast_to(np.arange(counts), (units, counts)).copy()
    state = last
    for layer in reversed(range(depth)):
        dropped[:, :, layer] = state
        before = came[layer, unit, state.astype(int), left]
        left = left - state
        state = before
    return dropped


def spread(ways: Ways, weight: np.ndarray, mean: float) -> tuple[float, np.ndarray]:
    """How many layers each unit best goes without where the mean is set, and what that costs.

    weight: float [U], tokens of each unit; mean: layers left out by a token on average. Gives the cost a token, where
    units in between take turns, and int64 [U], the numbers at no less than the mean. ValueError beyond what `ways` has.
    """
    most = ways.value.shape[1] - 1
    if not 0 <= mean <= most:
        raise ValueError(f"{mean:.1f} layers are to be left out on average, and at most {most} can be")
    share = weight / weight.sum()

    def at(price: float) -> np.ndarray:
        return (ways.value - price * np.arange(most + 1)).argmin(1)

    def told(counts: np.ndarray) -> tuple[float, float]:
        values = np.take_along_axis(ways.value, counts[:, None], 1)[:, 0]
        return float(share @ counts), float(share @ values)

    low, high = -1.0, 1.0
    while told(at(low))[0] > mean:
        low *= 2
    while told(at(high))[0] < mean:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if told(at(middle))[0] < mean else (low, middle)
    (few, below), (many, above) = told(at(low)), told(at(high))
    part = (mean - few) / (many - few) if many > few else 1.0
    return below + part * (above - below), at(high)


def pooled(scores: np.ndarray, row: np.ndarray, rows: int) -> np.ndarray:
    """Means by text, float64 [rows, ...], of scores by token, [N, ...]. row: int64 [N], the text of each."""
    sums = np.zeros((rows, *scores.shape[1:]))
    np.add.at(sums, row, scores)
    return sums / np.bincount(row, minlength=rows).reshape(-1, *[1] * (scores.ndim - 1))


def dealt(single: np.ndarray, pair: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Each layer's scores dealt out anew among the tokens, so that nothing is left of easy and hard ones, or of what a
    text is about: what an oracle wins on these it wins by picking the best of noise. As `cheapest` takes them."""
    joint = pair - single[:, :-1] - single[:, 1:]
    single, joint = random.permuted(single, axis=0), random.permuted(joint, axis=0)
    return single, joint + single[:, :-1] + single[:, 1:]
