"""Random numbers that belong to a token at its place, never to a batch: a row draws the same alone and in company
(law 10)."""

from __future__ import annotations

import torch
from torch import Tensor

from depthdial.core.program import Program
from depthdial.core.tokens import Tokens

_MASK = (1 << 31) - 1


def drawn(seed: int, program: Program, s: int, tokens: Tokens) -> Tensor:
    """A uniform number in (0, 1) for each token at a step, fp64 [N].

    Keyed by (seed, visit, position), in training also by the row's key; a layer's attention and whole layer share their
    numbers, its MLP has its own. Elsewhere the token itself is in the key: other texts draw other numbers, and whoever
    runs a text, in whatever pieces and from whatever cache, draws the same. (Embeddings have no ids, and share.)
    """
    place = program.visit_of[s] + (1 << 16) * (program.steps[s].unit == "mlp")
    return uniform(seed, place, _key(tokens), tokens.position)


def drawn_at_once(seed: int, program: Program, tokens: Tokens) -> Tensor:
    """What `drawn` gives at the first routed step of each visit that has one, fp64 [visits, N], where that is no MLP:
    executors that ask before each short pass have no time for one step after the other."""
    visits = sorted({program.visit_of[s] for s in program.routed})
    return uniform(seed, torch.tensor(visits, device=tokens.position.device)[:, None], _key(tokens), tokens.position)


def _key(tokens: Tokens) -> Tensor:
    if tokens.key is not None:
        return tokens.key
    return torch.zeros_like(tokens.position) if tokens.id is None else tokens.id


def fading(progress: float, start: float, end: float) -> float:
    """1 up to the share `start` of training, 0 from `end` on, a straight line between."""
    return min(1.0, max(0.0, (end - progress) / (end - start)))


def uniform(seed: int, layer: int | Tensor, sample: Tensor, position: Tensor) -> Tensor:
    """Counter-based uniform numbers in (0, 1), fp64 [N]. sample: of a row or a token, int64 [N]; position: int64 [N];
    layer: one, or int64 [L, 1] for a result [L, N].

    Three rounds of a 31-bit multiply-xorshift hash (the mixing steps of MurmurHash3's finaliser, kept below 63 bits).
    """
    key = (position * 0x2C1B3C6D + sample * 0x297A2D39 + layer * 0x1B873593 + seed * 0x0E6546B6) & _MASK
    for factor in (0x45D9F3B, 0x119DE1F3, 0x27D4EB2D):
        key = ((key ^ (key >> 15)) * factor) & _MASK
    return ((key ^ (key >> 16)).double() + 0.5).div(1 << 31)
