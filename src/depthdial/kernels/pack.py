"""A model with int8 weights from one in bf16 or fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from depthdial.kernels.tensors import AdapterTensors, Int8, LayerTensors, Linear, ModelTensors, Weight


def int8_pack(weight: Tensor) -> Int8:
    """[out, in] -> Int8: symmetric, one scale a row, rounded half to even."""
    wide = weight.float()
    scale = (wide.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return Int8((wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale)


def packed(model: ModelTensors) -> ModelTensors:
    """Every matrix that is not int8 yet, but for the routers': their decisions are the method's, not the format's.

    Weights that are shared stay so: of a head tied to the embedding (a token's vector is looked up in int8 too), of
    visits of the same layer.
    """
    known: dict[int, Int8] = {}

    def pack(weight: Weight) -> Int8:
        if isinstance(weight, Int8):
            return weight
        if not isinstance(weight, Tensor):
            raise TypeError("a weight in blocks of 4 to 8 bits is not packed again")
        if id(weight) not in known:
            known[id(weight)] = int8_pack(weight.detach())
        return known[id(weight)]

    def visit(layer: LayerTensors) -> LayerTensors:
        if layer.experts is not None:
            raise ValueError("a mixture of experts runs in the dtype it was loaded in; use weights='auto'")
        linears = {name: getattr(layer, name) for name in ("q", "k", "v", "o", "gate", "up", "down")}
        packed = {name: Linear(pack(part.weight), part.bias) for name, part in linears.items() if part is not None}
        layer = layer._replace(**packed)
        return layer._replace(adapter=layer.adapter and AdapterTensors(*map(pack, layer.adapter)))

    return model._replace(
        embed=pack(model.embed), head=pack(model.head), layers=tuple(visit(layer) for layer in model.layers)
    )
