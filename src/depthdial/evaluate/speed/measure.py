"""Interleaved repeats: each repeat runs everything once, in another order, so that a slow minute hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from depthdial.evaluate.speed.limits import MachineLimits
from depthdial.evaluate.speed.subjects import Regime, SpeedSubject, TimedRun

Prompts = Sequence[Sequence[int]]


@dataclass
class RegimeRuns:
    """All runs of one regime."""

    regime: Regime
    runs: dict[str, list[TimedRun]] = field(default_factory=dict)
    """By title of the subject, one for each repeat."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why an optional subject gave nothing."""
    limits: MachineLimits | None = None
    """Measured between the repeats; the median."""

    def rates(self, title: str) -> list[float]:
        """Tokens per second in each repeat: of all prompts, or of all texts that decode."""
        return [run.rate(self.regime) for run in self.runs[title]]

    def ratio(self, title: str, to: str) -> float:
        """How many times as fast as another subject, the median over the repeats."""
        pairs = zip(self.rates(title), self.rates(to), strict=True)
        return median(one / other for one, other in pairs)


def run_interleaved(
    subjects: Sequence[SpeedSubject],
    prompts: Prompts,
    regime: Regime,
    repeats: int,
    gauge: Callable[[], MachineLimits] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> RegimeRuns:
    """Warm every subject up, then run all of them `repeats` times. advance: called after each run.

    An optional subject that fails leaves its reason in `missing`; any other error goes up.
    """
    result, active = RegimeRuns(regime), []
    for subject in subjects:
        if not subject.takes(regime):
            continue
        try:
            for _ in range(subject.warmups):
                subject.run(prompts, regime.new_tokens)
                advance()
        except Exception as error:  # a library of others may raise anything
            if not subject.optional:
                raise
            result.missing[subject.title] = " ".join(str(error).split())[:200] or type(error).__name__
        else:
            active.append(subject)
    rounds = []
    for repeat in range(repeats):
        turn = repeat % max(len(active), 1)
        for subject in [*active[turn:], *active[:turn]]:
            result.runs.setdefault(subject.title, []).append(subject.run(prompts, regime.new_tokens))
            advance()
        if gauge is not None:
            rounds.append(gauge())
    result.limits = MachineLimits.median(rounds) if rounds else None
    return result


def spread(values: Sequence[float]) -> Mapping[str, float]:
    """Median, lowest and highest."""
    return {"median": median(values), "low": min(values), "high": max(values)}
