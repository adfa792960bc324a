"""Run folders of `depthdial pretrain` to figures by kind of run: the mean over seeds, and paired differences from a
baseline with their interval."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from depthdial.evaluate.markdown import markdown

RESULTS, METRICS = "results.json", "metrics.jsonl"
FIELDS = (
    "loss",
    "density",
    "density_per_layer",
    "layers",
    "cost",
    "macs_per_token",
    "tokens",
    "tokens_per_second",
    "seed",
    "size",
    "method",
)


@dataclass(frozen=True)
class Run:
    """One finished run. name: of its folder; group: the name without its seed."""

    name: str
    group: str
    results: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`, themselves runs or folders of runs, in the order given. Raises ValueError, one line, for a
    folder without a finished run, or for results that are not ours."""
    runs = []
    for folder in folders:
        inside = [folder] if (folder / RESULTS).is_file() else sorted(p.parent for p in folder.glob(f"*/{RESULTS}"))
        if not inside:
            raise ValueError(f"{folder}: no finished run (no {RESULTS}); finish it with depthdial pretrain --resume")
        runs += [_run(path) for path in inside]
    if twice := sorted({run.name for run in runs if sum(run.name == other.name for other in runs) > 1}):
        raise ValueError(f"two runs are called {twice[0]}; rename one of their folders")
    return runs


def compare(runs: Sequence[Run], baseline: str) -> list[dict[str, Any]]:
    """One entry per group, in the order of the runs: means over seeds, and the difference in held-out loss from the
    baseline's run of the same seed with half the width of its 95 % interval (None for fewer than two pairs). Raises
    ValueError for a baseline that is not there, runs of one group that differ in more than their seed, and runs that
    saw other numbers of tokens than the baseline's."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    if baseline not in groups:
        raise ValueError(f"no run is called {baseline!r}; --baseline must be one of {', '.join(groups)}")
    for name, members in groups.items():
        for same, of in (("size", members), ("method", members), ("tokens", [*groups[baseline], *members])):
            if len({run.results[same] for run in of}) > 1:
                raise ValueError(f"runs called {name} differ in {same}; compare like runs only: name the folders")
    base = {run.results["seed"]: run.results["loss"] for run in groups[baseline]}
    entries = []
    for name, members in groups.items():
        results = [run.results for run in members]
        mean = {key: fmean(r[key] for r in results) for key in ("loss", "density", "layers", "tokens_per_second")}
        pairs = [r["loss"] - base[r["seed"]] for r in results if r["seed"] in base] if name != baseline else []
        entries.append(
            {
                "group": name,
                "runs": [run.name for run in members],
                "size": results[0]["size"],
                "method": results[0]["method"],
                **mean,
                "loss_half_width": half_width([r["loss"] for r in results]),
                "difference": fmean(pairs) if pairs else None,
                "difference_half_width": half_width(pairs),
                "macs_per_token": fmean(r["cost"] * r["macs_per_token"] for r in results),
                "tokens": results[0]["tokens"],
                "target": results[0].get("target"),
                "density_per_layer": [fmean(column) for column in zip(*_layers(results), strict=True)],
                "parameters": results[0].get("parameters"),
                "seconds": fmean(r["seconds"] for r in results) if all("seconds" in r for r in results) else None,
                "mfu": fmean(r["mfu"] for r in results) if all("mfu" in r for r in results) else None,
            }
        )
    return entries


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the mean's 95 % interval (Student's t); None for fewer than two values."""
    if len(values) < 2:
        return None
    return student(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def student(freedom: int, share: float = 0.95) -> float:
    """The two-sided quantile of Student's t: its absolute value stays below this with probability `share`. By bisection
    of Abramowitz and Stegun 26.7.3 and 26.7.4, which are sums of `freedom` / 2 terms."""

    def inside(t: float) -> float:
        sine, square = t / math.sqrt(freedom + t * t), freedom / (freedom + t * t)
        odd = freedom % 2
        term = total = math.sqrt(square) if odd else 1.0
        if freedom == 1:
            total = 0.0
        for k in range(2 + odd, freedom - 1, 2):
            term *= square * (k - 1) / k
            total += term
        return (math.atan(t / math.sqrt(freedom)) + sine * total) * 2 / math.pi if odd else sine * total

    low, high = 0.0, 1.0
    while inside(high) < share:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < share else (low, middle)
    return (low + high) / 2


def runs_table(groups: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Markdown: one line per group."""
    head = ["run", "size", "seeds", "held-out loss", f"less {baseline}", f"true MACs/token (x {baseline})",
            "layers executed", "density (target)", "tokens", "tokens/s", "MFU"]  # fmt: skip
    least = next(g["macs_per_token"] for g in groups if g["group"] == baseline)
    rows = [
        [
            g["group"],
            g["size"],
            len(g["runs"]),
            _spread(g["loss"], g["loss_half_width"]),
            "–" if g["difference"] is None else _spread(g["difference"], g["difference_half_width"], "+"),
            f"{g['macs_per_token'] / 1e6:.3f} M ({g['macs_per_token'] / least:.3f})",
            f"{g['layers']:.2f} of {len(g['density_per_layer'])}",
            f"{g['density']:.3f}" + ("" if g["target"] is None else f" ({g['target']:g})"),
            f"{g['tokens'] / 1e6:.1f} M",
            f"{g['tokens_per_second']:.0f}",
            "–" if g["mfu"] is None else f"{g['mfu']:.2f}",
        ]
        for g in groups
    ]
    return markdown(head, rows)


def _run(folder: Path) -> Run:
    try:
        results = json.loads((folder / RESULTS).read_text())
        lines = (folder / METRICS).read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
        missing = [name for name in FIELDS if name not in results]
    except (OSError, ValueError, TypeError):
        raise ValueError(f"{folder}: {RESULTS} or {METRICS} cannot be read; run depthdial pretrain again") from None
    if missing:
        raise ValueError(f"{folder}: {RESULTS} lacks {', '.join(missing)}; it is not of a pre-training run")
    name = folder.resolve().name
    group, _, last = name.rpartition("-")
    has_seed = group and last in (f"seed{results['seed']}", f"s{results['seed']}")
    return Run(name, group if has_seed else name, results, metrics)


def _layers(results: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    return [list(r["density_per_layer"]) for r in results]


def _spread(value: float, half: float | None, sign: str = "") -> str:
    return f"{value:{sign}.4f}" + ("" if half is None else f" ±{half:.4f}")
