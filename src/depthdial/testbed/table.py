"""Results of a run to judgements: one value for JSON, and tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from depthdial.evaluate.markdown import markdown
from depthdial.evaluate.runs import half_width
from depthdial.testbed.judges import Answers, by_k, correlations, deepest_third, measured_needs, realised
from depthdial.testbed.run import SETTINGS, TestbedConfig, result_of, unfolded
from depthdial.testbed.tasks import FILLER, HOP, KINDS

Value = dict[str, float | None]
"""A mean over seeds, and half the width of its 95 % interval (None for fewer than two seeds)."""


def is_run(folder: Path) -> bool:
    """Does a folder hold a run of the testbed?"""
    return (folder / SETTINGS).is_file()


def judged(folder: Path) -> dict[str, Any]:
    """All judgements of a run, finished or not: of the models whose results are there. Raises ValueError, one line,
    where none of the dense ladders is whole."""
    try:
        config = TestbedConfig(**json.loads((folder / SETTINGS).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder}: {SETTINGS} cannot be read ({error}); run depthdial testbed again") from None
    depths = range(1, config.recipe.spec.layers + 1)
    ladders = {seed: [result_of(folder, f"dense {n}", seed) for n in depths] for seed in config.seeds}
    whole: dict[int, list[dict[str, Any]]] = {}
    for seed, rungs in ladders.items():
        kept = [rung for rung in rungs if rung is not None]
        if len(kept) == len(rungs):
            whole[seed] = kept
    if not whole:
        raise ValueError(f"{folder}: no seed has all its dense models yet; add --resume to go on with the run")
    answers = {seed: [unfolded(rung["counts"]) for rung in rungs] for seed, rungs in whole.items()}
    dense = {n: [by_k(answers[seed][n - 1]) for seed in whole] for n in depths}
    need, kind = measured_needs(dense), KINDS[config.world.kinds[0]]
    told: dict[str, Any] = {
        "what": "a testbed run",
        "settings": json.loads((folder / SETTINGS).read_text("utf-8")),
        "need": need,
        "dense": {
            n: {
                "cost": whole[next(iter(whole))][n - 1]["cost"],
                "accuracy": {k: _value([seed[kind][k]["accuracy"] for seed in dense[n]]) for k in dense[n][0][kind]},
            }
            for n in depths
        },
        "methods": {},
    }
    for name in config.methods:
        found = {seed: result for seed in whole if (result := result_of(folder, name, seed)) is not None}
        if found:
            told["methods"][name] = _method(found, whole, answers, need, len(depths), kind)
    return told


def _method(
    found: Mapping[int, Mapping[str, Any]], whole: Mapping[int, Sequence[Mapping[str, Any]]],
    answers: Mapping[int, Sequence[Answers]], need: Mapping[str, Mapping[int, int]], layers: int, kind: str,
) -> dict[str, Any]:  # fmt: skip
    """Judgements of one method. found: its results by seed; whole, answers: of the dense ladder."""
    each: list[dict[str, Any]] = []
    for seed, result in found.items():
        own = unfolded(result["counts"])
        ks, levels = by_k(own)[kind], needs_of(own, need)
        rungs = [by_k(rung)[kind] for rung in answers[seed]]
        # the shallowest dense model that costs as much, or the deepest where none does
        equal = next((n for n, rung in enumerate(whole[seed]) if rung["cost"] >= result["cost"]), layers - 1)
        right = float(own.right[own.kind != FILLER].mean())
        full = answers[seed][-1]
        each.append(
            {
                "seed": seed,
                "cost": result["cost"],
                "accuracy": right,
                "less_full": right - float(full.right[full.kind != FILLER].mean()),
                "worst_less_full": min(ks[k]["accuracy"] - rungs[-1][k]["accuracy"] for k in ks),
                "deepest_third": deepest_third(ks),
                "equal_dense": equal + 1,
                "more_than_equal": deepest_third(ks) - deepest_third(rungs[equal]),
                "realised": realised(own, levels, layers),
                **{f"rank_{over}": value for over, value in correlations(own, levels).items()},
                "accuracy_by_k": {k: v["accuracy"] for k, v in ks.items()},
                "depth_by_k": {k: v["depth"] for k, v in ks.items()},
                "filler_depth": float(own.depth[own.kind == FILLER].mean()),
            }
        )
    means: dict[str, Any] = {
        name: _value([seed[name] for seed in each]) for name, value in each[0].items() if isinstance(value, float)
    }
    for name in ("accuracy_by_k", "depth_by_k"):
        means[name] = {k: _value([seed[name][k] for seed in each]) for k in each[0][name]}
    return {**means, "seeds": each}


def needs_of(answers: Answers, need: Mapping[str, Mapping[int, int]]) -> np.ndarray:
    """int64 [N]: the measured need of each answer, 0 of filler, -1 where no dense model can do it."""
    found = np.where(answers.kind == FILLER, 0, -1)
    for kind, ks in need.items():
        for k, layers in ks.items():
            found[(answers.kind == KINDS.index(kind)) & (answers.k == k)] = layers
    return found


def tables(told: Mapping[str, Any]) -> str:
    """Markdown: what dense models can do, what each method makes of it, and where it puts depth."""
    dense, methods = told["dense"], told["methods"]
    ks = list(next(iter(dense.values()))["accuracy"])
    rows = [
        [f"{n} layers", f"{rung['cost']:.2f}", *(_percent(rung["accuracy"][k]) for k in ks)]
        for n, rung in dense.items()
    ]
    kind = KINDS[HOP] if KINDS[HOP] in told["need"] else next(iter(told["need"]), KINDS[HOP])
    need = told["need"].get(kind, {})
    rows.append(["need", "", *(str(need.get(k, "none")) for k in ks)])
    parts = ["Dense models, right in % by k:", markdown(["", "cost", *(f"k={k}" for k in ks)], rows)]
    if methods:
        head = ["method", "true cost", "right, all k", "less full depth (worst k)", "deepest third",
                "more than dense of equal cost (layers)", "rank, answers", "rank, levels", "realised"]  # fmt: skip
        body = [
            [
                name,
                _number(m["cost"], 2),
                _percent(m["accuracy"]),
                f"{_percent(m['less_full'])} ({_percent(m['worst_less_full'])})",
                _percent(m["deepest_third"]),
                f"{_percent(m['more_than_equal'])} ({fmean(s['equal_dense'] for s in m['seeds']):.1f})",
                _number(m["rank_answers"], 2),
                _number(m["rank_levels"], 2),
                _percent(m["realised"]),
            ]
            for name, m in methods.items()
        ]
        parts += [
            "",
            f"Methods, means over seeds (95 % interval); {len(told['settings']['seeds'])} seeds:",
            markdown(head, body),
        ]
        body = [
            [name, _number(m["filler_depth"], 1), *(f"{m['depth_by_k'][k]['mean']:.1f}" for k in ks)]
            for name, m in methods.items()
        ]
        parts += ["", "Layers run by k:", markdown(["method", "filler", *(f"k={k}" for k in ks)], body)]
        body = [[name, *(f"{100 * m['accuracy_by_k'][k]['mean']:.0f}" for k in ks)] for name, m in methods.items()]
        parts += ["", "Right in % by k:", markdown(["method", *(f"k={k}" for k in ks)], body)]
    return "\n".join(parts)


def _value(values: Sequence[float]) -> Value:
    return {"mean": fmean(values), "half_width": half_width(list(values))}


def _percent(value: Value) -> str:
    mean, half = value["mean"], value["half_width"]
    assert mean is not None
    return f"{100 * mean:.1f}" + ("" if half is None else f" ±{100 * half:.1f}")


def _number(value: Value, digits: int) -> str:
    mean, half = value["mean"], value["half_width"]
    assert mean is not None
    return f"{mean:.{digits}f}" + ("" if half is None else f" ±{half:.{digits}f}")
