"""Turn a Hugging Face causal LM into an adaptive-depth one, in place and without touching a weight."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from depthdial.core.cost import Ledger
from depthdial.core.decision import Site
from depthdial.core.layers import Part
from depthdial.core.method import Method
from depthdial.core.route import Route
from depthdial.core.routed import Routed
from depthdial.models.causal import check_causal
from depthdial.models.evict import Evicting
from depthdial.models.families import family_of
from depthdial.models.family import Family
from depthdial.models.generating import Generating
from depthdial.models.offloaded import device_of
from depthdial.models.opening import Opening, Placing, head_work
from depthdial.models.saving import Saving


def convert(model: PreTrainedModel, method: Method, frozen: bool | None = None) -> PreTrainedModel:
    """Give `model` routers and whatever else `method` adds; returns the same model.

    frozen: are the base's weights held fast? None: as the method says. They are never modified here; fresh parts are in
    fp32 on the device of the layer they serve. Afterwards `model.route` holds the decisions of the last forward pass,
    `model.method` the method. Raises ValueError for an unknown family, for a model that is converted already, and for
    an attention that cannot leave single keys out where the method needs that.
    """
    if isinstance(getattr(model, "route", None), Route):
        raise ValueError("this model is converted already; load a fresh base to convert it again")
    check_causal(model)
    family = family_of(model.config)
    if method.kv == "evict" and model.config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"{model.config._attn_implementation} attention cannot leave out the keys of skipped tokens; "
            "load the model with attn_implementation='sdpa'"
        )
    layers = layers_of(model)
    routed_layers = list(method.layers(len(layers)))
    dims = family.dims(model.config)
    parts = {Site(i, unit): method.parts(Site(i, unit), dims) for i in routed_layers for unit in method.units}
    route = Route(_ledger(model, method, parts))
    conversion = Conversion(model, method, route)
    if method.frozen if frozen is None else frozen:
        model.requires_grad_(False)
    for site, made in parts.items():
        device = device_of(layers[site.layer])
        conversion.add(site, {name: part.to(device) for name, part in made.items()})
    # plain attributes, no modules
    vars(model).update(route=route, method=method, plugin=None, conversion=conversion)
    return model


def revert(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `convert`: the stock Hugging Face model again, parts dropped; returns the same model."""
    conversion = model.conversion
    assert isinstance(conversion, Conversion)
    conversion.remove()
    del model.route, model.method, model.plugin, model.conversion
    return model


class Conversion:
    """What `convert` adds to a model, so that it can be taken away again; it is copied and pickled with the model."""

    def __init__(self, model: PreTrainedModel, method: Method, route: Route):
        self.sites: dict[Site, Routed] = {}
        self._family, self._method, self._route = family_of(model.config), method, route
        self._layers = layers_of(model)
        self._evicting: list[Evicting] = []
        self._trainable = [weight for weight in model.parameters() if weight.requires_grad]
        decoder = model.get_decoder()
        self._hooks = [
            decoder.register_forward_pre_hook(
                Opening(route, model.config, "layer" in method.units), prepend=True, with_kwargs=True
            ),
            decoder.register_load_state_dict_pre_hook(stock_names),
        ]
        self._starting = (model, decoder)
        for each in self._starting:
            vars(each)["_init_weights"] = Fresh(each, self.sites)
        vars(model).update(save_pretrained=Saving(model), generate=Generating(model))

    def add(self, site: Site, parts: dict[str, nn.Module]) -> None:
        """Route one unit."""
        family, layer, route = self._family, self._layers[site.layer], self._route
        if site.unit == "layer":
            unit, norm, outlet = layer, family.before_attn, None
        else:
            name, after = _names(family, site.unit)
            unit, norm = layer.get_submodule(name), None
            outlet = None if after is None else layer.get_submodule(after)
        if not self.sites and self._method.units == ("mlp",):  # which is not told where its tokens stand
            self._hooks.append(layer.register_forward_pre_hook(Placing(route), with_kwargs=True))
        self.sites[site] = Routed(unit, self._method, site, parts, route, norm, outlet)
        if self._method.kv == "evict" and site.unit != "mlp":
            self._evicting.append(Evicting(unit, site, route))

    def remove(self) -> None:
        """Leave the model as it was."""
        for each in (*self._evicting, *self.sites.values(), *self._hooks):
            each.remove()
        for each in self._starting:
            del vars(each)["_init_weights"]
        for name in ("save_pretrained", "generate"):
            del vars(self._starting[0])[name]
        for weight in self._trainable:
            weight.requires_grad_()


class Fresh:
    """A model's `_init_weights`, which knows our parts, too: transformers asks for their layers, and for a part itself
    only where it has a weight of its own."""

    def __init__(self, model: PreTrainedModel, sites: dict[Site, Routed]):
        self.model, self.sites = model, sites

    def __call__(self, module: nn.Module) -> None:
        for unit in self.sites.values():
            for part in unit.parts.values():
                if isinstance(part, Part) and any(module is each for each in (part, *part.children())):
                    part.reset_parameters()
                    return
        type(self.model)._init_weights(self.model, module)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal LM, converted or not; where whole layers are routed, their wrappers."""
    layers = model.get_decoder().layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def head_of(model: PreTrainedModel) -> nn.Module:
    """The LM head of a causal LM."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    return head


def route_of(model: PreTrainedModel) -> Route:
    """The route of a converted model. ValueError for one that is not converted."""
    route = getattr(model, "route", None)
    if not isinstance(route, Route):
        raise ValueError("this model is not converted; call convert(model, method) or load(...) first")
    return route


def method_of(model: PreTrainedModel) -> Method:
    """The method of a converted model. ValueError for one that is not converted."""
    method = getattr(model, "method", None)
    if not isinstance(method, Method):
        raise ValueError("this model has no method; call convert(model, method) or load(...) first")
    return method


def routed(model: PreTrainedModel) -> dict[Site, Routed]:
    """All routed units of a converted model, by site; none of another."""
    conversion = getattr(model, "conversion", None)
    return dict(conversion.sites) if isinstance(conversion, Conversion) else {}


def base_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The base's weights, converted or not, under the names they have in the stock model; no plug-in's parts."""
    parts = {id(part) for unit in routed(model).values() for part in unit.parts.parameters()}
    return {name: weight for name, weight in model.named_parameters() if id(weight) not in parts}


WRAPPED = re.compile(r"(\.unit)+(?=\.)")


def stock_names(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook before a state is loaded: names of versions that put a wrapper around each unit become those of now."""
    for name in [name for name in state if name.startswith(prefix) and WRAPPED.search(name)]:
        state[WRAPPED.sub("", name)] = state.pop(name)


def _names(family: Family, unit: str) -> tuple[str, str | None]:
    return {"attn": (family.attn, family.after_attn), "mlp": (family.mlp, family.after_mlp)}[unit]


def _ledger(model: PreTrainedModel, method: Method, parts: dict[Site, dict[str, nn.Module]]) -> Ledger:
    family, config = family_of(model.config), model.config
    always, skipped = dict.fromkeys(parts, 0), {}  # every site is named, also one without parts
    for site, made in parts.items():
        for part in made.values():
            assert isinstance(part, Part)
            book = always if part.runs_for == "all" else skipped
            book[site] = book.get(site, 0) + part.macs
    return Ledger(
        layers=tuple(family.work(layer, config, i) for i, layer in enumerate(layers_of(model))),
        head=head_work(config),
        projects_kv=method.kv == "project",
        always=always,
        skipped=skipped,
        skips=method.skips,
    )
