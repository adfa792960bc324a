"""What a request may ask of generation, and how the next token is drawn.

A draw depends on the logits and on the key (seed, sample, position) alone, never on the batch: the noise is Gumbel's,
one number per vocabulary entry, from a counter-based hash. So a request gives the same text alone and in company.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthdial.core.dial import PromptBudget, prompt_budget
from depthdial.engine.draw import GOLDEN, ROUNDS, SLACK, draw
from depthdial.engine.unknown import refuse_unknown

_OTHER_NAMES = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "num_return_sequences": "n",
    "best_of": "n",
    "do_sample": "temperature",
    "stop_strings": "stop",
    "random_seed": "seed",
}
"""What other libraries call the same."""


@dataclass(frozen=True)
class SamplingParams:
    """How to generate for one prompt. Numbers may be Python's, numpy's or tensors of none dimension.

    Raises ValueError, one line, for a value that makes no sense and for a name that is not known.
    """

    max_tokens: int = 128
    temperature: float | None = None
    """0 is greedy; None is what the model's own generation_config asks for, which is greedy where it asks for nothing.
    So are the next two."""
    top_p: float | None = None
    """Draw from the smallest set of likeliest tokens whose probability reaches this; 1 is all."""
    top_k: int | None = None
    """Draw from this many likeliest tokens; 0 and -1 are all. Applied before `top_p`."""
    seed: int | None = None
    """None draws a fresh one for each request. Seeds are taken modulo 2^64, so that -1 is one like another."""
    stop: str | Sequence[str] | None = None
    """End at the first of these strings; the text is cut before it."""
    ignore_eos: bool = False
    n: int = 1
    """Samples per prompt."""
    logprobs: int | None = None
    """Also return log-probabilities: of the chosen token and of this many likeliest ones, before any temperature."""
    prompt_logprobs: int | None = None
    """Also return those of the prompt's tokens, as it was read, and of this many likeliest in the place of each. Such a
    prompt runs in full, and takes nothing from the prefix cache."""
    budget: float | None = None
    """True cost of what is written, relative to dense, in place of the budget of the `LLM`; 1.0 is the untouched
    base."""
    prompt_budget: PromptBudget | None = None
    """True cost of what is read in place of that of the `LLM`: 1.0 is the untouched base, "same" as `budget`."""
    lossless: bool = False
    """The untouched base's own text, token for token, with drafts (of the plug-in, or found in the text) to speed it up
    where they pay. The same as `budget=1.0`, sooner. On a GPU, and where PyTorch runs the passes, a pass of other size
    may round another way, so it holds up to such ties there."""
    draft_budget: float | None = None
    """With `lossless`: true cost of the plug-in's drafts; None is the budget of the `LLM`, 1.0 drafts from the text
    alone."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that it was written; -2 to 2. Negative ones make it likelier."""
    presence_penalty: float = 0.0
    """Taken once from the logit of each token that was written; -2 to 2."""
    repetition_penalty: float = 1.0
    """Logits of tokens that the prompt or the text has are divided by this where positive, else multiplied by it."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of these tokens."""
    min_p: float = 0.0
    """Draw from tokens of at least this share of the likeliest one's probability. Applied before `top_k`."""
    min_tokens: int = 0
    """No end token before so many are written. A stop string ends the text all the same."""

    def __new__(cls, *_args: Any, **names: Any):
        refuse_unknown("SamplingParams", [field.name for field in fields(cls)], names, _OTHER_NAMES)
        return super().__new__(cls)

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        _whole("max_tokens", self.max_tokens, least=1)
        if self.top_k is not None:
            _whole("top_k", self.top_k, least=-1)
            object.__setattr__(self, "top_k", max(self.top_k, 0))
        _whole("n", self.n, least=1)
        for name in ("logprobs", "prompt_logprobs"):
            if (count := getattr(self, name)) is not None:
                _whole(name, count, least=0)
        if self.seed is not None:
            _whole("seed", self.seed, least=-(2**63))
        for name in ("ignore_eos", "lossless"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.temperature is not None and (not _finite(self.temperature) or self.temperature < 0):
            raise ValueError(f"temperature must be a number of at least 0 (0 is greedy), not {self.temperature!r}")
        if self.top_p is not None and (not _finite(self.top_p) or not 0 < self.top_p <= 1):
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p!r}")
        if self.budget is not None and (not _finite(self.budget) or not 0 < self.budget <= 1):
            raise ValueError(f"budget must be above 0 and at most 1.0 (the untouched base), not {self.budget!r}")
        if not isinstance(self.stop, str | Iterable | None) or any(not isinstance(s, str) or not s for s in self.stops):
            raise ValueError(f"stop must be one or several non-empty strings, not {self.stop!r}")
        if self.prompt_budget is not None:
            object.__setattr__(self, "prompt_budget", prompt_budget(self.prompt_budget))
        if self.lossless and self.prompt_budget not in (None, 1.0, "same"):
            raise ValueError(
                f"lossless text is the untouched base's, which reads its prompt in full: prompt_budget is 1.0, not "
                f"{self.prompt_budget!r}"
            )
        draft = self.draft_budget
        if draft is not None and (not _finite(draft) or not 0 < draft <= 1):
            raise ValueError(
                f"draft_budget must be above 0 and at most 1.0 (drafts from the text alone), not {draft!r}"
            )
        if draft is not None and not self.lossless:
            raise ValueError("draft_budget is for lossless=True; budget sets what the text itself may cost")
        if self.lossless and self.budget not in (None, 1.0):
            raise ValueError(
                f"lossless text is the untouched base's and has budget 1.0, not {self.budget!r}; "
                "draft_budget sets what drafts may cost"
            )
        self._check_adjustments()

    def _check_adjustments(self) -> None:
        _whole("min_tokens", self.min_tokens, least=0)
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, and max_tokens only {self.max_tokens}; lower the first")
        for name in ("frequency_penalty", "presence_penalty"):
            if not _finite(value := getattr(self, name)) or not -2 <= value <= 2:
                raise ValueError(f"{name} must be a number from -2 to 2, not {value!r}")
        if not _finite(self.repetition_penalty) or not 0 < self.repetition_penalty <= 100:
            raise ValueError(
                f"repetition_penalty must be above 0 and at most 100 (1 is none), not {self.repetition_penalty!r}"
            )
        if not _finite(self.min_p) or not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be from 0 to 1, not {self.min_p!r}")
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"logit_bias must be numbers by token, not {self.logit_bias!r}")
        for token, value in self.logit_bias.items():
            if not isinstance(token, int) or isinstance(token, bool) or token < 0:
                raise ValueError(f"logit_bias has token {token!r}; tokens are whole numbers from 0")
            if not _finite(value) or not -100 <= value <= 100:
                raise ValueError(f"logit_bias of token {token} must be a number from -100 to 100, not {value!r}")

    @property
    def adjusts(self) -> bool:
        """Does it change logits (`adjust`)? Where not, greedy tokens need no logits outside the kernels."""
        drawn_from = bool(self.min_p and self.temperature)
        return (
            drawn_from
            or self.repetition_penalty != 1
            or any((self.frequency_penalty, self.presence_penalty, self.logit_bias, self.min_tokens))
        )

    @property
    def truncation(self) -> tuple[int, float]:
        """`top_k` and `top_p` as numbers: 0 and 1.0, which are all tokens, where they are None."""
        return self.top_k or 0, 1.0 if self.top_p is None else self.top_p

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def _plain(value: Any) -> Any:
    """A number as Python's own; what an iterator gives as a tuple, since it gives it once."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 0):
        return value.item()
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, Sequence | Mapping) else value


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def choose(logits: Tensor, params: Sequence[SamplingParams], keys: Sequence[int]) -> Tensor:
    """The next token of each row, int64 [rows]. logits: [rows, vocabulary]; keys: one `draw_key` per row.

    Greedy rows cost one argmax together; each drawn one is handled on its own: no row can depend on its neighbours.
    """
    tokens = logits.argmax(-1)
    for i, (p, key) in enumerate(zip(params, keys, strict=True)):
        if p.temperature and logits.is_cpu:
            tokens[i] = draw(logits[i].float().numpy(), p.temperature, *p.truncation, key)
        elif p.temperature:
            tokens[i] = drawn(logits[i], p, key)
    return tokens


def drawn(logits: Tensor, params: SamplingParams, key: int) -> Tensor:
    """The token drawn, int64 []. logits: [vocabulary]. What `draw` means, and what a GPU runs."""
    assert params.temperature, "greedy draws nothing"
    scores, (top_k, top_p) = logits.float() / params.temperature, params.truncation
    best = scores.max()
    if top_k or top_p < 1:
        scores = _truncate(scores, top_k or scores.numel(), top_p)
    # Gumbel's trick: argmax(log p + noise) is distributed as p. A small change of p rarely changes the argmax.
    noisy = scores.double() - (-uniform(key, scores.numel(), scores.device).log()).log()
    return torch.where(best.isfinite(), noisy.argmax(), logits.argmax())


def _truncate(scores: Tensor, top_k: int, top_p: float) -> Tensor:
    """Scores [vocabulary] with -inf outside the `top_k` likeliest and outside the nucleus of `top_p` among those."""
    ordered, order = scores.sort(descending=True, stable=True)
    ordered[top_k:] = -math.inf
    probability = ordered.double().softmax(-1)
    # what stands before already reaches top_p
    ordered[probability.cumsum(-1) - probability >= (top_p * SLACK if top_p < 1 else 1.0)] = -math.inf
    return torch.empty_like(scores).scatter_(0, order, ordered)


def logprobs_of(logits: Tensor, token: int, count: int) -> dict[int, float]:
    """Log-probabilities of the chosen token and of the `count` likeliest, likeliest first. logits: [vocabulary]."""
    logprob = logits.float().log_softmax(-1)
    ids = logprob.topk(min(count, logprob.numel())).indices.tolist()
    return {i: float(logprob[i]) for i in [*ids, *([token] if token not in ids else [])]}


def draw_key(seed: int, sample: int, position: int) -> int:
    """The 64-bit key of one draw. sample: which of the `n`; position: place of the drawn token in its sequence."""
    key = 0
    for word in (seed, sample, position):
        key = _mix((key ^ (word % (1 << 64))) + GOLDEN)
    return key


def uniform(key: int, count: int, device: torch.device) -> Tensor:
    """`count` numbers in (0, 1) for one key, fp64: the SplitMix64 generator (Steele, Lea, Flood 2014) started there."""
    start = key - (1 << 64) if key >> 63 else key  # int64 wraps around as the algorithm wants
    steps = torch.arange(1, count + 1, device=device, dtype=torch.int64)
    word = start + steps * (GOLDEN - (1 << 64))
    for shift, factor in ROUNDS:
        word = (word ^ _shift(word, shift)) * (factor - (1 << 64))
    word = word ^ _shift(word, 31)
    return (_shift(word, 12).double() + 0.5) * 2.0**-52


def _shift(word: Tensor, by: int) -> Tensor:
    return (word >> by) & ((1 << (64 - by)) - 1)  # torch shifts int64 arithmetically; the mask drops the sign


def _mix(word: int) -> int:
    """SplitMix64's finaliser on a Python integer."""
    word %= 1 << 64
    for shift, factor in ROUNDS:
        word = (word ^ (word >> shift)) * factor % (1 << 64)
    return word ^ (word >> 31)
