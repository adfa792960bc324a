"""Visits beside the base's own layers: a method's own blocks, and further visits of a base's layer (loops).

The base's list of layers stays as it is, and so do the names of its weights. A further visit is a module that runs
just before the base's layer which follows it in the program, or after the last one.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from depthdial.core.program import OwnBlock, Program
from depthdial.core.routed import Pass
from depthdial.models.converted import Converted
from depthdial.models.family import ATTN, norms_of
from depthdial.models.opening import PASS

OWN_BLOCKS = "own_blocks"
"""The decoder's submodule that holds a method's own blocks."""


class Extra:
    """One visit that the base's list of layers does not make."""

    def __init__(
        self, converted: Converted, visit: int, module: nn.Module, index: int, kind: str, like: int,
        twin_of: nn.Module | None = None,
    ):  # fmt: skip
        """index: its place in a Hugging Face cache; kind: of its attention; like: the base's layer that it is like;
        twin_of: that layer, where the module has its weights."""
        self.converted, self.visit, self.module, self.kind, self.like = converted, visit, module, kind, like
        self.twin_of = twin_of
        vars(module.get_submodule(ATTN))["layer_idx"] = index
        self.index = index

    def __call__(self, x: Tensor, inputs: dict[str, Any]) -> Tensor:
        """x: [B, T, d], the residual stream; inputs: what a layer was called with beside it."""
        running, program = self.converted.passing(), self.converted.program
        inputs, steps = running.inputs.get(self.kind, inputs), program.visits[self.visit].steps
        cache = inputs.get("past_key_values")
        if isinstance(cache, Cache):
            self._make_room(cache)
        if cache is None and running.untouched and not program.steps[steps[0]].base:  # nobody comes here, nor later
            for s in steps:
                if s in self.converted.units:
                    self.converted.units[s].leave()
            return x
        if self.twin_of is not None:
            self._follow(self.twin_of)
        return called(self.converted, self.module, x, inputs, running)

    def _follow(self, layer: nn.Module) -> None:
        """A twin is none of the model's modules. ValueError where others stand in these' places, or nothing does."""
        if self.module.training != layer.training:
            self.module.train(layer.training)
        if _kinds(layer) != _kinds(self.module) or next(layer.parameters()).is_meta:
            raise ValueError(
                "a layer that is visited again holds a LoRA or another foreign module, or its weights are elsewhere; "
                "merge the adapter (merge_and_unload), or load the model whole"
            )

    def _make_room(self, cache: Cache) -> None:
        """A cache made for the base alone gets the layers of these visits."""
        while len(cache.layers) <= self.index:
            like = cache.layers[self.like]
            if not isinstance(like, DynamicLayer):
                raise ValueError("a program with blocks beside the base's needs a growing cache (DynamicCache)")
            window = getattr(like, "sliding_window", None)
            cache.layers.append(type(like)() if window is None else type(like)(sliding_window=window))


def _kinds(layer: nn.Module) -> list[type]:
    """The types of a layer's modules, without a method's parts."""
    return [type(module) for name, module in layer.named_modules() if "parts" not in name.split(".")]


class Submodule:
    """A module that was added to another."""

    def __init__(self, of: nn.Module, name: str):
        self.of, self.name = of, name

    def remove(self) -> None:
        delattr(self.of, self.name)


class Between:
    """Hooks that run extra visits before a layer of the base, or after its last one."""

    def __init__(self, visits: list[Extra]):
        self.visits = visits

    def before(
        self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = args[0] if args else kwargs.pop("hidden_states")
        for visit in self.visits:
            x = visit(x, kwargs)
        return (x, *args[1:]), kwargs

    def after(self, _layer: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        x = out[0] if isinstance(out, tuple) else out
        for visit in self.visits:
            x = visit(x, {name: value for name, value in kwargs.items() if name != PASS})
        return (x, *out[1:]) if isinstance(out, tuple) else x


def extras(model: PreTrainedModel, converted: Converted) -> dict[int, Extra]:
    """The extra visits of a program, by visit, with hooks that run them; call it before units are routed."""
    program, decoder = converted.program, model.get_decoder()
    layers: Any = decoder.layers
    kinds = getattr(model.config, "layer_types", None)
    made: dict[int, Extra] = {}
    blocks = nn.ModuleList(own_block(layers, own) for own in program.own)
    converted.own = blocks
    if len(blocks):
        decoder.add_module(OWN_BLOCKS, blocks)
        converted.add(Submodule(decoder, OWN_BLOCKS))
    waiting: list[Extra] = []
    first = first_visits(program)
    for v, visit in enumerate(program.visits):
        if first.get(visit.block) == v:
            if waiting:
                converted.add(layers[visit.block].register_forward_pre_hook(Between(waiting).before, with_kwargs=True))
                waiting = []
            continue
        like = visit.block if visit.block >= 0 else program.own[-1 - visit.block].place
        twin_of = layers[visit.block] if visit.block >= 0 else None
        module = blocks[-1 - visit.block] if twin_of is None else _twin(twin_of)
        entering = _Taking(converted)
        module.register_forward_pre_hook(entering, prepend=True, with_kwargs=True)
        kind = kinds[like] if kinds else ""
        made[v] = Extra(converted, v, module, len(layers) + len(made), kind, like, twin_of)
        waiting.append(made[v])
    if waiting:
        converted.add(layers[-1].register_forward_hook(Between(waiting).after, with_kwargs=True))
    return made


def first_visits(program: Program) -> dict[int, int]:
    """Of each block of the base, the visit that the base's own list of layers makes. ValueError where these would not
    come in the base's order."""
    first: dict[int, int] = {}
    for v, visit in enumerate(program.visits):
        if visit.block >= 0:
            first.setdefault(visit.block, v)
    if list(first) != list(range(len(first))):
        raise ValueError(f"the first visits of the base's layers are {list(first)}; they must come in the base's order")
    return first


def own_block(layers: nn.ModuleList, own: OwnBlock) -> nn.Module:
    """A fresh block of a method's own, in fp32."""
    layer = layers[own.place]
    weights = {id(weight): nn.Parameter(weight.detach().to(torch.float32, copy=True)) for weight in layer.parameters()}
    block = _copied(layer, weights)
    state, name = layers[own.copy].state_dict(), norms_of(layer).before_attn
    if name is not None:
        state |= layer.get_submodule(name).state_dict(prefix=f"{name}.")
    block.load_state_dict(state)
    return block.requires_grad_(True)


def _twin(layer: nn.Module) -> nn.Module:
    """A layer's modules once more, with the same weights, whatever these are replaced by later."""
    shared = [getattr(module, name) for module in layer.modules() for name in ("_parameters", "_buffers")]
    return _copied(layer, {id(each): each for each in shared})


def _copied(layer: nn.Module, kept: dict[int, Any]) -> nn.Module:
    """A copy of a layer of the same configuration, without the hooks before it, which lead to the whole model. kept:
    what stands for something that is not copied, by its id."""
    configs = {id(config): config for module in layer.modules() if (config := vars(module).get("config")) is not None}
    return copy.deepcopy(layer, {**kept, **configs, id(layer._forward_pre_hooks): OrderedDict()})


class _Taking:
    """As `Entering`, for a visit that the decoder does not call."""

    def __init__(self, converted: Converted):
        self.converted = converted

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.converted.threads.running = kwargs.pop(PASS, None)
        return args, kwargs


def called(converted: Converted, module: nn.Module, x: Tensor, inputs: dict[str, Any], running: Pass) -> Tensor:
    """A visit's output, [B, T, d], in a pass; its weights in x's dtype: a method's own blocks are trained in fp32.
    inputs: what a layer is called with beside x."""
    inputs = {**inputs, PASS: running}
    own = any(module is block for block in converted.own)
    with converted.narrowing.lock if own else nullcontext():  # other threads would see the replaced weights
        if {weight.dtype for weight in module.parameters()} == {x.dtype}:
            out = module(x, **inputs)
        else:
            narrow = {name: weight.to(x.dtype) for name, weight in module.named_parameters()}
            out = torch.func.functional_call(module, narrow, (x,), inputs)
    return out[0] if isinstance(out, tuple) else out
