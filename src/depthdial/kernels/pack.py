"""A model with int8 weights from one in bf16 or fp32."""

from __future__ import annotations

from depthdial.kernels.reference import int8_pack
from depthdial.kernels.tensors import AdapterTensors, Int8, LayerTensors, Linear, ModelTensors, Weight


def packed(model: ModelTensors) -> ModelTensors:
    """Every matrix that is not int8 yet, but for the routers': their decisions are the method's, not the format's.

    A head tied to the embedding stays tied, so a token's vector is looked up in int8 too.
    """
    embed = _packed(model.embed)
    head = embed if model.head is model.embed else _packed(model.head)
    return model._replace(embed=embed, head=head, layers=tuple(packed_layer(layer) for layer in model.layers))


def packed_layer(layer: LayerTensors) -> LayerTensors:
    """One layer: an owner short of memory can pack layer by layer and drop each original."""
    names = ("q", "k", "v", "o", "gate", "up", "down")
    linears: dict[str, Linear] = {name: getattr(layer, name) for name in names}
    layer = layer._replace(**{name: Linear(_packed(part.weight), part.bias) for name, part in linears.items()})
    if layer.adapter is None:
        return layer
    return layer._replace(adapter=AdapterTensors(*(_packed(weight) for weight in layer.adapter)))


def _packed(weight: Weight) -> Int8:
    return weight if isinstance(weight, Int8) else int8_pack(weight.detach())
