"""What routing could win on a base, from passes without some of its layers; nothing is trained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from depthdial.core.lock import locked
from depthdial.core.whole import disk_errors, plain, write_json
from depthdial.evaluate.folder import FORMAT, RESULTS, RunFolder, check_folder
from depthdial.evaluate.headroom.forecast import kept
from depthdial.evaluate.headroom.oracle import Ways, cheapest, dealt, pooled, spread
from depthdial.evaluate.headroom.passes import Drops, Lost
from depthdial.evaluate.headroom.prices import dropping, routing
from depthdial.evaluate.headroom.text import Rows, check_data, rows_of
from depthdial.evaluate.speed.machine import facts
from depthdial.evaluate.store import Store
from depthdial.methods.static import nested
from depthdial.models.ahead import check_ahead, config_ahead
from depthdial.models.base import load_base, load_tokenizer
from depthdial.models.families import OWN
from depthdial.models.fingerprint import fingerprint

Report = Callable[[str, int, int], None]
"""What runs now, passes done, passes in all."""
WHAT, DRAWS = "headroom of a base, before anything is trained", 100
"""Resamples of the texts for an interval."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked. data: a .txt or .jsonl file, None for the package's own text; tokens: how many are read, in rows
    of up to `length`; budgets: true costs relative to dense."""

    model: str
    data: Path | None = None
    tokens: int = 2048
    length: int = 256
    budgets: Sequence[float] = (0.9, 0.85, 0.75)
    dtype: str = "bfloat16"
    device: str = "auto"
    output: Path | None = None
    resume: bool = False

    def __post_init__(self):
        if bad := [budget for budget in self.budgets if not 0 < budget < 1]:
            raise ValueError(f"--budgets: a budget lies above 0 and below 1.0 (the untouched base), not at {bad[0]:g}")
        if not self.budgets:
            raise ValueError("--budgets names none; give true costs such as 0.9,0.85")
        if self.length < 8 or self.tokens < self.length:
            raise ValueError(
                f"--length must be at least 8, and --tokens at least that, not {self.length} and {self.tokens}"
            )
        if self.resume and self.output is None:
            raise ValueError("--resume needs --output: the folder of the run that is to go on")


def run(options: Options, report: Report = lambda name, done, total: None) -> dict[str, Any]:
    """Measure a base; gives what results.json holds. Raises ValueError, one line, for everything a user can mend: for a
    model before the text is read, for a text before weights are."""
    output = options.output
    if output is not None:
        check_folder(output, options.resume)
    config = config_ahead(options.model)
    if config is not None and config.model_type.startswith(OWN):
        raise ValueError(f"{options.model} is routed already; give the base that it was made from")
    if config is not None:
        check_ahead(config)
    tokenizer = load_tokenizer(options.model)
    check_data(options.data)
    rows = rows_of(tokenizer, options.data, options.tokens, options.length)
    with nullcontext() if output is None else locked(output), disk_errors(lambda: "free some space, then --resume"):
        return _measured(options, rows, report)


def _measured(options: Options, rows: Rows, report: Report) -> dict[str, Any]:
    report("loading", 0, 0)
    with redirect_stdout(sys.stderr):
        model, _ = load_base(options.model, options.dtype, options.device)
    weights = fingerprint(model).weights
    fixed = {"what": "headroom", "model": weights, "text": rows.digest, "dtype": options.dtype}
    folder = RunFolder(options.output, {"format": FORMAT, "fixed": fixed, "tasks": {}, "baselines": {}}, options.resume)
    store = Store(None if folder.path is None else folder.path / "chunks.jsonl")
    free, routed = dropping(model.config), routing(model.config)
    deepest = min(model.config.num_hidden_layers - 1, int(np.ceil(free.dropped(min(options.budgets)))))
    done, total = 0, 3 * model.config.num_hidden_layers + 5 * deepest + 3 * len(options.budgets)

    def step(name: str) -> None:
        nonlocal done
        done += 1
        report(name, min(done, total), total)

    drops = Drops(model, rows, store, f"{weights} {options.dtype}", step)
    single, pair = _scores(drops)
    order = [layer for layer, _ in nested(drops.depth, deepest, drops.divergence)]
    curve = [Lost(np.zeros(1), np.zeros(1)), *(drops.without(order[: k + 1]) for k in range(len(order)))]
    static = [
        {"layers": len(order[:k]), "cost": free.cost(k), "kl": lost.kl.mean(), "nll": lost.nll.mean()}
        for k, lost in enumerate(curve)
    ]
    oracle = _Oracle(drops, single, pair, free.dropped, routed.dropped)
    points = [oracle.at(budget, static) for budget in options.budgets]
    results = {
        "what": WHAT,
        **facts(model.device),
        "model": Path(options.model).name,
        "layers": drops.depth,
        "arguments": {"budgets": list(options.budgets), "tokens": rows.tokens, "length": options.length,
                      "dtype": options.dtype, "data": None if options.data is None else options.data.name},
        "counted": len(drops.row),
        "rows": len(rows.ids),
        "prices": {"dropping": asdict(free), "routing": asdict(routed)},
        "single": single.mean(0).tolist(),
        "static": {"order": order, "points": static},
        "settled": settled(drops.likeliest(), drops.classes),
        "oracle": points,
        "forecast": [oracle.forecast(point) for point in points],
    }  # fmt: skip
    if folder.path is not None:
        write_json(folder.path / RESULTS, results)
    return plain(results)


def _scores(drops: Drops) -> tuple[np.ndarray, np.ndarray]:
    """KL without each layer, [N, L], and without each with its next one, [N, L - 1]."""
    single = [drops.without([layer]).kl for layer in range(drops.depth)]
    return np.stack(single, 1), np.stack([drops.without([k, k + 1]).kl for k in range(drops.depth - 1)], 1)


class _Oracle:
    """The best that can be left out, by text and by token, beside one choice for all and beside noise."""

    def __init__(
        self, drops: Drops, single: np.ndarray, pair: np.ndarray, free: Callable[[float], float],
        routed: Callable[[float], float],
    ):  # fmt: skip
        self.drops, self.free, self.routed = drops, free, routed
        rows, row = int(drops.row.max()) + 1, drops.row
        noise = dealt(single, pair, np.random.default_rng(0))
        self.tokens = np.bincount(row, minlength=rows).astype(float)
        most = drops.depth - 1
        self.all = cheapest(single.mean(0)[None], pair.mean(0)[None], most)
        self.text = cheapest(pooled(single, row, rows), pooled(pair, row, rows), most)
        self.shuffled = cheapest(pooled(noise[0], row, rows), pooled(noise[1], row, rows), most)
        self.token, self.token_shuffled = cheapest(single, pair, most), cheapest(*noise, most)

    def at(self, budget: float, static: list[dict[str, Any]]) -> dict[str, Any]:
        """Nats a token at a true cost: what the scores promise (`score`), and what a pass of it gives (`kl`, `nll`)."""
        free, routed = self.free(budget), self.routed(budget)
        ones = np.ones(len(self.drops.row))
        return {
            "budget": budget,
            "dropped": free,
            "skipped": routed,
            "static": {name: _between(static, budget, name) for name in ("kl", "nll")},
            "all": self._run(self.all, np.ones(1), free),
            "text": self._run(self.text, self.tokens, free),
            "shuffled": self._run(self.shuffled, self.tokens, free),
            "token": {"score": spread(self.token, ones, routed)[0]},
            "token_shuffled": {"score": spread(self.token_shuffled, ones, routed)[0]},
        }

    def forecast(self, point: dict[str, Any]) -> dict[str, float]:
        """Nats a token above the base after training, at best, with an interval over texts (95 %); static: of fixed
        layers. point: of `at`."""
        budget, random = point["budget"], np.random.default_rng(0)
        texts = random.multinomial(len(self.tokens), np.full(len(self.tokens), 1 / len(self.tokens)), DRAWS)
        drawn = [spread(self.token, own[self.drops.row].astype(float), point["skipped"])[0] for own in texts]
        low, high = np.quantile(drawn, (0.025, 0.975))
        found = {"nats": point["token"]["score"], "low": low, "high": high, "static": point["static"]["kl"]}
        return {"budget": budget} | {name: kept(float(lost), budget) for name, lost in found.items()}

    def _run(self, ways: Ways, weight: np.ndarray, mean: float) -> dict[str, float]:
        score, counts = spread(ways, weight, mean)
        chosen = [np.flatnonzero(ways.dropped[unit, count]).tolist() for unit, count in enumerate(counts)]
        lost = self.drops.each_without(chosen if len(chosen) > 1 else chosen * len(self.tokens))
        left = float(weight @ counts / weight.sum())
        return {"score": score, "dropped": left, "kl": float(lost.kl.mean()), "nll": float(lost.nll.mean())}


def _between(static: list[dict[str, Any]], cost: float, name: str) -> float:
    """A figure of the static curve at a cost, linear between its points."""
    points = sorted((point["cost"], point[name]) for point in static)
    return float(np.interp(cost, [cost for cost, _ in points], [value for _, value in points]))


def settled(likeliest: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
    """How early the head's likeliest token is the final one, and stays it. likeliest: bool [L, N], before each layer;
    classes: str [N]."""
    depth = len(likeliest)
    stays = np.logical_and.accumulate(likeliest[::-1], 0)[::-1]
    layers = depth - stays.sum(0)
    kinds = [
        {"class": str(kind), "tokens": int(own.sum()), "layers": float(layers[own].mean()),
         "half": float((layers[own] <= depth / 2).mean())}
        for kind in np.unique(classes) for own in [classes == kind]
    ]  # fmt: skip
    return {
        "layers": float(layers.mean()),
        "curve": [*likeliest.mean(1).tolist(), 1.0],
        "stays": [*stays.mean(1).tolist(), 1.0],
        "classes": sorted(kinds, key=lambda each: each["layers"]),
    }
