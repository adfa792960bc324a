"""What is known of the tokens of a pass before it begins, and what came of it.

`Tokens` is set once and never changes; `Trace` is an output and never read for settings. Cost, depth, maps and losses
are functions of the two. Both are flat: the N tokens of any rows, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from depthdial.core.decision import Decision
from depthdial.core.program import Program


@dataclass(frozen=True)
class Tokens:
    """N tokens of any rows, each with its place and its dial."""

    offset: Tensor
    """fp32 [N]: the dial, added to every router's logit; `inf` is the untouched base."""
    position: Tensor
    """int64 [N]: place in its document."""
    id: Tensor | None = None
    """int64 [N]; None where the pass is given embeddings instead."""
    prompt: Tensor | None = None
    """int64 [N]: the position at which what is *written* begins in the token's text; None: all is written."""
    real: Tensor | None = None
    """bool [N]: False at padding; None where nothing is padded."""
    key: Tensor | None = None
    """int64 [N]: of its row's random choices; only in training, so that a row draws the same in any batch."""
    shape: tuple[int, int] | None = None
    """(rows, length) where all rows have the same length, N = rows * length; None in the engine."""
    training: bool = False
    progress: float = 0.0
    """How far training is, 0 to 1: a method may leave less to chance towards its end."""
    density: Mapping[int, Tensor] | None = None
    """fp32 scalars: the share of tokens that ran each step over a pass on all processes, from whoever trains on
    several; None where a loss is to look at this pass alone."""
    loss: Tensor | None = None
    """fp32 [N], without a graph: what came of each token, from whoever trains; None where nobody says."""

    @property
    def count(self) -> int:
        return self.offset.shape[0]

    @property
    def full(self) -> Tensor:
        """bool [N]: which tokens run the untouched base."""
        return self.offset == math.inf

    @property
    def answer(self) -> Tensor:
        """int64 [N]: place within what is written, 0 for its first token; below 0 in a prompt."""
        return self.position if self.prompt is None else self.position - self.prompt

    def shifted(self, logit: Tensor) -> Tensor:
        """A router's logits [N] with the dial's offsets added (README, "What the budget means"), fp32."""
        return logit.float() + self.offset

    def rows(self, values: Tensor) -> Tensor:
        """Values [N] as [rows, length]. ValueError where rows have different lengths, as in the engine."""
        if self.shape is None:
            raise ValueError(
                "this decision compares the tokens of whole rows, which a pass of the engine does not hold"
            )
        return values.view(self.shape)

    def __getitem__(self, index: Tensor) -> Tokens:
        """Some of them. index: int64 [n] or bool [N]."""
        some = {f.name: getattr(self, f.name)[index] for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **some, shape=None)


@dataclass
class Trace:
    """What the steps of one pass did. Each step is written once, in the order of the program."""

    program: Program
    decisions: dict[int, Decision] = field(default_factory=dict)
    """By step, of all N tokens; `keep` is False, and weights are 0, for a token that does not wait there."""
    here: dict[int, Tensor] = field(default_factory=dict)
    """bool [N], by step: the tokens that waited there. A step that is not named: all of them."""

    def ran(self, s: int) -> Tensor | None:
        """bool [N]: the tokens that ran a step; None: all of them."""
        return self.decisions[s].keep if s in self.decisions else self.here.get(s)

    def stack(self, name: str, unit: str | None = None) -> Tensor:
        """One field of the decisions at all routed steps, or at those of one unit, in order: [steps, N].

        ValueError where there are none.
        """
        chosen = [
            getattr(self.decisions[s], name)
            for s in sorted(self.decisions)
            if unit is None or self.program.steps[s].unit == unit
        ]
        if not chosen:
            raise ValueError(f"no decision at any {unit or 'step'!r} in this pass; run the model forward first")
        return torch.stack(chosen)

    def density(self, tokens: Tokens, unit: str) -> Tensor | None:
        """`tokens.density` in the order of `stack`, fp32 [steps]; None where nobody has set it."""
        if tokens.density is None:
            return None
        steps = (s for s in sorted(self.decisions) if self.program.steps[s].unit == unit)
        return torch.stack([tokens.density[s] for s in steps])

    def keep(self, like: Tensor, unit: str | None = None) -> Tensor:
        """bool [visits, N]: which visits ran for each token; one counts when any of its units ran. unit: "attn" or
        "mlp": where that unit ran. like: any tensor [N], for its device."""
        every = torch.ones(like.shape[0], dtype=torch.bool, device=like.device)
        visits = []
        for visit in self.program.visits:
            ran = []
            for s in visit.steps:
                if unit in (None, self.program.steps[s].unit) or self.program.steps[s].unit == "layer":
                    kept = self.ran(s)
                    ran.append(every if kept is None else kept.to(like.device))
            visits.append(ran[0] if len(ran) == 1 else ran[0] | ran[1])
        return torch.stack(visits)

    def __getitem__(self, index: Tensor) -> Trace:
        """Of some tokens. index: int64 [n] or bool [N]."""
        return Trace(
            self.program,
            {s: decision[index] for s, decision in self.decisions.items()},
            {s: here[index] for s, here in self.here.items()},
        )
