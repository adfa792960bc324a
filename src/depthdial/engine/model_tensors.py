"""A converted model as the kernels take it: references to its tensors, and what each layer's gate says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from depthdial.core.gate import Gate
from depthdial.core.layers import Adapter, LinearRouter, Router
from depthdial.core.layers import plain as plain_layer
from depthdial.core.method import Method
from depthdial.engine.runner import TorchRunner
from depthdial.kernels.tensors import AdapterTensors, LayerTensors, ModelTensors, RouterTensors
from depthdial.models.block import Spine


def tensors_of(spine: Spine, plain: TorchRunner) -> ModelTensors:
    """The model for the kernels: references to its tensors, and each layer's gate as `Method.gate` says it.

    Raises ValueError for a method that says too little of itself for a native pass.
    """
    routed: dict[int, dict[str, Any]] = {}
    for site, parts in plain.parts.items():
        routed.setdefault(site.layer, {})[site.unit] = parts
    if any(set(units) not in ({"attn", "mlp"}, {"layer"}) for units in routed.values()):
        raise ValueError("the method does not route attention and MLP together")
    layers = []
    for i, block in enumerate(spine.blocks):
        router = adapter = None
        if i in routed:
            gate = _gate(plain.method, routed[i], i)
            router = None if gate.router is None else _router(gate.router, gate, spine.norm.weight.dtype)
            adapter = None if gate.adapter is None else _adapter(gate.adapter, spine.norm.weight.dtype)
        sparse = i in routed and plain.method.kv == "none"
        layers.append(LayerTensors(**vars(block), router=router, adapter=adapter, sparse_kv=sparse))
    return ModelTensors(
        spine.embed, tuple(layers), spine.norm, spine.head, spine.ropes, spine.embed_scale, spine.softcap
    )


def _gate(method: Method, parts: Mapping[str, Any], layer: int) -> Gate:
    gate = method.gate(parts, layer)
    if gate is None or (gate.router is None and method.reads_input):
        raise ValueError("the method gives no gate that could be fused (Method.gate)")
    if "layer" in parts and (gate.weights == "soft" or gate.adapter is not None):
        raise ValueError("the kernels weigh and replace the MLP of a layer, not the layer as a whole")
    parts_read = [part for part in (gate.router, gate.adapter) if part is not None]
    if not all(plain_layer(layer) for part in parts_read for layer in part.children()):
        raise ValueError("its routers or adapters hold a LoRA or another foreign layer; merge it (merge_and_unload)")
    return gate


@torch.no_grad()
def _router(router: Router | LinearRouter, gate: Gate, dtype: torch.dtype) -> RouterTensors:
    if router.fixed:
        return _number(router, gate, dtype)
    if isinstance(router, LinearRouter):
        return _linear_router(router.folded, gate.cut, dtype)
    return RouterTensors(
        router.enc.weight.to(dtype),
        router.norm.weight.float(),
        router.norm.eps or 0.0,
        "norm_tanh" if router.order == "norm_tanh" else "tanh_norm",
        router.folded[0],
        float(router.bias),
        gate.cut,
        gate.weights == "soft",
    )


def _number(router: Router | LinearRouter, gate: Gate, dtype: torch.dtype) -> RouterTensors:
    """A router that is the same for every token: a code of zeros and the number itself as the bias."""
    some = router.enc if isinstance(router, Router) else router.head
    logit = float(router(torch.ones(1, 1, some.in_features, device=some.weight.device)))
    rows = some.out_features if isinstance(router, Router) else 1
    zeros = torch.zeros(rows, device=some.weight.device)
    order = "norm_tanh" if isinstance(router, Router) else "linear"
    enc = torch.zeros(rows, some.in_features, dtype=dtype, device=some.weight.device)
    return RouterTensors(enc, zeros + 1, 1.0, order, zeros, logit, gate.cut, gate.weights == "soft")


def _linear_router(vector: Tensor, cut: float, dtype: torch.dtype) -> RouterTensors:
    """vector: fp32 [d]. In a narrower dtype it is the sum of three: the first has its leading digits, and so on."""
    rows, rest = [], vector
    for _ in range(1 if dtype == torch.float32 else 3):
        rows.append(rest.to(dtype))
        rest = rest - rows[-1].float()
    ones = torch.ones(len(rows), device=vector.device)
    return RouterTensors(torch.stack(rows), ones, 0.0, "linear", ones, 0.0, cut)


def _adapter(adapter: Adapter, dtype: torch.dtype) -> AdapterTensors:
    return AdapterTensors(*(part.weight.detach().to(dtype) for part in (adapter.gate, adapter.up, adapter.down)))
