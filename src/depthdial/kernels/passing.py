"""What a native pass is given beside the model, and what it gives.

N tokens, M of them asked for; V tokens in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class PassTokens(NamedTuple):
    """N tokens of any sequences."""

    ids: Tensor
    """int64 [N]."""
    positions: Tensor
    """int32 [N]."""
    sequences: Tensor
    """int32 [N]: row of the page tables."""
    offsets: Tensor
    """float32 [N]: on every router's number; +inf is the untouched base."""
    given: Tensor | None = None
    """uint8 [steps, N]: the decisions of "table" steps; None: all run."""
    inv_freq: Tensor | None = None
    """float32 [N, ropes, rotated / 2], where frequencies depend on the length of a text; None: the model's."""
    query_scale: Tensor | None = None
    """float32 [N]: on each token's queries, after the rope; None: 1."""


class PagedCache(NamedTuple):
    """K and V of all visits in one pool of pages; a pass writes into it."""

    k: Tensor
    """T [pages, kv_heads, PAGE, head_dim]; a page belongs to one sequence at one row of the table."""
    v: Tensor
    table: Tensor
    """int32 [caches, sequences, pages of a sequence]: of places 64 i to 64 i + 63; -1: no page, nothing is there."""
    held: Tensor | None = None
    """uint8 [pages, PAGE], of visits where tokens may leave nothing: 1 where one left K and V. A pass writes it for its
    own tokens. None: all places up to a token's own are read."""


class PassOutput(NamedTuple):
    """What a pass writes beside K and V."""

    keep: Tensor
    """uint8 [steps, N]: 1 where the token ran the step."""
    score: Tensor
    """float32 [steps, N]: sigmoid(number + offset) where a router spoke, else as `keep`; 0 for who did not wait."""
    logits: Tensor | None = None
    """float32 [M, V], of the tokens that are asked for."""
    argmax: Tensor | None = None
    """int64 [M]: the likeliest; -1 where logits are not finite. Without both the head is not run."""


class Waiting(NamedTuple):
    """Where a pass stands at an "open" step; all are views that hold until it goes on."""

    step: int
    here: Tensor
    """bool [N]: the tokens that wait for a decision; never those at +inf."""
    x: Tensor
    """float32 [N, d]: the stream."""
    z: Tensor
    """float32 [N, d]: the normed input of the unit; holds of the tokens that wait."""


class Decided(NamedTuple):
    """keep: bool [N]. run, skip: float32 [N], weights on the update and on the adapter; None: 1. Of tokens that do not
    wait nothing is read."""

    keep: Tensor
    run: Tensor | None = None
    skip: Tensor | None = None


Decide = Callable[[Waiting], Decided]
