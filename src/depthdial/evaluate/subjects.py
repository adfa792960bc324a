"""What is measured: the base, the plug-in at each budget, and baselines at the costs that the plug-in really had.

A baseline runs each task at the true cost that the plug-in had on that very task. All dials are budgets here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from depthdial.core.cost import exact_cost
from depthdial.core.dial import Curve, PromptBudget
from depthdial.core.method import Seen
from depthdial.core.tokens import Tokens, Trace
from depthdial.engine.llm import LLM
from depthdial.evaluate.equal_cost import Knob, mix_between
from depthdial.methods import Static, name_of
from depthdial.models import load, load_base
from depthdial.models.checkpoint import METHOD_FILE, Plugin, parts_file, plugin_of, read
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of
from depthdial.models.dial import offset_for
from depthdial.models.fingerprint import fingerprint
from depthdial.models.hub import plugin_folder
from depthdial.models.shipped import shipped_for

Kind = Literal["base", "adaptive", "baseline", "int8", "where"]
"""int8: the base or the plug-in with weights in int8. where: a part of what the adaptive row skips (see `Row.part`)."""
Part = Literal["", "prompt", "both"]
Int8 = Literal["dense", "all", "none"]
EARLY_EXIT, INT8 = "early exit", "int8"
BATCH = 64
"""Texts that run together."""


@dataclass(frozen=True)
class TableRow:
    """One line of the table. budget: of the adaptive row; a baseline stands beside that of the same budget."""

    name: str
    kind: Kind
    subject: str
    budget: float
    part: Part = ""
    """Of a row that tells where skipping hurts: what is read at the budget, or that and what is written."""

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
    prompt_budget: PromptBudget | None = None
    """Of all rows but the base's and those of `Lineup.where`; None is the engine's default."""
    prefix_cache: bool = True

    def load(self, plugin: str | None) -> tuple[Any, Any]:
        """A model and its tokenizer."""
        return load(self.model, plugin, None, self.dtype, self.device, self.allow_other_weights)

    def llm(self, model: Any, tokenizer: Any, weights: Literal["auto", "int8"] = "auto") -> LLM:
        return LLM.of(
            model,
            tokenizer,
            max_batch=self.max_batch,
            cache_tokens=self.cache_tokens,
            weights=weights,
            prefix_cache=self.prefix_cache,
        )

    def prompt_budget_of(self, row: TableRow) -> PromptBudget | None:
        """What the row asks of what is read: the base is the untouched one in all it does."""
        return "same" if row.budget == 1.0 else self.prompt_budget

    def read_by(self, llm: LLM) -> PromptBudget:
        """What is asked of the plug-in's prompts."""
        return llm.prompt_budget if self.prompt_budget is None else self.prompt_budget


@dataclass(frozen=True)
class Subject:
    """A model in memory and its rows. knob: the budget of a row, by the cost that is to be met (a task's own); a mix of
    two where the dial has steps."""

    name: str
    llm: LLM
    rows: list[TableRow]
    knob: Callable[[TableRow, float | None], Knob]
    about: dict[str, Any]

    def read_at(self, cost: float) -> float:
        """The budget of what is read that comes nearest to a cost below 1."""
        curves = {} if self.llm.plugin is None else self.llm.plugin.curves
        return min(max(cost, *(curve.floor for curve in curves.values()), 0.0), 1 - 1e-9)

    def reading(self, budget: float, prompt_budget: PromptBudget | None) -> PromptBudget | None:
        """What is asked of a prompt before an answer at `budget`: no less than the dial can do. Where skipped tokens
        leave no K and V, a prompt that is to cost less than its answer is read as this is written: no layer may come
        back."""
        if not isinstance(prompt_budget, float) or prompt_budget == 1.0:
            return prompt_budget
        return "same" if prompt_budget < budget and self.llm.budgets.steady else self.read_at(prompt_budget)


def budget_rows(name: str, budgets: Sequence[float], kind: Kind) -> list[TableRow]:
    return [TableRow(f"{name} {budget:g}", kind, name, budget) for budget in budgets]


@dataclass(frozen=True)
class Lineup:
    """Which rows there are. plugin: "default", None (the base alone) or a folder; baselines: name -> folder."""

    plugin: str | None
    budgets: Sequence[float]
    baselines: Mapping[str, str]
    early_exit: bool = True
    int8: Int8 = "dense"
    where: bool = False

    def __post_init__(self):
        if bad := [budget for budget in self.budgets if not 0 < budget <= 1]:
            raise ValueError(f"a budget lies above 0 and up to 1.0 (the untouched base), not at {bad[0]:g}")
        reserved = ("base", EARLY_EXIT, INT8)
        if clash := set(reserved) & set(self.baselines):
            raise ValueError(f"--plugin {clash.pop()}=...: this name is taken; choose another")
        files: dict[str, str] = {}
        for name in (*reserved, *self.baselines):
            if other := files.get(file := TableRow(name, "baseline", name, 1.0).file):
                raise ValueError(f"--plugin {name}=...: its files would be those of {other!r}; choose another name")
            files[file] = name

    def check(self, setup: Setup) -> None:
        """ValueError where the rows of `where` would have nothing to stand beside."""
        if self.where and setup.prompt_budget not in (None, 1.0):
            raise ValueError("--where reads prompts in full beside rows that do not: leave --prompt-budget out")

    @property
    def below(self) -> list[float]:
        """The budgets at which something is skipped."""
        return [budget for budget in dict.fromkeys(self.budgets) if budget != 1.0]

    @property
    def others(self) -> dict[str, list[TableRow]]:
        """The rows of all subjects but the first, by its name."""
        rows = {INT8: self._int8} if self.int8 != "none" else {}
        if self.below:
            rows |= {name: budget_rows(name, self.below, "baseline") for name in self.baselines}
        if self.below and self.early_exit:
            rows[EARLY_EXIT] = budget_rows(EARLY_EXIT, self.below, "baseline")
        return rows

    @property
    def _int8(self) -> list[TableRow]:
        skipping = budget_rows("plug-in int8", self.below, "int8") if self.int8 == "all" else []
        return [TableRow("base int8", "int8", INT8, 1.0), *skipping]

    def identity(self, llm: LLM, model: str) -> str | None:
        """A hash of the plug-in that `llm` has; None without one."""
        if llm.plugin is None or self.plugin is None:  # a model that was pre-trained with its routers has none
            return None
        return identity(shipped_for(llm.model.config, model) if self.plugin == "default" else self.plugin)

    def subjects(self, setup: Setup) -> Iterator[Callable[[], Subject]]:
        """The base and the plug-in, then the `others`, in order; each is loaded when it is called for."""
        yield lambda: self._adaptive(setup)
        for name, rows in self.others.items():
            if name == INT8:
                yield lambda rows=rows: self._with_int8(setup, rows)
            elif name == EARLY_EXIT:
                yield lambda rows=rows: _early_exit(setup, rows)
            else:
                yield lambda name=name, rows=rows: _baseline(setup, name, self.baselines[name], rows)

    def _adaptive(self, setup: Setup) -> Subject:
        plugin, budgets = self.plugin, self.below
        if plugin is None and budgets:
            raise ValueError(
                f"budget {budgets[0]:g} needs a plug-in; give --plugin, or --budgets 1.0 for the base alone"
            )
        llm = setup.llm(*setup.load(plugin))
        name = name_of(converted_of(llm.model).method)
        for budget in budgets:  # said before anything runs
            offset_for(llm.model, budget, "text")
            llm.dials(budget, setup.prompt_budget)
        rows = [TableRow("base", "base", name, 1.0), *budget_rows(name, budgets, "adaptive")]
        if self.where and llm.budgets.steady:
            raise ValueError(
                f"--where writes in layers that the prompt skipped, and {name} leaves no K and V there: leave it out"
            )
        if self.where:
            rows += [TableRow(f"prompt only {b:g}", "where", name, b, "prompt") for b in budgets]
            rows += [TableRow(f"prompt and answer {b:g}", "where", name, b, "both") for b in budgets]
        training = None if llm.plugin is None else llm.plugin.training
        return Subject(name, llm, rows, lambda row, _: row.budget, _about(llm.model, training))

    def _with_int8(self, setup: Setup, rows: list[TableRow]) -> Subject:
        skips = any(row.budget != 1.0 for row in rows)
        llm = setup.llm(*setup.load(self.plugin if skips else None), "int8")
        training = None if llm.plugin is None else llm.plugin.training
        return Subject(INT8, llm, rows, lambda row, _: row.budget, _about(llm.model, training) | {"weights": "int8"})


def _baseline(setup: Setup, name: str, path: str, rows: list[TableRow]) -> Subject:
    model, tokenizer = setup.load(path)
    plugin = plugin_of(model)
    assert plugin is not None
    if curves := _exact_curves(model):
        converted_of(model).plugin = plugin = replace(plugin, curves=curves)
    curve = plugin.curves.get("generated") or next(iter(plugin.curves.values()), None)
    if curve is None:
        raise ValueError(f"the plug-in {path} has no budget curve, so it cannot be set to a cost; train it again")
    return Subject(name, setup.llm(model, tokenizer), rows, _to_meet(curve), _about(model, plugin.training))


def _early_exit(setup: Setup, rows: list[TableRow]) -> Subject:
    """The last layers dropped for every token: what leaving early at a fixed layer gives, with the base's own head."""
    base, tokenizer = load_base(setup.model, setup.dtype, setup.device)
    depth = base.config.get_text_config().num_hidden_layers
    order = tuple(range(depth - 1, 0, -1))
    model = convert(base, Static(order=order, count=1, length=len(order), adapter_ratio=0)).eval()
    curves = _exact_curves(model)
    converted_of(model).plugin = Plugin(EARLY_EXIT, converted_of(model).method, fingerprint(model), curves)
    about = {"method": {"name": EARLY_EXIT}, "training": None}
    return Subject(EARLY_EXIT, setup.llm(model, tokenizer), rows, _to_meet(curves["generated"]), about)


def _exact_curves(model: Any) -> dict[str, Curve]:
    """The curves of a dial with stops at which every token does the same, counted and not measured; none for others."""
    converted = converted_of(model)
    method, program = converted.method, converted.program
    stops = method.stops(program) if method.steady and method.ahead and not program.jumps else None
    if stops is None:
        return {}
    place = torch.zeros(len(stops), dtype=torch.int64)
    tokens, trace = Tokens(torch.tensor(stops, dtype=torch.float32), place), Trace(program)
    for s, unit in converted.routed.items():
        trace.decisions[s] = method.decide(unit.parts, Seen(place[:, None].float()), s, tokens, trace)
    costs = exact_cost(converted.ledger, tokens, trace).tolist()
    step = (stops[-1] - stops[0]) / (len(stops) - 1)
    curve = Curve.fit([(float(stop), cost, 0.0) for stop, cost in zip(stops, costs, strict=True)], step=step)
    return {"text": curve, "generated": curve}


def _to_meet(curve: Curve) -> Callable[[TableRow, float | None], Knob]:
    """Budgets by the cost that is to be met, as near as the curve comes to it; in steps at least one is taken."""
    steps = {cost: cost for cost in curve.costs if cost < 1} if curve.step else {}

    def knob(_: TableRow, cost: float | None) -> Knob:
        assert cost is not None
        target = min(max(cost, curve.floor), max(steps, default=1 - 1e-9))
        return mix_between(steps, target) if steps else target

    return knob


def _about(model: Any, training: dict[str, Any] | None) -> dict[str, Any]:
    method, source = converted_of(model).method, training or {}
    fields = {
        name: value for name, value in vars(method).items() if not isinstance(value, float) or math.isfinite(value)
    }
    facts = {name: source[name] for name in ("steps", "tokens", "objective", "seed") if name in source}
    return {"method": {"name": name_of(method), **fields}, "training": facts}


def identity(path: str | Path) -> str:
    """A hash of a plug-in's folder, or of one of the hub. ValueError where it is none."""
    path = plugin_folder(path)
    read(path)
    digest = hashlib.sha256()
    for file in (Path(path) / METHOD_FILE, parts_file(path)):
        if not file.is_file():
            raise ValueError(f"{path} is incomplete: it has no {file.name}; get the plug-in again")
        digest.update(file.read_bytes())
    return digest.hexdigest()
