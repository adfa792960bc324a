"""Readouts of the stream as exits: AdaInfer, "Not All Layers of LLMs Are Necessary During Inference" (Fan et
al.; IJCAI 2025), arXiv 2403.02181; with the threshold of CALM, "Confident Adaptive Language Modeling" (Schuster et al.;
NeurIPS 2022), arXiv 2207.07061.

At listed layers l, h: [B, T, d] the stream before them, N and W the base's last norm and its head:

    p = softmax(W N(h));  top = p_(1);  gap = p_(1) - p_(2)           the two highest
    AdaInfer:  exit where  w_top top + w_gap gap + b > 0              (w, b) of the layer's own
    CALM:      exit where  top > threshold

A token that exits goes to the last norm and the head as it is; layers from l on get its keys and values from its exit
state (CALM; AdaInfer's answers have one token). The classifier's label is 1 where argmax p is the full base's, which
asks for no answers. Nothing is trained: the fit is the linear discriminant of the two classes, in closed form.

Ours: p is taken over the head's first `head_rows` only, as a look at the whole head costs eight layers of a model of
135 M, and all tokens that come by pay for it; what is written always comes from the whole head. CALM's threshold is
constant: its decay over the answer is left out. The dial is added to what speaks for going on: -(w . x + b), or
threshold - top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from depthdial.core.decision import Decision
from depthdial.core.lowered import Lowered
from depthdial.core.method import Method, Parts, Probe, Seen
from depthdial.core.ops import Dense, Look
from depthdial.core.program import END, Program, Step
from depthdial.core.tokens import Tokens, Trace


@dataclass(frozen=True)
class Readout(Method):
    """A token leaves at the first listed layer where the model's own readout is sure of itself."""

    reads = frozenset({"logits"})
    example: ClassVar[Mapping[str, object]] = {
        "layers": (2, 4), "head_rows": 100, "classifiers": ((10.0, 5.0, -1.8), (5.0, 10.0, -1.1))
    }  # fmt: skip

    layers: tuple[int, ...] = ()
    """Before which layers a token may leave; () are 2/5, 3/5 and 4/5 of the depth."""
    head_rows: int = 8192
    """Over how many of the head's first rows the probabilities are taken: in a BPE vocabulary the commonest tokens."""
    rule: Literal["adainfer", "calm"] = "adainfer"
    threshold: float = 0.9
    """CALM's, on the top probability."""
    classifiers: tuple[tuple[float, ...], ...] = ()
    """AdaInfer's (w_top, w_gap, b), of each layer; filled by `calibrate`."""

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))  # JSON gives lists
        object.__setattr__(self, "classifiers", tuple(tuple(each) for each in self.classifiers))
        if self.rule not in ("adainfer", "calm"):
            raise ValueError(f"rule must be 'adainfer' or 'calm', not {self.rule!r}")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers must rise, each named once, not {self.layers}")
        if self.head_rows < 2:
            raise ValueError(f"head_rows must be at least 2 for a gap between them, not {self.head_rows}")
        if any(len(each) != 3 for each in self.classifiers):
            raise ValueError("each of the classifiers has three numbers: for the top probability, the gap, and a bias")
        if self.classifiers and len(self.classifiers) != len(self.layers):
            raise ValueError(f"{len(self.classifiers)} classifiers do not fit {len(self.layers)} listed layers")

    def program(self, depth: int) -> Program:
        layers = self._layers(depth)
        if not 0 <= layers[0] <= layers[-1] < depth:
            raise ValueError(f"a readout before layers {layers} does not fit a model of {depth} layers")
        looks = Step(0, routed="skip", otherwise=END, shows=frozenset({"logits"}), head_rows=self.head_rows)
        return Program(tuple(replace(looks, block=k) if k in layers else Step(k) for k in range(depth)))

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        assert seen.logits is not None
        first, second = seen.logits.softmax(-1).topk(2).values.unbind(-1)
        w_top, w_gap, b = self._onward(s)
        logit = tokens.shifted(w_top * first + w_gap * (first - second) + b)
        return Decision.hard(logit > 0, logit.sigmoid())

    def lowered(self, parts: Parts, s: int) -> Lowered:
        w_top, w_gap, b = self._onward(s)
        return Lowered((Look(), Dense(torch.tensor([[w_top, w_gap]]), torch.tensor([b]))))

    def calibrate(self, probe: Probe, report: Callable[[str], None] = lambda _: None) -> Readout:
        if self.rule == "calm" or self.classifiers:
            return self
        layers = self._layers(probe.depth)
        found = []
        for layer, x, right in zip(layers, *probe.readouts(layers, self.head_rows), strict=True):
            found.append(discriminant(x, right))
            report(
                f"layer {layer}: the readout is the base's own token for {float(right.float().mean()):.1%} of tokens"
            )
        return replace(self, layers=layers, classifiers=tuple(found))

    def _layers(self, depth: int) -> tuple[int, ...]:
        return self.layers or tuple(sorted({depth * k // 5 for k in (2, 3, 4)}))

    def _onward(self, layer: int) -> tuple[float, ...]:
        """(w_top, w_gap, b) of what speaks for going on, before a layer, which is step `layer`, too."""
        if self.rule == "calm":
            return -1.0, 0.0, self.threshold
        if not self.classifiers:
            raise ValueError(
                "the readout's classifiers are not fitted yet: calibrate the method, or set rule to 'calm'"
            )
        return tuple(-weight for weight in self.classifiers[self.layers.index(layer)])


def discriminant(x: Tensor, right: Tensor) -> tuple[float, float, float]:
    """Fisher's linear discriminant with the classes' shares as prior: (w_top, w_gap, b), above 0 where `right` is the
    likelier class. x: fp32 [n, 2], top probability and gap; right: bool [n]."""
    x = x.double()
    yes, no = x[right], x[~right]
    prior = float(torch.tensor((len(yes) + 0.5) / (len(no) + 0.5)).log())
    if min(len(yes), len(no)) < 2:
        return 0.0, 0.0, prior
    within = torch.cat([yes - yes.mean(0), no - no.mean(0)])
    scatter = within.T @ within / len(within) + 1e-6 * torch.eye(2, dtype=x.dtype)
    w = torch.linalg.solve(scatter, yes.mean(0) - no.mean(0))
    b = prior - float(w @ (yes.mean(0) + no.mean(0))) / 2
    return float(w[0]), float(w[1]), b
