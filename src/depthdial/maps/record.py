"""Texts to rows of a map: one pass of the routed model for the decisions, one of the base for what it expects.

The layers below the first routed one run once for both. The passes are those of `Routed`, the meaning of every method;
an engine's own decisions equal them in fp32, and in bf16 but for near-ties of a gate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthdial.engine.request import RequestOutput
from depthdial.maps.base_reading import BaseReading, Expected
from depthdial.maps.classes import TokenClasses
from depthdial.maps.pieces import Pieces
from depthdial.maps.schema import Facts, Row
from depthdial.maps.texts import Text
from depthdial.models.convert import head_of, method_of, route_of, routed
from depthdial.models.halves import Halves

BATCH_TOKENS = 2048


class Recorder:
    """Maps texts with a converted model.

    offset: the dial's logit offset (None: where the model's dial stands); name, budget: for the record. scores: keep
    the routers' soft opinions. base: also run the base, for entropy and surprisal. alternatives: this many of the
    base's likeliest tokens at each position. batch_tokens: tokens of one pass, padding included.

    Not to be used while another thread uses `model.route`. Raises ValueError for a model that is not converted.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        offset: float | None = None,
        name: str = "",
        budget: float | None = None,
        scores: bool = False,
        base: bool = True,
        alternatives: int = 0,
        batch_tokens: int = BATCH_TOKENS,
    ):
        if alternatives and not base:
            raise ValueError("alternatives are the base's; leave them out, or let the base run")
        self.facts = Facts.of(model, name, budget, offset, alternatives)
        self.model, self.route = model, route_of(model)
        self.layers = sorted(method_of(model).layers(self.facts.layers))
        self.scores, self.base, self.batch_tokens = scores, base, batch_tokens
        self._halves = Halves(model, min((site.layer for site in routed(model)), default=0))
        softcap = getattr(model.config, "final_logit_softcapping", None)
        self._reading = BaseReading(head_of(model), softcap, alternatives)
        self._pieces, self._classes = Pieces(tokenizer), TokenClasses(tokenizer)

    def rows(self, texts: Sequence[Text]) -> list[Row]:
        """One row per text, in the order given. Texts of like length share a pass."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
        found: dict[int, Row] = {}
        while order:
            count = 1
            while count < len(order) and (count + 1) * len(texts[order[count]].ids) <= self.batch_tokens:
                count += 1
            batch, order = order[:count], order[count:]
            found |= zip(batch, self._batch([texts[i] for i in batch]), strict=True)
        return [found[i] for i in range(len(texts))]

    @torch.no_grad()
    def _batch(self, texts: Sequence[Text]) -> list[Row]:
        lengths = [len(text.ids) for text in texts]
        # padding stands behind every text, where no token of it can see it
        padded = [[*text.ids, *[0] * (max(lengths) - len(text.ids))] for text in texts]
        ids = torch.tensor(padded, device=self.model.device)
        places = {"position_ids": torch.arange(ids.shape[1], device=ids.device)[None]}
        before, was_training = self.route.offset, self.model.training
        self.model.eval()
        try:
            self.route.offset = math.inf
            lower = self._halves.lower(ids, **places)
            dense = self.facts.offset == math.inf  # then one pass is both
            hidden = self._halves.upper(lower, **places) if self.base or dense else None
            self.route.offset = self.facts.offset
            if not dense:
                self._halves.upper(lower, **places)
            ran, scores = self.route.keep(), self._scores()
        finally:
            self.route.offset = before
            self.model.train(was_training)
        reads = [None] * len(texts) if hidden is None or not self.base else self._read(hidden, ids, lengths)
        return [
            self._row(text, ran[:, b, : len(text.ids)].T, None if scores is None else scores[b, : len(text.ids)], read)
            for b, (text, read) in enumerate(zip(texts, reads, strict=True))
        ]

    def _scores(self) -> Tensor | None:
        """fp16 [B, T, R] of the pass that the route holds: each routed layer's first decision. None without scores."""
        first = {site.layer: d for site, d in sorted(self.route.decisions.items(), reverse=True)}
        opinions = [first[layer].score for layer in self.layers]
        if not self.scores or not opinions or any(score is None for score in opinions):
            return None
        return torch.stack([s for s in opinions if s is not None], -1).half().cpu()

    def _read(self, hidden: Tensor, ids: Tensor, lengths: list[int]) -> list[Expected]:
        real = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
        real = real.to(ids.device)
        read = self._reading(hidden[real], ids.roll(-1, 1)[real])
        return [Expected(*parts) for parts in zip(*(column.split(lengths) for column in read), strict=True)]

    def _row(self, text: Text, ran: Tensor, scores: Tensor | None, read: Expected | None) -> Row:
        """ran: bool [T, L]; scores: fp16 [T, R]."""
        bare = blank_row(text, self._pieces(text.ids), self._classes)
        passes: dict[str, Any] = {
            "ran": (kept := ran.contiguous().numpy()),
            "layers_used": kept.sum(1).astype(np.int16),
            "scores": None if scores is None else scores.numpy(),
        }
        if read is not None:
            surprisal = torch.cat([torch.full((1,), math.nan), read.surprisal[:-1]])
            passes |= {"entropy": read.entropy.numpy(), "surprisal": surprisal.numpy()}
            if self._reading.most:
                passes["alternatives"] = [[], *self._choices(read)[:-1]]
        return Row(**{**vars(bare), **passes})

    def _choices(self, read: Expected) -> list[list[tuple[str, float]]]:
        return [
            [(self._pieces.alone(i), p) for i, p in zip(ids, probabilities, strict=True)]
            for ids, probabilities in zip(read.ids.tolist(), read.probabilities.tolist(), strict=True)
        ]


def blank_row(text: Text, pieces: list[str], classes: TokenClasses) -> Row:
    """A text before any pass: what its tokens are."""
    return Row(
        id=text.id,
        task=text.task,
        group=text.group or text.id,
        forced=text.forced,
        token_ids=np.array(text.ids, np.int32),
        pieces=pieces,
        generated=np.array(text.generated, bool),
        token_class=classes.lexical(text.ids),
        layers_used=np.zeros(len(text.ids), np.int16),
    )


def row_of_output(output: RequestOutput, tokenizer: Any, id: str, task: str = "text", group: str = "") -> Row:
    """What an engine already knows of a text it wrote, without another pass: depths alone. The last token was never
    read: its depth is 0."""
    prompt, answer = output.prompt_token_ids, output.token_ids
    generated = [False] * len(prompt) + [True] * len(answer)
    text = Text([*prompt, *answer], generated, id, task, group)
    # depths[0] is that of the prompt's last token, which prompt_depths holds already
    depths = [*output.prompt_depths, *output.depths[1:]]
    depths += [0] * (len(text.ids) - len(depths))
    bare = blank_row(text, Pieces(tokenizer)(text.ids), TokenClasses(tokenizer))
    return Row(**{**vars(bare), "layers_used": np.array(depths, np.int16)})
