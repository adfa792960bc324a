"""How much of the machine a training uses: needed multiply-accumulates per second over the rate of a plain matmul."""

from __future__ import annotations

import time

import torch
from torch import Tensor
from transformers import PreTrainedModel

from depthdial.core.cost import Ledger
from depthdial.models.converted import converted_of
from depthdial.train.gathered import gather

PASSES = 3
"""Forward, and a backward pass of twice its work."""


def matmul_rate(device: torch.device, bf16: bool, size: int = 1024, repeats: int = 5) -> float:
    """Multiply-accumulates per second of the best of some square matmuls, in the precision of training."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    size = size if device.type == "cpu" else 8 * size
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        start = _now(device)
        torch.mm(a, b)
        best = min(best, _now(device) - start)
    return size**3 / best


def needed_macs(ledger: Ledger, cost: float, shares: list[float], length: int) -> float:
    """Multiply-accumulates that a mean token's forward pass needs: linear weights by true cost, and attention over the
    context of a row for the tokens that run a layer. shares: share of tokens that ran each layer."""
    context = (length + 1) / 2
    attention = sum(
        share * layer.attend * min(context, layer.window or context)
        for share, layer in zip(shares, ledger.layers, strict=True)
    )
    return cost * ledger.dense + attention


def utilisation(macs: float, tokens: float, seconds: float, rate: float) -> float:
    """Share of `rate` (of all processes) that training `tokens` tokens of `macs` each in `seconds` made use of."""
    return PASSES * macs * tokens / max(seconds, 1e-9) / rate


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def gather_pays(model: PreTrainedModel, ids: Tensor, bf16: bool, repeats: int = 3) -> bool:
    """Is a forward and backward pass faster with gathered rows? Measured on `ids`, int64 [B, T], at the density that
    the routers start from: about half, where they are fresh. False where nothing can be gathered."""
    try:
        undo = gather(model)
    except ValueError:
        return False
    seconds = _best(model, ids, bf16, repeats)
    undo()
    return seconds < _best(model, ids, bf16, repeats)


def _best(model: PreTrainedModel, ids: Tensor, bf16: bool, repeats: int) -> float:
    """Seconds of the best of some passes, after one to warm up; the model is left as it was."""
    best, was, keys = float("inf"), model.training, torch.arange(len(ids), device=ids.device)
    model.train()
    for turn in range(repeats + 1):
        start = _now(ids.device)
        autocast = torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16)
        with converted_of(model).using(training=True, key=keys), autocast:
            out = model(input_ids=ids, use_cache=False).logits
        out.float().square().mean().backward()
        if turn:
            best = min(best, _now(ids.device) - start)
    model.zero_grad(set_to_none=True)
    model.train(was)
    return best
