"""What a model's answers and depths say of it: accuracy and depth by k, whether depth goes where it is needed, and how
much of the possible saving is realised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from depthdial.testbed.tasks import FILLER, KINDS, NONE

RIGHT = 0.95
"""A model can do a k where it answers so many of its questions right."""


class Answers(NamedTuple):
    """Of N predictions: their marks, and what the model made of them."""

    kind: np.ndarray
    """int64 [N], an index into KINDS; never NONE."""
    k: np.ndarray
    """int64 [N]"""
    right: np.ndarray
    """bool [N]"""
    depth: np.ndarray
    """float [N]: layers that the predicting token ran."""


def by_k(answers: Answers) -> dict[str, dict[int, dict[str, float]]]:
    """Accuracy, mean depth and count of each k of each kind; of filler as k = 0."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for kind in np.unique(answers.kind):
        for k in np.unique(answers.k[answers.kind == kind]):
            here = (answers.kind == kind) & (answers.k == k)
            found.setdefault(KINDS[kind], {})[int(k)] = {
                "accuracy": float(answers.right[here].mean()),
                "depth": float(answers.depth[here].mean()),
                "count": int(here.sum()),
            }
    return found


def measured_needs(dense: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, dict[int, int]]:
    """The need of each k by kind: the fewest layers with which a dense model does it, by the mean over seeds.

    dense: by layers, `by_k` of each seed. A k that none of them can do is not in the table.
    """
    needs: dict[str, dict[int, int]] = {}
    for layers in sorted(dense, reverse=True):
        for kind, ks in dense[layers][0].items():
            for k in ks:
                mean = np.mean([seed[kind][k]["accuracy"] for seed in dense[layers]])
                if mean >= RIGHT and kind != KINDS[FILLER]:
                    needs.setdefault(kind, {})[k] = layers
    return needs


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, ties at their mean rank; 0 where one of them is the same everywhere, or empty. x, y: [N]."""
    if not len(x):
        return 0.0
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def correlations(answers: Answers, need: np.ndarray) -> dict[str, float]:
    """Rank correlation of need and depth, filler left out: over answers ("answers"), and over levels of need, each with
    the mean depth of its answers ("levels"). need: [N], below 0 where it is not known."""
    asked = (answers.kind != FILLER) & (answers.kind != NONE) & (need >= 0)
    need, depth = need[asked], answers.depth[asked]
    levels = np.unique(need)
    means = np.array([depth[need == level].mean() for level in levels])
    return {"answers": rank_correlation(need, depth), "levels": rank_correlation(levels, means)}


def realised(answers: Answers, need: np.ndarray, layers: int) -> float:
    """The share of the possible saving that is realised: layers that predicting tokens left out and did not need, by
    all that they did not need. An oracle, which runs exactly what is needed, has 1; what was needed and left out counts
    for nothing. need: [N], below 0 where it is not known."""
    known = need >= 0
    spare = layers - need[known]
    saved = np.minimum(layers - answers.depth[known], spare).clip(0)
    return float(saved.sum() / spare.sum()) if spare.sum() else 0.0


def deepest_third(ks: Mapping[int, Mapping[str, float]]) -> float:
    """Mean accuracy over the highest third of the ks asked."""
    high = sorted(ks)[-max(1, round(len(ks) / 3)) :]
    return float(np.mean([ks[k]["accuracy"] for k in high]))


def _ranks(x: np.ndarray) -> np.ndarray:
    _, at, count = np.unique(x, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[at]
