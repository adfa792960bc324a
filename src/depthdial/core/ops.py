"""Small operations that routers are made of, for executors that run them without asking Python.

A code is a row of numbers for each token; the first operation makes it from what the step shows.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor


class Dense(NamedTuple):
    """code -> weight code + bias. As the first operation the code is the token's normed input."""

    weight: Tensor
    """[out, in]"""
    bias: Tensor | None = None
    """fp32 [out]"""
    wide: bool = False
    """As the first operation: multiplied in fp32 and not in the model's dtype."""


class Norm(NamedTuple):
    """RMS norm of the code, in fp32."""

    weight: Tensor
    """fp32 [n]"""
    eps: float


class Act(NamedTuple):
    """A function of each number of the code."""

    name: Literal["tanh", "silu", "relu", "gelu", "sigmoid"]


class Look(NamedTuple):
    """As the first operation: top probability and its gap to the second, by the logits that the step shows; [2]."""


Op = Dense | Norm | Act | Look
