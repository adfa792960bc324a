"""A mean over tokens with an honest interval: tokens of one text are alike, so whole texts are the sample."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """A mean and half the width of its 95 % interval (normal); the interval of one cluster is unknown: NaN."""

    mean: float
    half: float


def clustered_mean(values: Tensor, cluster: Tensor) -> Mean:
    """Mean of `values` [N] and its interval, the clusters (int64 [N], any numbers) being the independent draws.

    The usual linearised variance of a ratio of sums (of values, over their number), for clusters of unequal size.
    """
    values = values.double()
    if not len(values):
        return Mean(math.nan, math.nan)
    mean = values.mean()
    _, place = cluster.unique(return_inverse=True)
    count = int(place.max()) + 1
    if count < 2:
        return Mean(float(mean), math.nan)
    residues = torch.zeros(count, dtype=torch.double).index_add_(0, place, values - mean)
    error = (residues.square().sum() * count / (count - 1)).sqrt() / len(values)
    return Mean(float(mean), 1.96 * float(error))
