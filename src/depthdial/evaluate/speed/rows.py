"""From runs to rows of the table: speed, true cost, ratio to our dense engine, and the ideal of what was routed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from depthdial.core.cost import Ledger
from depthdial.core.work import Path, Sizes, work
from depthdial.evaluate.speed.ideal import bound, ideal_speedup, seconds
from depthdial.evaluate.speed.limits import MachineLimits
from depthdial.evaluate.speed.measure import RegimeRuns, spread
from depthdial.evaluate.speed.routes import decode_passes, paths, prefill_pass
from depthdial.evaluate.speed.subjects import EngineSubject, Regime, SpeedSubject, TimedRun
from depthdial.models.converted import converted_of

Figures = dict[str, Any]
_LIKE = {"q8_0": "int8"}
"""Our precision that reads about as many bytes as a peer's."""


@dataclass(frozen=True)
class Reference:
    """The dense reference that a subject's routes are asked of, and the sizes of its numbers.

    A model of its own where the engine took the weights of the measured one apart.
    """

    model: Any
    sizes: Sizes

    @property
    def ledger(self) -> Ledger:
        return converted_of(self.model).ledger

    def passes(self, run: TimedRun, regime: Regime) -> list[Path]:
        """The passes that were timed, with the layers that each token had to run."""
        first = 0 if regime.kind == "prefill" else min(ran.start for ran in run.ran)
        routed = any(offset != float("inf") for ran in run.ran for offset in ran.offsets[first:])
        lengths = [ran.prompt if regime.kind == "prefill" else len(ran.tokens) for ran in run.ran]
        texts = [ran.tokens[:length] for ran, length in zip(run.ran, lengths, strict=True)]
        dials = [ran.offsets[:length] for ran, length in zip(run.ran, lengths, strict=True)]
        ways = paths(self.model, texts, dials, [ran.prompt for ran in run.ran])
        if regime.kind == "prefill":
            return prefill_pass(ways, routed)
        return decode_passes(ways, [ran.start for ran in run.ran], run.steps, routed)


def speed_rows(
    runs: RegimeRuns, subjects: Sequence[SpeedSubject], references: Mapping[str, Reference], dense: Mapping[str, str]
) -> list[Figures]:
    """One row for each subject, as JSON has it. references: by title, for those whose ideal is known; dense: the title
    of the dense engine that each precision is compared with."""
    rows, regime = [], runs.regime
    for subject in subjects:
        row: Figures = {
            "regime": regime.kind,
            "batch": regime.batch,
            "prompt_tokens": regime.prompt,
            "new_tokens": regime.new_tokens,
            "name": subject.name,
            "kind": subject.kind,
            "precision": subject.precision,
            "budget": subject.budget,
            "prompt_budget": subject.prompt_budget,
        }
        if (reason := runs.missing.get(subject.title)) is not None:
            rows.append({**row, "missing": reason})
        elif subject.title in runs.runs:
            first = next(iter(dense.values()))
            title = dense.get(_LIKE.get(subject.precision, subject.precision)) or first
            title = first if subject.kind == "dense" else title
            rows.append({**row, **_figures(runs, subject, references, title, first)})
    return rows


def _figures(
    results: RegimeRuns, subject: SpeedSubject, references: Mapping[str, Reference], dense: str, main: str
) -> Figures:
    """dense, main: titles of the dense engines that the row is compared with, and of the one that all are."""
    reference = references.get(subject.title)
    regime, runs, rates = results.regime, results.runs[subject.title], results.rates(subject.title)
    figures: Figures = {
        "first_token_seconds": spread([run.first for run in runs]),
        "tokens_per_second": spread(rates),
        "repeats": rates,
        "speedup": results.ratio(subject.title, dense),
        "speedup_over": dense,
        "times_dense": results.ratio(subject.title, main),
        "cost": runs[-1].cost(regime),
        "stop": subject.stop,
    }
    if reference is None or results.limits is None or not isinstance(subject, EngineSubject):
        return figures
    passes = reference.passes(runs[-1], regime)
    against = references[dense].sizes if dense in references else reference.sizes
    return figures | _ideal(reference, passes, results.limits, figures, regime, against)


def _ideal(
    reference: Reference, passes: list[Path], limits: MachineLimits, figures: Figures, regime: Regime, against: Sizes
) -> Figures:
    """against: sizes of the dense engine that the row is compared with."""
    ledger, sizes = reference.ledger, reference.sizes
    tokens = regime.batch * (regime.prompt if regime.kind == "prefill" else len(passes))
    limit = tokens / seconds(ledger, passes, sizes, limits)
    ideal = ideal_speedup(ledger, passes, sizes, limits, against)
    one = work(ledger, passes[0], sizes)
    return {
        "limit_tokens_per_second": limit,
        "of_limit": figures["tokens_per_second"]["median"] / limit,
        "bound": bound(one, limits),
        "ideal_speedup": ideal,
        "of_ideal": figures["speedup"] / ideal,
        "layers": sum(p.visits(ledger.program) for p in passes) / sum(p.positions.numel() for p in passes),
    }
