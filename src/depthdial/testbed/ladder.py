"""Models that grow by a layer for each hop that they have learned: a ladder of dense ones, which says what each k
needs, and routed ones from nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from depthdial.core.method import Method
from depthdial.methods import Recursive
from depthdial.models.convert import convert, layers_of
from depthdial.models.converted import converted_of, is_converted
from depthdial.testbed.fresh import deeper, fresh_dense
from depthdial.testbed.judges import RIGHT
from depthdial.testbed.tasks import IGNORED, World
from depthdial.testbed.training import TRAIN, Recipe, Report, advance, fit, keys, optimizer_of

EDGE = 3.0
"""How often the highest k that needs no further hop is asked while one is learned, beside 1 of the others."""


def ladder(
    world: World, recipe: Recipe, seed: int, report: Report = lambda *_: None
) -> Iterator[tuple[int, LlamaForCausalLM]]:
    """Dense models of 1, 2, ... layers, each trained to the end, with its number of layers: a copy of each stage of
    `stages` trains on answers alone, from every k, and what that one can do is measured."""
    for layers, model in stages(world, recipe, seed, report=report):
        settled = copy.deepcopy(model)
        fit(settled, world, recipe, seed, recipe.settle, report=_as(report, f"dense {layers}", recipe.settle))
        yield layers, settled


def stages(
    world: World, recipe: Recipe, seed: int, method: Method | None = None, report: Report = lambda *_: None
) -> Iterator[tuple[int, LlamaForCausalLM]]:
    """One model as it grows, with its number of layers; routed from the first step where there is a method.

    It gets a layer when the deepest one answers a hop more, of all questions that have it, `RIGHT` of the time. Until
    then layer j is taught the answer after j applications (deep supervision, Lee et al., 2015, arXiv 1409.5185).
    """
    depth = recipe.spec.layers
    model = fresh_dense(replace(recipe.spec, layers=1), world, seed, depth)
    if method is not None:
        convert(model, method, frozen=False)
    for layers in range(1, depth + 1):
        if layers > 1:
            model = deeper(model, method)
        _climb(model, world, recipe, seed, _as(report, f"a hop more by layer {layers}", recipe.patience))
        yield layers, model


def looped(
    world: World, recipe: Recipe, seed: int, method: Recursive, report: Callable[[int], None]
) -> LlamaForCausalLM:
    """A model of one block, visited as often as the deepest dense model has layers, from nothing: in each step it stops
    after a number of loops by chance, and is taught the answer after so many applications."""
    model = fresh_dense(replace(recipe.spec, layers=1), world, seed, method.loops)
    convert(model, method, frozen=False)
    optimizer, rng, steps = optimizer_of(model, recipe), np.random.default_rng((seed, TRAIN)), recipe.patience
    stops = method.stops(converted_of(model).program)
    for step in range(steps):
        report(step)
        loops = int(rng.integers(1, method.loops + 1))
        batch = world.batch(recipe.rows, seed, TRAIN, method.loops, step)
        ids, trail = torch.from_numpy(batch.ids), torch.from_numpy(batch.trail)
        goal = trail[..., min(loops, world.hops)]
        there = goal != IGNORED
        converted_of(model).set(offset=stops[loops - 1])
        logits = model.lm_head(model.get_decoder()(ids, use_cache=False).last_hidden_state[there])
        rate = recipe.lr * min(1, (step + 1) / 50) * (1 - 0.8 * step / steps)
        advance(optimizer, F.cross_entropy(logits, goal[there]), rate, model)
    converted_of(model).set(offset=stops[-1])
    return model


def _as(report: Report, name: str, total: int) -> Callable[[int], None]:
    return lambda done: report(name, done, total)


def _climb(model: LlamaForCausalLM, world: World, recipe: Recipe, seed: int, report: Callable[[int], None]) -> None:
    """Train until the answer after as many applications as there are layers is right, or patience ends."""
    layers, routed = model.config.num_hidden_layers, converted_of(model) if is_converted(model) else None
    optimizer, norm = optimizer_of(model, recipe), model.get_decoder().get_submodule("norm")
    weights = np.ones(world.hops + 1)
    weights[min(layers, world.hops + 1) - 1] = EDGE  # the new layer begins as one that goes on from there
    new_k, right = min(layers, world.hops), 0.0
    below: list[Tensor] = []  # what each layer but the last one puts out, after its skips
    hooks = [layer.register_forward_hook(lambda *call: below.append(call[-1])) for layer in layers_of(model)[:-1]]
    for step in range(recipe.patience):
        report(step)
        below.clear()
        batch = world.batch(recipe.rows, seed, TRAIN, layers, step, weights=weights)
        ids, trail = torch.from_numpy(batch.ids), torch.from_numpy(batch.trail)
        there = (trail != IGNORED).any(-1)
        if routed is not None:
            routed.set(training=True, key=keys(ids, step), progress=0.0)
        top = model.get_decoder()(ids, use_cache=False).last_hidden_state
        goals = [trail[there][:, min(j + 1, world.hops)] for j in range(layers)]
        logits: list[Tensor] = [model.lm_head(state[there]) for state in (*map(norm, below), top)]
        loss = torch.stack([F.cross_entropy(each, goal) for each, goal in zip(logits, goals, strict=True)]).mean()
        if routed is not None:
            last = routed.route.last
            extra = routed.method.loss(last.tokens, last.trace)
            loss = loss if extra is None else loss + extra.mean()
        falling = 1 - 0.8 * step / recipe.patience  # at a high rate accuracy may stay just below what is asked
        advance(optimizer, loss, recipe.lr * min(1, (step + 1) / 50) * falling, model)
        new = (torch.from_numpy(batch.k)[there] >= new_k) & (goals[-1] != IGNORED)
        right += 0.1 * (float((logits[-1].argmax(-1) == goals[-1])[new].float().mean()) - right)
        if right >= RIGHT:
            break
    for hook in hooks:
        hook.remove()
