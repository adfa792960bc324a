"""What is measured: something that reads prompts and writes tokens greedily. Here: our own engine, in all its rows."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from depthdial.core.dial import PromptBudget
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.request import Row

Kind = Literal["baseline", "dense", "adaptive", "control", "lossless", "peer"]


@dataclass(frozen=True)
class Regime:
    """One way of running: `batch` texts whose prompts have `prompt` tokens at most, continued by `new_tokens`."""

    kind: Literal["decode", "prefill"]
    batch: int
    prompt: int
    new_tokens: int

    @property
    def name(self) -> str:
        return f"decode, batch {self.batch}" if self.kind == "decode" else f"prefill {self.prompt}"


class TextRun(NamedTuple):
    """What one text went through in a run."""

    tokens: list[int]
    """The prompt, and what followed as far as it was run."""
    prompt: int
    """How many of them are the prompt."""
    start: int
    """Place of the first token of the timed steps."""
    costs: list[float]
    """True cost of each token relative to dense."""
    offsets: list[float]
    """Where the dial stood for each of them."""


class TimedRun(NamedTuple):
    """One run: seconds until every text had its first token, and seconds of what followed while all of them went on."""

    first: float
    rest: float
    tokens: int
    """Tokens that all texts together got in `rest`."""
    steps: int
    """Passes in `rest`; each gave every text a token, where nothing was drafted."""
    ran: tuple[TextRun, ...] = ()
    """Only of engines that tell costs."""

    def rate(self, regime: Regime) -> float:
        """Tokens per second: of all prompts, or of all texts that decode."""
        if regime.kind == "prefill":
            return regime.batch * regime.prompt / max(self.first, 1e-12)
        return self.tokens / max(self.rest, 1e-12)

    def cost(self, regime: Regime) -> float | None:
        """Mean true cost of the tokens that were timed; None where it is not told."""
        costs: list[float] = []
        for ran in self.ran:
            costs += ran.costs[: ran.prompt] if regime.kind == "prefill" else ran.costs[ran.start :]
        return sum(costs) / len(costs) if costs else None


def title(name: str, budget: float | None, prompt: PromptBudget | None, precision: str) -> str:
    """What a row is called."""
    cost = "" if budget is None else f" {budget:.3g}"
    form = "" if prompt is None else ", prompt skips too" if prompt == "same" else ", prompt read in full"
    if isinstance(prompt, float) and prompt < 1:
        form = f", prompt read at {prompt:.3g}"
    return f"{name}{cost}{form}, {precision}"


class SpeedSubject(ABC):
    """One row of the table. `name` and `precision` together name it."""

    name: str
    kind: Kind
    precision: str
    budget: float | None = None
    """The true cost that was asked for; None where there is no such thing, or any will do."""
    prompt_budget: PromptBudget | None = None
    """That of what is read, where the row is about that."""
    stop: float | None = None
    """The mean true cost of the dial's stop that is taken for it, where the dial has stops."""
    warmups: int = 1
    optional: bool = False
    """May it be missing from the table, its reason told there?"""

    @property
    def title(self) -> str:
        return title(self.name, self.budget, self.prompt_budget, self.precision)

    def takes(self, regime: Regime) -> bool:
        """Is this regime measured here at all?"""
        return True

    @abstractmethod
    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> TimedRun:
        """Continue the prompts by as many tokens, greedily, ends of text ignored."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what it holds."""


class EngineSubject(SpeedSubject):
    """Our engine at one budget. llm: may be shared; its prefix cache must be off, or prompts are read only once. kinds:
    of the regimes it is measured in. A row of prefill that is no dense one says how its prompts are read."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        llm: LLM,
        params: SamplingParams,
        precision: str,
        clock: Callable[[], float] = time.perf_counter,
        kinds: tuple[str, ...] = ("decode", "prefill"),
    ):
        self.name, self.kind, self.llm, self.precision = name, kind, llm, precision
        self.params, self._clock, self.kinds = params, clock, kinds
        if kind in ("adaptive", "control"):
            self.prompt_budget = params.prompt_budget if kinds == ("prefill",) else None
            # what a prompt costs that is read at a number does not hang on what is written after it
            self.budget = None if isinstance(self.prompt_budget, float) else params.budget
            self.stop = None if self.budget is None else llm.stop_of(self.budget)

    def takes(self, regime: Regime) -> bool:
        return regime.kind in self.kinds

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> TimedRun:
        params = replace(self.params, max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        llm, requests = self.llm, []
        start = self._clock()
        try:
            requests = [llm.submit(prompt, params) for prompt in prompts]
            rows = [request.rows[0] for request in requests]
            while not all(row.token_ids for row in rows):
                self._step(rows)
            middle, lengths, steps = self._clock(), [row.length for row in rows], 0
            while not any(row.finish_reason for row in rows):
                self._step(rows)
                steps += 1
            end, tokens = self._clock(), sum(row.length for row in rows) - sum(lengths)
        finally:
            for request in requests:
                llm.cancel(request)
        if new_tokens > 1 and not steps:
            raise ValueError(
                f"{new_tokens} new tokens are too few for {len(rows)} texts at once: the first was done before the "
                "last had begun; raise --new-tokens"
            )
        ran = tuple(map(self._ran, rows, lengths, prompts))
        return TimedRun(middle - start, end - middle, tokens, steps, ran)

    def _ran(self, row: Row, length: int, prompt: Sequence[int]) -> TextRun:
        """length: tokens it had when the timed steps began."""
        count = len(row.tokens) - 1
        offsets = [row.offset(place) for place in range(count)]
        return TextRun(row.tokens[:-1], len(prompt), length - 1, row.ran_costs[:count], offsets)

    def _step(self, rows: Sequence[Row]) -> None:
        self.llm.engine.step()
        if error := next((row.error for row in rows if row.error), None):
            raise RuntimeError(error)
