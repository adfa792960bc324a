"""The methods that are judged, each as it is made from the deepest dense model of a seed, or from nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from depthdial.methods import FlexiDepth, Readout, Recursive, method_named
from depthdial.models.calibration import BaseProbe
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of, is_converted
from depthdial.testbed.judges import Answers
from depthdial.testbed.ladder import looped, stages
from depthdial.testbed.tasks import World
from depthdial.testbed.training import HELDOUT, Recipe, fit, tensors

WIDEST = 64.0
"""How far the dial is turned in search of a cost."""


@dataclass(frozen=True)
class Subject:
    """A method with its fields and how it is trained."""

    method: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    start: str = "dense"
    """"dense": all weights are trained on from the deepest dense model; "frozen": only the method's parts beside it;
    "fresh": all weights, from nothing, as the dense model was."""
    held: float | None = None
    """A true cost that training holds; None: the method's own loss and offset 0."""
    dial: float | None = None
    """A true cost that the dial is turned to after training; None: as training left it."""
    trained: bool = True


def subjects(layers: int) -> dict[str, Subject]:
    """The subjects by the name that the table has, for a deepest dense model of so many layers."""
    first = {"first": 0}
    flexi = {**first, **FlexiDepth.budgeted}
    half = {"density": 0.5}
    drawn = {**half, "estimator": "sampled", "router_ratio": 4, "start": 2.0}
    return {
        # all weights trained on, as the paper's pre-training is, but from the dense model
        "skiplayer 50%": Subject("skiplayer", half),
        "skiplayer 25%": Subject("skiplayer", {"density": 0.25}),
        "skiplayer 50% held": Subject("skiplayer", drawn, held=0.6),
        "skiplayer 50% fixed input": Subject("skiplayer", {**drawn, "fixed_input": True}, held=0.6),
        "random 50%": Subject("random", {"rate": 0.5, "adapter_ratio": 0, **first}),
        "static 50%": Subject("static", {"count": layers // 2, "adapter_ratio": 0}),
        "mixture_of_depths": Subject("mixture_of_depths"),
        "highway": Subject("highway"),
        # the method's parts beside a frozen dense model
        "flexidepth": Subject("flexidepth", flexi, "frozen", held=0.6),
        "flexidepth fixed input": Subject("flexidepth", {**flexi, "fixed_input": True}, "frozen", held=0.6),
        "random frozen": Subject("random", {"rate": 0.5, **first}, "frozen", dial=0.6),
        "static frozen": Subject("static", {"count": layers // 2}, "frozen", dial=0.6),
        "balcony": Subject("balcony", {"exits": tuple(range(1, layers))}, "frozen", dial=0.6),
        "readout": Subject("readout", {"layers": tuple(range(1, layers))}, "frozen", dial=0.6, trained=False),
        "d3": Subject("d3", {"alpha": 0.99, "first": 0, "last": 1}, "frozen", dial=0.6, trained=False),
        # from nothing
        "recursive": Subject("recursive", {"loops": layers}, "fresh", dial=0.6, trained=False),
        "skiplayer 50% fresh": Subject("skiplayer", half, "fresh"),
    }


NAMES = tuple(subjects(8))
"""Of all subjects."""


def made(
    subject: Subject, base: LlamaForCausalLM, world: World, recipe: Recipe, seed: int, report: Any
) -> PreTrainedModel:
    """The subject's model, trained, its dial where it is to be measured. base: the deepest dense model of the seed."""
    method = method_named(subject.method, dict(subject.fields))
    if isinstance(method, Recursive):
        model = looped(world, recipe, seed, method, report)
    elif subject.start == "fresh":
        *_, (_, model) = stages(world, recipe, seed, method, lambda _, done, __: report(done))
    else:
        model = copy.deepcopy(base)
        if isinstance(method, Readout):  # answers and filler are the first words
            method = replace(method, head_rows=world.words.index("p0"))
        method = method.calibrate(BaseProbe(model, probed(world, recipe, seed)))
        convert(model, method, frozen=subject.start == "frozen")
    if subject.trained:
        fit(model, world, recipe, seed, recipe.steps, subject.held, report)
    if subject.dial is not None:
        turn(model, world, recipe, seed, subject.dial)
    return model.eval()


def probed(world: World, recipe: Recipe, seed: int) -> list[dict[str, torch.Tensor]]:
    """Texts for calibration, as `BaseProbe` has them."""
    found = []
    for i in range(4):
        batch = world.batch(recipe.rows, seed, HELDOUT, 1, i)
        ids, _ = tensors(batch)
        places = torch.arange(ids.shape[1]).expand(ids.shape)
        found.append({"input_ids": ids, "position_ids": places, "labels": torch.from_numpy(batch.labels)})
    return found


@torch.no_grad()
def turn(model: PreTrainedModel, world: World, recipe: Recipe, seed: int, budget: float) -> None:
    """Turn the dial to the offset whose mean true cost on held-out texts comes nearest to a budget: among the stops of
    a dial that has some, else by bisection."""
    converted = converted_of(model)
    ids, _ = tensors(world.batch(4 * recipe.rows, seed, HELDOUT, 2))

    def cost(offset: float) -> float:
        converted.set(offset=offset)
        model.get_decoder()(ids, use_cache=False)
        return converted.route.cost()

    stops = converted.method.stops(converted.program)
    if stops is None:
        low, high = -WIDEST, WIDEST
        for _ in range(16):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(middle) < budget else (low, middle)
        stops = [low, high]
    converted.set(offset=min(stops, key=lambda offset: abs(cost(offset) - budget)))


@torch.no_grad()
def answered(
    model: PreTrainedModel, world: World, recipe: Recipe, seed: int, texts: int
) -> tuple[Answers, float | None]:
    """What a model makes of so many held-out texts, and its mean true cost relative to its own untouched form; None of
    a dense model, which runs all of it."""
    parts, costs = [], []
    routed = converted_of(model) if is_converted(model) else None
    model.eval()
    for i in range(-(-texts // recipe.rows)):
        batch = world.batch(recipe.rows, seed, HELDOUT, 0, i)
        ids, there = tensors(batch)
        hidden = model.get_decoder()(ids, use_cache=False).last_hidden_state[there]
        best = model.get_output_embeddings()(hidden).argmax(-1).numpy()
        at = there.numpy()
        if routed is None:
            depth = np.full(len(best), model.config.num_hidden_layers, float)
        else:
            depth = routed.route.layers_used[there].numpy().astype(float)
            costs.append(routed.route.cost())
        parts.append(Answers(batch.kinds[at], batch.k[at], best == batch.labels[at], depth))
    whole = Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return whole, float(np.mean(costs)) if costs else None
