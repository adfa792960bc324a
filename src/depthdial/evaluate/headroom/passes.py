"""A base that reads text without some of its layers, and what its own head says after each of them.

A pass begins at the first layer where it differs from one whose states are at hand. At the head it is compared at the
base's likeliest tokens and one bucket for the rest: half the work of two heads, and a KL that is lower by a trifle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.evaluate.headroom.text import Rows
from depthdial.evaluate.store import Store, key_of
from depthdial.models.convert import Readout, head_of, layers_of
from depthdial.models.halves import Passed, as_it_is, swapped
from depthdial.models.head import shaping_of

LIKELIEST = 64
"""Tokens of the base at which a pass is compared, beside one bucket for the rest."""
FEW = 512
"""Tokens by which layers are ranked, at least: a greedy search runs the model once per layer tried."""


class Lost(NamedTuple):
    """What N tokens lose, nats, float64 [N]."""

    kl: np.ndarray
    """KL from the base."""
    nll: np.ndarray
    """Cross-entropy above the base's."""


class _Base(NamedTuple):
    """Of one row: the input of each layer, [1, T, d], and what the base expects at the n tokens that count."""

    states: dict[int, Tensor]
    ids: Tensor
    log_p: Tensor
    nll: Tensor


class Drops:
    """One base over some rows. N counts, row by row, the tokens whose next one is there and is none of a template's.

    name: what tells the base from others; store: what was found, by what was asked; report: told what was run, after
    each step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Rows,
        store: Store,
        name: str,
        report: Callable[[str], None] = lambda _: None,
    ):
        self._decoder, self._layers = model.get_decoder(), list(layers_of(model))
        self.depth, self._rows, self._store, self._report = len(self._layers), rows, store, report
        self._head, self._readout, self._name = head_of(model), Readout(model), name
        self._shaping = shaping_of(model.config)
        self._ids = [torch.tensor(ids, device=model.device) for ids in rows.ids]
        chosen = [(i, t) for i, own in enumerate(rows.classes) for t in range(len(own) - 1) if own[t + 1] != "template"]
        self.row = np.array([i for i, _ in chosen], dtype=np.int64)
        """int64 [N]: the row of each token."""
        self.classes = np.array([rows.classes[i][t + 1] for i, t in chosen])
        """str [N], of the token that each pass predicts."""
        own = [[t for i, t in chosen if i == row] for row in range(len(rows.ids))]
        self._counts = [torch.tensor(places, dtype=torch.int64, device=model.device) for places in own]
        self._few = int(np.searchsorted(np.cumsum([len(ids) for ids in rows.ids]), FEW)) + 1
        self._bases: list[_Base] = []
        self._before: tuple[tuple[int, ...], list[dict[int, Tensor]]] = ((), [])

    def without(self, dropped: Sequence[int]) -> Lost:
        """All rows without some layers."""
        return self._lost("all", sorted(dropped), [dropped] * len(self._ids))

    def each_without(self, dropped: Sequence[Sequence[int]]) -> Lost:
        """Each row without layers of its own."""
        return self._lost("each", [sorted(layers) for layers in dropped], dropped)

    def divergence(self, dropped: Sequence[int]) -> float:
        """Mean KL of the first rows, `FEW` tokens or more, without some layers. The one that is tried stands last, for
        the pass without the others is kept for the next trial."""

        if len(dropped) == 1:  # all rows are asked about each layer in any case
            return float(self.without(dropped).kl[self.row < self._few].mean())

        def run() -> float:
            before = tuple(dropped[:-1])
            if self._before[0] != before:
                self._before = (before, [self._watched(ids, before)[0] for ids in self._ids[: self._few]])
            found = [self._row(row, dropped, dropped[-1], own)[0] for row, own in enumerate(self._before[1])]
            return float(torch.cat(found).mean())

        return self._stored("rank", list(dropped), run)

    def likeliest(self) -> np.ndarray:
        """Is the base's final choice the head's likeliest token before a layer already? bool [L, N]."""

        @torch.no_grad()
        def run() -> list[list[int]]:
            bases, found = self._known(), []
            for layer in range(self.depth):
                rows = zip(bases, self._counts, strict=True)
                right = [self._readout(b.states[layer][0, own]).argmax(-1) == b.ids[:, 0] for b, own in rows]
                found.append(torch.cat(right).int().tolist())
                self._report(f"the head before layer {layer}")
            return found

        return np.array(self._stored("likeliest", None, run), dtype=bool)

    def _lost(self, what: str, told: Any, dropped: Sequence[Sequence[int]]) -> Lost:
        def run() -> list[list[float]]:
            found = [
                self._row(row, layers, min(layers), base.states) if layers else (torch.zeros(len(base.nll)),) * 2
                for row, (layers, base) in enumerate(zip(dropped, self._known(), strict=True))
            ]
            return [[round(x, 7) for x in torch.cat(column).tolist()] for column in zip(*found, strict=True)]

        return Lost(*map(np.array, self._stored(what, told, run)))

    def _stored(self, what: str, told: Any, run: Callable[[], Any]) -> Any:
        key = key_of(self._name, self._rows.digest, what, told)
        (found,), _ = self._store.get(key, lambda: [run()])
        self._report(f"without {told}" if told else "the head before each layer")
        return found

    def _known(self) -> list[_Base]:
        """The base's own passes, run once."""
        if not self._bases:
            for ids, own in zip(self._ids, self._counts, strict=True):
                states, hidden = self._watched(ids, ())
                log_p = self._logits(hidden[0, own]).log_softmax(-1)
                top = log_p.topk(min(LIKELIEST, log_p.shape[-1]))
                nll = -log_p.gather(-1, ids[own + 1, None])[:, 0]
                self._bases.append(_Base(states, top.indices, top.values, nll))
        return self._bases

    @torch.no_grad()
    def _watched(self, ids: Tensor, dropped: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
        """The input of each layer that runs, and the last hidden states, [1, T, d]."""
        states: dict[int, Tensor] = {}
        kept = [i for i in range(self.depth) if i not in dropped]
        hooks = [self._layers[i].register_forward_pre_hook(_noted(states, i), with_kwargs=True) for i in kept]
        try:
            return states, self._run(dropped, 0, input_ids=ids[None])
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _row(self, row: int, dropped: Sequence[int], start: int, states: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """KL and cross-entropy above the base's, fp32 [n]. states: of a pass that is the same up to `start`."""
        base, own = self._known()[row], self._counts[row]
        hidden = self._run(dropped, start, inputs_embeds=states[start])[0, own]
        found = []
        for x, ids, log_p, after in zip(
            *(column.split(256) for column in (hidden, base.ids, base.log_p, self._ids[row][own + 1])), strict=True
        ):
            logits = self._logits(x)
            total = logits.logsumexp(-1, keepdim=True)
            gap = log_p - (logits.gather(-1, ids) - total)
            p, q = log_p.exp(), (log_p - gap).exp()
            rest_p, rest_q = ((1 - each.sum(-1)).clamp_min(1e-6) for each in (p, q))
            kl = (p * gap).sum(-1) + rest_p * (rest_p.log() - rest_q.log())
            found.append((kl, (total - logits.gather(-1, after[:, None]))[:, 0]))
        kl, nll = (torch.cat(column) for column in zip(*found, strict=True))
        if not kl.isfinite().all():
            raise ValueError(
                f"logits without the layers {list(dropped)} are not finite; check the weights, or --dtype float32"
            )
        return kl.cpu(), (nll - base.nll).cpu()

    def _run(self, dropped: Sequence[int], start: int, **read: Tensor) -> Tensor:
        """The last hidden states, [1, T, d], of the layers from `start` on but those dropped."""
        layers = enumerate(self._layers)
        left = nn.ModuleList(Passed() if i < start or i in dropped else layer for i, layer in layers)
        with swapped(self._decoder, layers=left), as_it_is(self._decoder) if "inputs_embeds" in read else nullcontext():
            return self._decoder(**read, use_cache=False).last_hidden_state

    def _logits(self, x: Tensor) -> Tensor:
        """fp32 [n, V]. x: [n, d] after the last norm."""
        return self._shaping(self._head(x).float())


def _noted(into: dict[int, Tensor], layer: int):
    def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into[layer] = args[0] if args else kwargs["hidden_states"]

    return hook
