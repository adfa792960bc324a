"""Tokens that are written after others were read: a pass over some places of packed rows, in which all other places
keep the K and V that the untouched base left for them.

Training asks for it: a prompt is read in full, and what is written after it by the dial. The prompt's keys and values
are the base's then, whatever the routers do, so the base reads a row once and the written tokens alone run again, as
often as there are budgets to try. This file is *not* about which tokens are written (`train.roles`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from depthdial.models.halves import Halves


class Kept:
    """Stands where Hugging Face expects a cache: keeps K and V of one pass, [B, heads, T, head size] by layer."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.layers[layer] = k, v
        return k, v


class Merged:
    """The same over `kept`: K and V of this pass take the places `at` of a row, the others are those that were kept.

    kept: of B rows; at: int64 [B * copies, W], each token's place in its row, T for one that only fills up (a column of
    its own, which no other token sees). Copies of one row stand side by side.
    """

    def __init__(self, kept: Kept, at: Tensor, copies: int):
        self.kept, self.at, self.copies = kept, at[:, None, :, None], copies

    def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        old_k, old_v = self.kept.layers[layer]
        return self._over(old_k, k), self._over(old_v, v)

    def _over(self, old: Tensor, new: Tensor) -> Tensor:
        rows = torch.cat([old, old.new_zeros(*old.shape[:2], 1, old.shape[3])], 2).repeat_interleave(self.copies, 0)
        return rows.scatter(2, self.at.expand_as(new), new)


class Continuation:
    """The base's reading of packed rows, and passes over the written tokens on top of it.

    halves: of the converted model, cut. position_ids: int64 [B, T], from 0 at each
    document; written: bool [B, T]. by_document: attention runs for one document of a row after the other, so that what
    the mask would hide is not computed; a CPU takes half the time then.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        halves: Halves,
        position_ids: Tensor,
        written: Tensor,
        by_document: bool = False,
    ):
        self.model, self.halves, self.positions, self.by_document = model, halves, position_ids, by_document
        length = position_ids.shape[1]
        width = min(length, -(-max(1, int(written.sum(-1).max())) // STEP) * STEP)
        order = torch.where(written, torch.arange(length, device=written.device), length).sort(-1).values
        self.places = order[:, :width]
        """int64 [B, W]: the written tokens' places in their rows, in order; T fills up."""
        self.real = self.places < length
        """bool [B, W]: is a token there?"""
        self._at = self.places.clamp(max=length - 1)
        self._kept = Kept()

    def taken(self, values: Tensor) -> Tensor:
        """What belongs to the written tokens, [B, W, ...], of values [B, T, ...]; arbitrary where none is."""
        rows = torch.arange(len(values), device=values.device)[:, None]
        return values[rows, self._at]

    @torch.no_grad()
    def read(self, lower: Tensor) -> Tensor:
        """The untouched base over all tokens (its settings must say so): hidden states after the last norm, [B, T, d].
        lower: [B, T, d], the input of the upper half."""
        rows, length = self.positions.shape
        every = torch.arange(length, device=lower.device).expand(rows, length)
        masks = self._masks(every, torch.ones_like(every, dtype=torch.bool), lower.dtype)
        masks = {kind: mask[..., :length] for kind, mask in masks.items()}
        with self._attending(every, torch.ones_like(every, dtype=torch.bool), 1) as how:
            return self.halves.upper(
                lower, position_ids=self.positions, past_key_values=self._kept, attention_mask=_by_kind(masks), **how
            )

    def write(self, lower: Tensor, copies: int) -> Tensor:
        """The written tokens by the dial, `copies` times: [B * copies, W, d] after the last norm. After `read`."""
        hidden = self.taken(lower).repeat_interleave(copies, 0)
        positions = self.taken(self.positions).repeat_interleave(copies, 0)
        masks = self._masks(self.places, self.real, lower.dtype)
        masks = {kind: mask.repeat_interleave(copies, 0) for kind, mask in masks.items()}
        cache: Any = Merged(self._kept, self.places.repeat_interleave(copies, 0), copies)
        with self._attending(self.places, self.real, copies) as how:
            return self.halves.upper(
                hidden, position_ids=positions, past_key_values=cache, attention_mask=_by_kind(masks), **how
            )

    @contextmanager
    def _attending(self, places: Tensor, real: Tensor, copies: int) -> Iterator[dict[str, Any]]:
        """How the decoder attends meanwhile: what it is to be called with."""
        if not self.by_document:
            yield {}
            return
        config = self.model.config.get_text_config()
        before = config._attn_implementation
        config._attn_implementation = BY_DOCUMENT
        try:
            yield {"spans": self._spans(places, real, copies)}
        finally:
            config._attn_implementation = before

    def _spans(self, places: Tensor, real: Tensor, copies: int) -> list[list[Span]]:
        """The documents of each row in which a token at one of `places` [B, W] stands, in order; copies of a row have
        the same."""
        starts, length, rows = self.positions == 0, self.positions.shape[1], []
        for row, (at, there) in enumerate(zip(places, real, strict=True)):
            edges = [*starts[row].nonzero().flatten().tolist(), length]
            edges = edges if edges[0] == 0 else [0, *edges]
            own = at[there].contiguous()
            cuts = torch.searchsorted(own, torch.tensor(edges, device=own.device)).tolist()
            spans = [
                Span(slice(q, end), slice(k, stop), own[q:end, None] - torch.arange(k, stop, device=own.device))
                for q, end, k, stop in zip(cuts, cuts[1:], edges, edges[1:], strict=False)
                if end > q
            ]
            rows.append(spans)
        return [spans for spans in rows for _ in range(copies)]

    def _masks(self, places: Tensor, real: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """By type of layer, [B, 1, W, T + 1]: 0 where a token at one of `places` [B, W] sees a place of its own
        document up to itself, the lowest number elsewhere. Column T is seen by what only fills up (not `real`)."""
        config = self.model.config
        window = getattr(config, "sliding_window", None)
        document = (self.positions == 0).cumsum(-1)
        at = places.clamp(max=self.positions.shape[1] - 1)[..., None]
        rows = torch.arange(len(at), device=at.device)[:, None, None]
        back = at - torch.arange(document.shape[1], device=at.device)
        seen = (document[rows, at] == document[:, None]) & (back >= 0) & real[..., None]
        found = {}
        for kind in set(getattr(config, "layer_types", None) or [SLIDING if window else FULL]):
            near = seen & (back < window) if kind == SLIDING and window is not None else seen
            near = torch.cat([near, ~real[..., None]], -1)[:, None]
            mask = torch.zeros(near.shape, dtype=dtype, device=near.device)
            found[kind] = mask.masked_fill(~near, torch.finfo(dtype).min)
        return found


def _by_kind(masks: dict[str, Tensor]) -> Any:
    """As Hugging Face's decoders take them: one mask where all layers are of one type."""
    return masks if len(masks) > 1 else next(iter(masks.values()))


class Span(NamedTuple):
    """A document in a row, as attention sees it."""

    queries: slice
    keys: slice
    back: Tensor
    """int64 [queries, keys]: how many places a key stands before a query."""


def attend_by_document(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float,
    spans: list[list[Span]], sliding_window: int | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Hugging Face's attention, one document after the other: query [B, heads, W, hd], key and value [B, kv heads, T or
    more, hd] -> [B, W, heads, hd]. Queries of no document (what fills up) get zeros."""
    width, groups, rows = query.shape[2], query.shape[1] // key.shape[1], []
    for q, k, v, row in zip(query.unflatten(1, (-1, groups)), key, value, spans, strict=True):
        parts, done = [], 0
        for span in row:
            count, hidden = span.back.shape[0], span.back < 0
            if sliding_window is not None:
                hidden = hidden | (span.back >= sliding_window)
            mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill(hidden, -math.inf)
            asked = q[:, :, span.queries].flatten(1, 2)  # the heads that share keys side by side
            scores = torch.baddbmm(mask.repeat(groups, 1)[None], asked, k[:, span.keys].mT, alpha=scaling)
            parts.append((scores.softmax(-1) @ v[:, span.keys]).unflatten(1, (groups, count)))
            done += count
        parts.append(q.new_zeros(*q.shape[:2], width - done, q.shape[-1]))
        rows.append(torch.cat(parts, 2).flatten(0, 1))
    return torch.stack(rows).transpose(1, 2), None


BY_DOCUMENT = "depthdial_by_document"
"""Its name among Hugging Face's."""
ALL_ATTENTION_FUNCTIONS.register(BY_DOCUMENT, attend_by_document)
FULL, SLIDING = "full_attention", "sliding_attention"
STEP = 16
"""Written tokens of a row are filled up to a multiple of this: kernels are made for a shape."""
