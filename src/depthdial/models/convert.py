"""Turn a Hugging Face causal LM into an adaptive-depth one, in place and without touching a weight."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
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


class WithNorm(nn.Module):
    """A unit and the norm that follows it, as one unit."""

    def __init__(self, unit: nn.Module, norm: nn.Module):
        super().__init__()
        self.unit, self.norm = unit, norm

    def forward(self, *args: Tensor, **kwargs: Any) -> Any:
        out = self.unit(*args, **kwargs)
        return (self.norm(out[0]), *out[1:]) if isinstance(out, tuple) else self.norm(out)


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
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    if method.frozen if frozen is None else frozen:
        model.requires_grad_(False)
    for site, made in parts.items():
        layer = layers[site.layer]
        device = next(layer.parameters()).device
        made = {name: part.to(device) for name, part in made.items()}
        _wrap(layers, family, site, method, made, route)
    hooks = [model.get_decoder().register_forward_pre_hook(_begin(route, "layer" in method.units), with_kwargs=True)]
    if parts and set(method.units) == {"mlp"}:  # which is not told where its tokens stand
        first = layers[min(routed_layers)]
        hooks.append(first.register_forward_pre_hook(_placed(route), with_kwargs=True))

    def undo() -> None:
        for hook in hooks:
            hook.remove()
        for weight in trainable:
            weight.requires_grad_()

    vars(model).update(route=route, method=method, plugin=None, undo=undo)  # plain attributes, no modules
    return model


def revert(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `convert`: the stock Hugging Face model again, parts dropped; returns the same model."""
    family = family_of(model.config)
    layers = layers_of(model)
    for site, unit in routed(model).items():
        inner = unwrapped(unit)
        if site.unit == "layer":
            layers[site.layer] = inner
            continue
        name, after = _names(family, site.unit)
        layer = layers[site.layer]
        if isinstance(inner, WithNorm):
            assert after is not None
            layer.set_submodule(after, inner.norm)
            inner = inner.unit
        layer.set_submodule(name, inner)
    model.undo()  # pyright: ignore[reportCallIssue]
    del model.route, model.method, model.plugin, model.undo
    return model


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal LM, converted or not; where whole layers are routed, their wrappers."""
    layers = model.get_decoder().layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def unwrapped(unit: nn.Module) -> nn.Module:
    """A unit without the wrappers that routing puts around it; a norm that was moved into it stays."""
    while isinstance(unit, Routed | Evicting):
        unit = unit.unit
    return unit


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
    """All routed units of a converted model, by site."""
    return {m.site: m for m in model.modules() if isinstance(m, Routed)}


def base_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The base's weights, converted or not, under the names they have in the stock model; no plug-in's parts."""
    after: dict[str, str | None] = {}
    for path, unit in model.named_modules():
        if isinstance(unit, Routed):
            layer, _, name = path.rpartition(".")
            inner, wrapper = f"{path}.unit.", unit.unit
            if isinstance(wrapper, Evicting):
                inner, wrapper = f"{inner}unit.", wrapper.unit
            if isinstance(wrapper, WithNorm):
                after[f"{inner}norm."] = f"{layer}.{_names(family_of(model.config), unit.site.unit)[1]}."
                inner = f"{inner}unit."
            after |= {f"{path}.parts.": None, inner: f"{layer}.{name}."}
    found = {}
    for name, weight in model.named_parameters():
        start = next((start for start in after if name.startswith(start)), "")
        if (stock := after.get(start, "")) is not None:
            found[stock + name.removeprefix(start)] = weight
    return found


def _wrap(
    layers: nn.ModuleList, family: Family, site: Site, method: Method, parts: dict[str, nn.Module], route: Route
) -> None:
    """Put a routed unit where the model keeps its plain one; a norm that follows the unit moves into it."""
    layer = layers[site.layer]
    if site.unit == "layer":
        unit, norm = layer, family.before_attn
        if method.kv == "evict":
            unit, norm = Evicting(layer, site, route), f"unit.{norm}"
        layers[site.layer] = Routed(unit, method, site, parts, route, norm)
        return
    name, after = _names(family, site.unit)
    inner = layer.get_submodule(name)
    if after is not None:
        inner = WithNorm(inner, layer.get_submodule(after))
        layer.set_submodule(after, nn.Identity())
    if method.kv == "evict" and site.unit == "attn":
        inner = Evicting(inner, site, route)
    layer.set_submodule(name, Routed(inner, method, site, parts, route))


def _names(family: Family, unit: str) -> tuple[str, str | None]:
    return {"attn": (family.attn, family.after_attn), "mlp": (family.mlp, family.after_mlp)}[unit]


def _begin(route: Route, whole: bool):
    """whole: are whole layers routed?"""

    def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if whole and kwargs.get("output_hidden_states"):
            raise ValueError(
                "hidden states are recorded inside a layer, before its skip; hook model.get_decoder().layers instead"
            )
        tokens = args[0] if args else kwargs.get("input_ids")
        like = kwargs["inputs_embeds"] if tokens is None else tokens
        shape = (like.shape[0], like.shape[1])
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            mask = mask[:, -shape[1] :].bool()
        route.begin(shape, mask if isinstance(mask, Tensor) and mask.ndim == 2 else None, like.device)

    return hook


def _placed(route: Route):
    def hook(_module: nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
        route.positions = kwargs["position_ids"]

    return hook


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
        head=sum(weight.numel() for name, weight in head_of(model).named_parameters() if name == "weight"),
        projects_kv=method.kv == "project",
        always=always,
        skipped=skipped,
        skips=method.skips,
    )
