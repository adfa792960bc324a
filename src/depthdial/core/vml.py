"""MKL's vector functions at full precision from the first call on."""

from __future__ import annotations

import torch

FUNCTIONS = ("cos", "sin", "exp", "expm1", "log", "log1p", "sqrt", "tanh", "erf")
"""Of those that PyTorch leaves to MKL on CPUs, the ones that models use."""


def settle() -> None:
    """Call each of them once, on one number.

    MKL chooses a function's kernel in its first call. Where several threads make that call together, one of them may
    compute its share with 11 bits (pytorch/pytorch#188792), and the first call of `cos` is the rotary embedding's.
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(one)
