"""A converted model as the kernels take it: references to its tensors, and what each step says of itself."""

from __future__ import annotations

import torch
from torch import Tensor

from depthdial.core.layers import Adapter
from depthdial.core.layers import plain as plain_layer
from depthdial.core.lowered import Lowered
from depthdial.core.ops import Act, Dense, Norm
from depthdial.engine.runner import TorchRunner
from depthdial.kernels.tensors import AdapterTensors, LayerTensors, ModelTensors, RouterTensors
from depthdial.models.block import Spine


def tensors_of(spine: Spine, plain: TorchRunner) -> ModelTensors:
    """The model for the kernels: references to its tensors, and each step as `Method.lowered` says it.

    Raises ValueError for a method that says too little of itself for a native pass.
    """
    program, dtype = plain.program, spine.norm.weight.dtype
    if program.jumps:
        raise ValueError("tokens jump, and the kernels run every layer in turn")
    layers = []
    for visit, block in zip(program.visits, spine.blocks, strict=True):
        routed = [s for s in visit.steps if s in plain.parts]
        router = adapter = None
        if routed:
            if len(routed) != len(visit.steps):
                raise ValueError("the method does not route attention and MLP together")
            lowered = [_lowered(plain, s) for s in routed]
            first, last = lowered[0], lowered[-1]
            if len(lowered) == 1 and (first.weights == "soft" or first.bypass is not None):
                raise ValueError("the kernels weigh and replace the MLP of a layer, not the layer as a whole")
            if len(lowered) == 2 and last.ops is not None:
                raise ValueError("the method does not route attention and MLP together")
            router = None if first.ops is None else _router(first, last.weights == "soft", dtype)
            adapter = None if last.bypass is None else _adapter(last.bypass, dtype)
        sparse = bool(routed) and program.steps[visit.steps[0]].absent == "nothing"
        layers.append(LayerTensors(**vars(block), router=router, adapter=adapter, sparse_kv=sparse))
    return ModelTensors(
        spine.embed, tuple(layers), spine.norm, spine.head, spine.ropes, spine.embed_scale, spine.softcap
    )


def _lowered(plain: TorchRunner, s: int) -> Lowered:
    lowered = plain.method.lowered(plain.parts[s], s)
    if lowered is None or (lowered.ops is None and lowered.like is None and not plain.method.ahead):
        raise ValueError("the method gives no operations that could be fused (Method.lowered)")
    if lowered.bypass is not None and not all(plain_layer(layer) for layer in lowered.bypass.children()):
        raise ValueError("its routers or adapters hold a LoRA or another foreign layer; merge it (merge_and_unload)")
    return lowered


@torch.no_grad()
def _router(lowered: Lowered, soft: bool, dtype: torch.dtype) -> RouterTensors:
    match lowered.ops:
        case (Dense(wide=True) as dense,):
            return _linear_router(dense.weight[0], lowered.cut, dtype)
        case (Dense(weight, bias),):  # a number
            zeros = weight.new_zeros(1, weight.shape[1]).to(dtype)
            ones = torch.ones(1, device=weight.device)
            return RouterTensors(zeros, ones, 1.0, "norm_tanh", 0 * ones, float(bias[0]), lowered.cut, soft)  # pyright: ignore[reportOptionalSubscript]
        case (Dense(enc, None), Norm(scale, eps), Act("tanh"), Dense(folded, bias)):
            order = "norm_tanh"
        case (Dense(enc, None), Act("tanh"), Norm(scale, eps), Dense(folded, bias)):
            order = "tanh_norm"
        case _:
            raise ValueError("the kernels do not know this router")
    number = 0.0 if bias is None else float(bias[0])
    return RouterTensors(enc.to(dtype), scale, eps, order, folded[0], number, lowered.cut, soft)


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
