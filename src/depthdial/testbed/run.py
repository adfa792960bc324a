"""One run of the testbed: for each seed a ladder of dense models, then every method, each result kept as it is had, so
that an interrupted run goes on where it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, LlamaForCausalLM

from depthdial.core.lock import locked
from depthdial.core.whole import write_json
from depthdial.methods import Dense
from depthdial.models.equal_flops import macs
from depthdial.models.gguf import quiet
from depthdial.testbed.fresh import tokenizer_of
from depthdial.testbed.judges import Answers, by_k
from depthdial.testbed.ladder import ladder
from depthdial.testbed.subjects import NAMES, answered, made, subjects
from depthdial.testbed.tasks import KINDS, World
from depthdial.testbed.training import Recipe, Report

SETTINGS, RESULTS, MODELS = "testbed.json", "results", "models"
ABOVE = 0.1
"""A model has learned something where it is right so much more often than by chance."""


@dataclass(frozen=True)
class TestbedConfig:
    """What a run is told. Raises ValueError, with the remedy, for what cannot be run."""

    __test__ = False  # pytest: not a class of tests

    output: str
    task: str = "hop"
    hops: int = 8
    methods: tuple[str, ...] = NAMES
    """Some of NAMES."""
    seeds: tuple[int, ...] = (0, 1, 2)
    texts: int = 480
    """Held-out texts that each model answers."""
    entities: int = 25
    size: str = Recipe.size
    rows: int = Recipe.rows
    lr: float = Recipe.lr
    patience: int = Recipe.patience
    settle: int = Recipe.settle
    steps: int = Recipe.steps
    router_lr: float = Recipe.router_lr

    def __post_init__(self):
        for field in ("methods", "seeds"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if unknown := [name for name in self.methods if name not in NAMES]:
            raise ValueError(f"unknown method {unknown[0][:80]!r} of the testbed; choose from {', '.join(NAMES)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("give at least one seed, and each of them once")
        if self.texts < 1:
            raise ValueError(f"texts must be at least 1, not {self.texts}")
        _ = self.world, self.recipe.spec

    @property
    def world(self) -> World:
        return World(self.task, hops=self.hops, entities=self.entities)

    @property
    def recipe(self) -> Recipe:
        names = [f.name for f in dataclasses.fields(Recipe)]
        return Recipe(**{name: getattr(self, name) for name in names})


def run(config: TestbedConfig, resume: bool = False, report: Report = lambda *_: None) -> Path:
    """Train and judge all that the configuration names; returns the folder, whose results `table.read` opens.

    Raises ValueError for a folder that holds another run, and for a size that has learned nothing in its steps.
    """
    output = Path(config.output)
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    file = output / SETTINGS
    if file.is_file() and not resume:
        raise ValueError(f"{output} holds a run of the testbed; add --resume to go on with it, or choose another")
    if resume and not file.is_file():
        raise ValueError(f"nothing to resume: {output} holds no {SETTINGS}; start without --resume")
    if resume and (changed := _changed(file, settings)):
        raise ValueError(f"{output} was begun with other settings ({', '.join(changed)}); resume with the same ones")
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        write_json(file, settings)
        for seed in config.seeds:
            base = _ladder(config, seed, output, report)
            for name in config.methods:
                _kept(output, name, seed, lambda n=name, s=seed, b=base: _judged(config, n, s, b, report))
    return output


def _changed(file: Path, settings: dict[str, Any]) -> list[str]:
    """Settings that differ; more methods, seeds and another place do not count."""
    try:
        before = dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"{file} is damaged; choose another --output") from None
    return [
        name for name in settings if name not in ("output", "methods", "seeds") and settings[name] != before.get(name)
    ]


def _ladder(config: TestbedConfig, seed: int, output: Path, report: Report) -> LlamaForCausalLM:
    """The deepest dense model of a seed; results of all of them are kept."""
    world, recipe = config.world, config.recipe
    place = output / MODELS / f"dense-seed{seed}"
    if not (place / "config.json").is_file():
        model, deepest = None, macs(_sized(recipe, world, recipe.spec.layers), Dense())
        for layers, model in ladder(world, recipe, seed, report):
            answers, _ = answered(model, world, recipe, seed, config.texts)
            cost = macs(_sized(recipe, world, layers), Dense()) / deepest
            write_json(_file(output, f"dense {layers}", seed), _figures(answers, cost))
            if layers == 1:
                check_learned(answers, config)
        assert model is not None
        tokenizer_of(world).save_pretrained(place)
        with quiet():  # a bar for each file
            model.save_pretrained(place)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(place, dtype="float32")
    assert isinstance(model, LlamaForCausalLM)
    return model


def _sized(recipe: Recipe, world: World, layers: int) -> Any:
    return dataclasses.replace(recipe.spec, layers=layers, vocabulary=len(world.words))


def check_learned(answers: Answers, config: TestbedConfig) -> None:
    """Raise ValueError where a model answers no k above 0 better than by chance: there is nothing to judge."""
    chance = 1 / config.entities
    best = {
        kind: max((each["accuracy"] for k, each in ks.items() if k), default=1.0) for kind, ks in by_k(answers).items()
    }
    for kind in config.world.kinds:
        if best[KINDS[kind]] < chance + ABOVE:
            raise ValueError(
                f"a model of size {config.size} has not learned {KINDS[kind]} in {config.patience} + {config.settle} "
                f"steps: {best[KINDS[kind]]:.0%} right at best, by chance {chance:.0%}; give more steps "
                "(--patience), more --rows, or a wider --size"
            )


def _judged(config: TestbedConfig, name: str, seed: int, base: LlamaForCausalLM, report: Report) -> dict[str, Any]:
    world, recipe = config.world, config.recipe
    model = made(
        subjects(recipe.spec.layers)[name], base, world, recipe, seed, lambda step: report(name, step, recipe.steps)
    )
    answers, cost = answered(model, world, recipe, seed, config.texts)
    assert cost is not None
    return _figures(answers, cost)


def _figures(answers: Answers, cost: float) -> dict[str, Any]:
    """What is kept of a model: enough for every judge. counts: [kind, k, depth, right, how many]."""
    counts: dict[tuple[int, ...], int] = {}
    for row in zip(answers.kind, answers.k, answers.depth, answers.right, strict=True):
        place = tuple(int(value) for value in row)
        counts[place] = counts.get(place, 0) + 1
    return {"cost": cost, "counts": [[*place, n] for place, n in sorted(counts.items())]}


def _kept(output: Path, name: str, seed: int, make: Callable[[], dict[str, Any]]) -> None:
    file = _file(output, name, seed)
    if not file.is_file():
        write_json(file, make())


def _file(output: Path, name: str, seed: int) -> Path:
    return output / RESULTS / f"{name.replace(' ', '-').replace('%', '')}-seed{seed}.json"


def result_of(output: Path, name: str, seed: int) -> dict[str, Any] | None:
    """What is kept of a model of this name; None where it has not been had yet."""
    file = _file(output, name, seed)
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def unfolded(counts: Sequence[Sequence[int]]) -> Answers:
    """The answers that were counted, in an order of their own."""
    import numpy as np

    table = np.array(counts).reshape(-1, 5)
    kind, k, depth, right = (np.repeat(table[:, i], table[:, 4]) for i in range(4))
    return Answers(kind, k, right.astype(bool), depth.astype(float))
