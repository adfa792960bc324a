"""What is measured: the base, the plug-in at each budget, and baselines at the costs that the plug-in really had.

A baseline runs each task at the true cost that the plug-in had on that very task.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from depthdial.core.method import Method
from depthdial.engine.llm import LLM
from depthdial.evaluate.harness.lm import Dial
from depthdial.methods import Static, name_of
from depthdial.models import load, load_base
from depthdial.models.checkpoint import METHOD_FILE, parts_file, read
from depthdial.models.convert import convert, method_of, route_of
from depthdial.models.dial import offset_for

Kind = Literal["base", "adaptive", "baseline"]
EARLY_EXIT = "early exit"
BATCH = 64
"""Texts that run together."""


@dataclass(frozen=True)
class Row:
    """One line of the table. budget: of the adaptive row; a baseline stands beside that of the same budget."""

    name: str
    kind: Kind
    subject: str
    budget: float

    @property
    def file(self) -> str:
        return self.name.replace(" ", "-").replace("/", "-")


@dataclass(frozen=True)
class Setup:
    """What all subjects share."""

    model: str
    dtype: str = "bfloat16"
    device: str = "auto"
    allow_other_weights: bool = False
    max_batch: int = BATCH
    cache_tokens: int | None = None

    def opened(self, plugin: str | None) -> LLM:
        model, tokenizer = load(self.model, plugin, None, self.dtype, self.device, self.allow_other_weights)
        return LLM.of(model, tokenizer, max_batch=self.max_batch, cache_tokens=self.cache_tokens)


@dataclass(frozen=True)
class Subject:
    """A model in memory and its rows. dial: the offsets of a row, told the cost that is to be met (a task's own)."""

    name: str
    llm: LLM
    rows: list[Row]
    dial: Callable[[Row, float | None], Dial]
    about: dict[str, Any]


def rows_of(name: str, budgets: Sequence[float], kind: Kind) -> list[Row]:
    return [Row(f"{name} {budget:g}", kind, name, budget) for budget in budgets]


def subjects(
    setup: Setup, plugin: str | None, baselines: Mapping[str, str], budgets: Sequence[float], early_exit: bool
) -> Iterator[Callable[[], Subject]]:
    """The base and the plug-in, then the baselines (name -> folder); each is loaded when it is called for."""
    below = [budget for budget in dict.fromkeys(budgets) if budget != 1.0]
    yield lambda: _adaptive(setup, plugin, below)
    if not below:
        return
    for name, path in baselines.items():
        yield lambda name=name, path=path: _baseline(setup, name, path, below)
    if early_exit:
        yield lambda: _early_exit(setup, below)


def _adaptive(setup: Setup, plugin: str | None, budgets: Sequence[float]) -> Subject:
    if plugin is None and budgets:
        raise ValueError(f"budget {budgets[0]:g} needs a plug-in; give --plugin, or --budgets 1.0 for the base alone")
    llm = setup.opened(plugin)
    model = llm.model
    name = name_of(method_of(model))
    for budget in budgets:  # said before anything runs
        for kind in ("text", "generated"):
            offset_for(model, budget, kind)

    def dial(row: Row, _: float | None) -> Dial:
        return Dial(*(offset_for(model, row.budget, kind) for kind in ("text", "generated")))

    rows = [Row("base", "base", name, 1.0), *rows_of(name, budgets, "adaptive")]
    return Subject(name, llm, rows, dial, _about(model, None if llm.plugin is None else llm.plugin.training))


def _baseline(setup: Setup, name: str, path: str, budgets: Sequence[float]) -> Subject:
    llm = setup.opened(path)
    assert llm.plugin is not None
    if isinstance(method_of(llm.model), Static):
        return Subject(
            name,
            llm,
            rows_of(name, budgets, "baseline"),
            _static_dial(llm.model),
            _about(llm.model, llm.plugin.training),
        )
    curves = llm.plugin.curves
    if not curves:
        raise ValueError(f"the plug-in {path} has no budget curve, so it cannot be set to a cost; train it again")

    def dial(_: Row, cost: float | None) -> Dial:
        assert cost is not None
        offsets = []
        for kind in ("text", "generated"):
            curve = curves.get(kind) or next(iter(curves.values()))
            offsets.append(curve.offset(min(max(cost, curve.floor), 1 - 1e-9)))
        return Dial(*offsets)

    return Subject(name, llm, rows_of(name, budgets, "baseline"), dial, _about(llm.model, llm.plugin.training))


def _early_exit(setup: Setup, budgets: Sequence[float]) -> Subject:
    """The last layers dropped for every token: what leaving early at a fixed layer gives, with the base's own head."""
    base, tokenizer = load_base(setup.model, setup.dtype, setup.device)
    depth = base.config.get_text_config().num_hidden_layers
    order = tuple(range(depth - 1, 0, -1))
    model = convert(base, Static(order=order, count=1, length=len(order), adapter_ratio=0)).eval()
    llm = LLM.of(model, tokenizer, max_batch=setup.max_batch, cache_tokens=setup.cache_tokens)
    about = {"method": {"name": EARLY_EXIT}, "training": None}
    return Subject(EARLY_EXIT, llm, rows_of(EARLY_EXIT, budgets, "baseline"), _static_dial(model), about)


def _static_dial(model: Any) -> Callable[[Row, float | None], Dial]:
    """Whole layers are dropped: as many as come nearest to the cost, at least one."""
    method, ledger = method_of(model), route_of(model).ledger
    assert isinstance(method, Static)
    costs, cost = [], 1.0
    for layer in method.order:
        cost -= sum(ledger.saved(site) for site in ledger.always if site.layer == layer) / ledger.dense
        costs.append(cost)

    def dial(_: Row, cost: float | None) -> Dial:
        assert cost is not None
        dropped = 1 + min(range(len(costs)), key=lambda i: abs(costs[i] - cost))
        return Dial(float(method.count - dropped), float(method.count - dropped))

    return dial


def _about(model: Any, training: dict[str, Any] | None) -> dict[str, Any]:
    method: Method = method_of(model)
    told = {name: value for name, value in vars(method).items() if not isinstance(value, float) or math.isfinite(value)}
    shown = {k: (training or {}).get(k) for k in ("steps", "tokens", "objective", "seed") if k in (training or {})}
    return {"method": {"name": name_of(method), **told}, "training": shown}


def identity(path: str | Path) -> str:
    """A hash of a plug-in's folder. ValueError where it is none."""
    read(path)
    digest = hashlib.sha256()
    for file in (Path(path) / METHOD_FILE, parts_file(path)):
        if not file.is_file():
            raise ValueError(f"{path} is incomplete: it has no {file.name}; get the plug-in again")
        digest.update(file.read_bytes())
    return digest.hexdigest()
