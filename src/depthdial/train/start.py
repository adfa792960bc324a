"""Where a training starts that goes on from another plug-in: its parts, or wider ones that do the same."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from depthdial.models.checkpoint import parts_file, parts_of, read_parts

DOWN, WIDE = "adapter.down.weight", ("adapter.gate.weight", "adapter.up.weight")
"""The ends of the names of an adapter's weights: [d, width], and [width, d]."""


def take_over(model: PreTrainedModel, folder: str) -> None:
    """Start from another plug-in's parts, by name and shape: random may take the adapters of a router's plug-in. Wider
    adapters begin as the narrower ones: what is new is multiplied by 0. Raises ValueError where a part is missing or of
    another shape."""
    own, start = parts_of(model), read_parts(parts_file(folder))
    missing = [k for k, v in own.items() if k not in start or not _holds(k, v, start[k])]
    if missing:
        raise ValueError(
            f"{folder} has no {missing[0]} of that shape ({len(missing)} of {len(own)} parts are missing); "
            "it cannot be the starting point of this method"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name.endswith(DOWN):
                tensor.zero_()
            tensor[tuple(slice(0, n) for n in start[name].shape)] = start[name]


def _holds(name: str, own: torch.Tensor, start: torch.Tensor) -> bool:
    """May a tensor begin as a smaller one? An adapter's may, along its width."""
    if own.shape == start.shape:
        return True
    side = 1 if name.endswith(DOWN) else 0 if name.endswith(WIDE) else None
    if side is None or own.ndim != 2 or start.ndim != 2:
        return False
    return own.shape[1 - side] == start.shape[1 - side] and own.shape[side] > start.shape[side]
