"""Turn a Hugging Face causal LM into an adaptive-depth one, in place and without touching a weight."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.core.cost import LayerWork, Ledger, StepWork
from depthdial.core.layers import Part
from depthdial.core.method import Method
from depthdial.core.program import Program
from depthdial.core.reads import check_reads
from depthdial.core.routed import Routed
from depthdial.models.causal import check_causal
from depthdial.models.converted import Converted, Fresh, converted_of, is_converted
from depthdial.models.evict import Evicting
from depthdial.models.extra import Submodule, extras
from depthdial.models.families import OWN, family_of
from depthdial.models.family import ATTN, MLP, input_norm, norms_of
from depthdial.models.generating import Counting, Generating, Preparing
from depthdial.models.head import shaping_of
from depthdial.models.offloaded import device_of
from depthdial.models.opening import Entering, Opening, head_work
from depthdial.models.saving import Saving


def convert(model: PreTrainedModel, method: Method, frozen: bool | None = None) -> PreTrainedModel:
    """Give `model` routers and whatever else `method` adds; returns the same model.

    frozen: are the base's weights held fast? None: as the method says. They are never modified here; fresh parts are in
    fp32 on the device of the layer they serve. Afterwards `model.converted` says all that was added, and `model.route`
    what the last forward pass decided. Raises ValueError for an unknown family, for a model that is converted already,
    for an attention that cannot leave single keys out where the program needs that, and for a program that does not fit
    it, whose steps leave unlike K and V, or whose method reads what it does not name.
    """
    if is_converted(model):
        raise ValueError("this model is converted already; load a fresh base to convert it again")
    check_causal(model)
    family, layers = family_of(model.config), layers_of(model)
    program, dims = method.program(len(layers)), family.dims(model.config, layers[-1])
    program.check(len(layers))
    if program.gaps and not method.by_row and model.config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"{model.config._attn_implementation} attention cannot leave out the keys of skipped tokens; "
            "load the model with attn_implementation='sdpa'"
        )
    parts = {s: method.parts(program.steps[s], dims) for s in program.parted}
    check_reads(method, program, parts, dims, model.config.vocab_size)
    ledger = _ledger(model, program, parts)
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    held = method.frozen if frozen is None else frozen
    if held:
        model.requires_grad_(False)
    converted = Converted(method, program, ledger, held)
    vars(model).update(converted=converted, route=converted.route)
    _hook(model, converted)
    modules = _modules(model, converted)
    for s in range(program.first, len(program.steps)) if program.jumps else program.parted:
        module = modules[program.visit_of[s]]
        made = {name: part.to(device_of(module)) for name, part in parts.get(s, {}).items()}
        _route(model, converted, module, s, made)
    _hold_parts(model, converted, modules)
    names = {"save_pretrained": Saving, "generate": Generating, "prepare_inputs_for_generation": Preparing}
    vars(model).update({name: kind(model) for name, kind in names.items()})
    converted.add(_Attributes(model, (*names, "converted", "route"), trainable))
    return model


def take_on(model: PreTrainedModel, method: Method) -> PreTrainedModel:
    """`convert`, or, of a model of one of our types, which has its method already, hold all weights fast but that
    method's. Raises ValueError as `convert`, and where it has another method."""
    if not model.config.model_type.startswith(OWN):
        return convert(model, method)
    converted = converted_of(model)
    if converted.method != method:
        raise ValueError(f"this model has a {type(converted.method).__name__} of its own, and not {method}")
    converted.frozen = True
    for weight in base_weights(model).values():
        weight.requires_grad_(False)
    return model


def revert(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `convert`: the stock Hugging Face model again, parts dropped; returns the same model."""
    converted_of(model).remove()
    return model


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal LM, converted or not."""
    layers = model.get_decoder().layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def head_of(model: PreTrainedModel) -> nn.Module:
    """The LM head of a causal LM."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    return head


def base_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The base's weights, converted or not, under the names they have in the stock model; no plug-in's parts, and none
    of a LoRA."""
    weights, parts = dict(model.named_parameters()), set[int]()
    if is_converted(model):
        converted = converted_of(model)
        parts |= {id(part) for unit in converted.units.values() for part in unit.parts.parameters()}
        parts |= {id(weight) for block in converted.own for weight in block.parameters()}
    tuned = tuple(f"{name.partition(INNER)[0]}." for name in weights if INNER in name)
    return {
        name.replace(INNER, "."): weight
        for name, weight in weights.items()
        if id(weight) not in parts and (INNER in name or not name.startswith(tuned))
    }


INNER = ".base_layer."
"""How peft calls, in the layers that it puts in their places, the linear maps of a base."""
STEPS = "steps"
"""The decoder's submodule that holds the parts of further visits, by step."""
WRAPPED = re.compile(r"(\.unit)+(?=\.)")


def stock_names(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook before a state is loaded: names of versions that put a wrapper around each unit become those of now."""
    for name in [name for name in state if name.startswith(prefix) and WRAPPED.search(name)]:
        state[WRAPPED.sub("", name)] = state.pop(name)


def _hook(model: PreTrainedModel, converted: Converted) -> None:
    """What notes a pass as it opens, and which pass it is as each layer begins."""
    decoder = model.get_decoder()
    whole = any(converted.program.steps[s].unit == "layer" for s in converted.program.routed)
    hooks = [
        decoder.register_forward_pre_hook(Opening(converted, model.config, whole), prepend=True, with_kwargs=True),
        decoder.register_forward_hook(Counting(converted)),
        decoder.register_load_state_dict_pre_hook(stock_names),
    ]
    kinds = getattr(model.config, "layer_types", None)
    for i, layer in enumerate(layers_of(model)):
        entering = Entering(converted, kinds[i] if kinds else "")
        hooks.append(layer.register_forward_pre_hook(entering, prepend=True, with_kwargs=True))
    starting = (model, decoder)
    for each in starting:
        vars(each)["_init_weights"] = Fresh(each, converted)
        converted.add(_Attributes(each, ("_init_weights",)))
    for hook in hooks:
        converted.add(hook)


class _Attributes:
    """What was set on a module itself, so that it can be taken away again."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], trainable: Sequence[nn.Parameter] = ()):
        self.module, self.names, self.trainable = module, names, trainable

    def remove(self) -> None:
        for name in self.names:
            del vars(self.module)[name]
        for weight in self.trainable:
            weight.requires_grad_()


class Readout:
    """The head on the residual stream, by the last norm."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __call__(self, x: Tensor, rows: int | None = None) -> Tensor:
        """x: [N, d] -> logits, fp32 [N, rows], of the first so many ids; None: of all."""
        normed = self.model.get_decoder().get_submodule("norm")(x)
        logits = nn.functional.linear(normed, head_of(self.model).get_parameter("weight")[:rows]).float()
        return shaping_of(self.model.config)(logits)


def _modules(model: PreTrainedModel, converted: Converted) -> list[nn.Module]:
    """The module that runs each visit: the base's layers, and for other visits modules that run between them."""
    program, layers = converted.program, layers_of(model)
    extra = {} if program.plain else extras(model, converted)
    return [extra[v].module if v in extra else layers[visit.block] for v, visit in enumerate(program.visits)]


def _route(model: PreTrainedModel, converted: Converted, layer: nn.Module, s: int, parts: dict[str, nn.Module]) -> None:
    """Route one step."""
    step, method, eps = converted.program.steps[s], converted.method, model.config.rms_norm_eps
    unit, norm, outlet = layer, _Normed(layer, step.unit, eps), None
    if step.unit != "layer":
        unit, names = layer.get_submodule(ATTN if step.unit == "attn" else MLP), norms_of(layer)
        after = names.after_attn if step.unit == "attn" else names.after_mlp
        norm = norm if names.before_attn is None else None
        outlet = None if after is None else layer.get_submodule(after)

    readout = Readout(model) if step.shows else None
    converted.units[s] = Routed(unit, method, converted.program, s, parts, converted.passing, norm, outlet, readout)
    if step.absent == "nothing" and step.attends:
        index: int = vars(layer.get_submodule(ATTN))["layer_idx"]
        hooks = Evicting(unit, s, index, converted.passing, str(model.config._attn_implementation))
        converted.add(hooks)


def _hold_parts(model: PreTrainedModel, converted: Converted, modules: list[nn.Module]) -> None:
    """Parts of further visits: the modules that run these are none of the model's, so the decoder holds their parts."""
    program, held = converted.program, nn.ModuleDict()
    for s, unit in converted.parted.items():
        visit = program.visit_of[s]
        if program.steps[s].block >= 0 and modules[visit] is not layers_of(model)[program.steps[s].block]:
            held[str(s)] = nn.ModuleDict({"parts": unit.parts})
    if len(held):
        model.get_decoder().add_module(STEPS, held)
        converted.add(Submodule(model.get_decoder(), STEPS))


class _Normed:
    """A unit's input as methods see it, by the norm that the layer has at the time."""

    def __init__(self, layer: nn.Module, unit: str, eps: float):
        self.layer, self.unit, self.eps = layer, unit, eps

    def __call__(self, x: Tensor) -> Tensor:
        return input_norm(self.layer, self.unit, self.eps)(x)


def _ledger(model: PreTrainedModel, program: Program, parts: dict[int, dict[str, nn.Module]]) -> Ledger:
    family, config, layers = family_of(model.config), model.config, layers_of(model)
    works: list[StepWork] = []
    for s, step in enumerate(program.steps):
        block = step.block if step.block >= 0 else program.own[-1 - step.block].place
        work: LayerWork = family.work(layers[block], config, block).of(step.unit)
        if step.attends and (keys := _keys(layers[block])) != (first := _keys(layers[0])):
            raise ValueError(f"step {s} ({step.unit} of block {step.block}): its keys come of {keys}, those of layer 0 "
                             f"of {first}; all steps must leave K and V of one shape")  # fmt: skip
        look = bypass = 0
        for part in parts.get(s, {}).values():
            if isinstance(part, Part):
                look += part.macs if part.runs_for == "all" else 0
                bypass += part.macs if part.runs_for == "skipped" else 0
        if "logits" in step.shows:
            look += min(step.head_rows or config.vocab_size, config.vocab_size) * config.hidden_size
        absent = work.kv if step.attends and step.absent == "project" else 0
        works.append(StepWork(work, look, bypass, absent))
    return Ledger(program, tuple(works), head_work(config))


def _keys(layer: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of the maps that make a layer's keys, [outputs, inputs]; of all three where one map makes them."""
    named = layer.get_submodule(ATTN).named_parameters()
    return [tuple(weight.shape) for name, weight in named if name in ("k_proj.weight", "qkv_proj.weight")]
