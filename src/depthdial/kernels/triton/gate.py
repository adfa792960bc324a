"""What of programs and routers these kernels run: each layer once, decided by FlexiDepth's gate or a table."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from depthdial.kernels.tensors import Act, Dense, LayerTensors, ModelTensors, Norm, RouterTensors


class Gate(NamedTuple):
    """number = folded . code + bias; code = tanh(norm(enc @ z)), or norm(tanh(enc @ z))."""

    enc: Tensor
    """T [r, d]"""
    scale: Tensor
    """float32 [r]: the norm's weight."""
    eps: float
    norm_first: bool
    folded: Tensor
    """float32 [r]"""
    bias: float
    cut: float
    soft: bool


def gate_of(router: RouterTensors) -> Gate:
    """Raises ValueError for other operations."""
    match router.ops:
        case Dense(enc, None), Norm() as norm, Act("tanh"), Dense(folded, bias):
            norm_first = True
        case Dense(enc, None), Act("tanh"), Norm() as norm, Dense(folded, bias):
            norm_first = False
        case _:
            raise ValueError(
                "these kernels know routers of one form only: two products, a norm and a tanh between them"
            )
    return Gate(
        enc.detach(), norm.weight.detach().float(), norm.eps, norm_first, folded.detach()[0].float(),
        0.0 if bias is None else float(bias), router.cut, router.soft,
    )  # fmt: skip


def gates_of(model: ModelTensors) -> tuple[Gate | None, ...]:
    """Of each visit. Raises ValueError, one line, for what these kernels do not run."""
    if odd := next(filter(None, map(_odd, model.layers)), None) or _odd_model(model):
        raise ValueError(f"these kernels do not know {odd}")
    plain(model.embed)
    plain(model.head)
    return tuple(_gate(visit, layer, model.norm.weight.dtype) for visit, layer in enumerate(model.layers))


def _odd(layer: LayerTensors) -> str | None:
    """What of a layer the CPU's kernels or torch alone can do."""
    norms = layer.before_attn, layer.before_mlp, layer.after_attn, layer.after_mlp, layer.q_norm, layer.k_norm
    oddities = {
        "a mixture of experts": layer.experts is not None,
        "sinks of attention": layer.sinks is not None,
        "layers without a norm before attention": layer.bare,
        "an MLP without a gate": layer.up is None or layer.activation == "relu2",
        "capped scores": layer.softcap is not None,
        "multipliers": layer.residual != 1.0,
        "norms after the rope": layer.norms_turned,
        "ropes that turn neighbours": layer.pairs != "halves",
        "norms over all heads": layer.q_norm is not None and layer.q_norm.weight.shape[0] != layer.head_dim,
        "norms that round once": any(norm.once for norm in norms if norm is not None),
    }
    return next((name for name, there in oddities.items() if there), None)


def _odd_model(model: ModelTensors) -> str | None:
    half = model.layers[0].head_dim // 2
    if model.stretches or any(rope.exact or len(rope.inv_freq) != half for rope in model.ropes.values()):
        return "ropes of this kind"
    return "multipliers" if model.logit_scale != 1.0 or model.query_scale is not None else None


def _gate(visit: int, layer: LayerTensors, dtype: torch.dtype) -> Gate | None:
    assert layer.up is not None, "refused in `gates_of`"
    for linear in (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down):
        plain(linear.weight)
    branch = layer.branch
    if layer.mlp_branch is not None:
        raise ValueError(f"these kernels decide a layer as a whole, and visit {visit} decides its MLP apart")
    if branch.then is not None or branch.otherwise is not None or not layer.base:
        raise ValueError(f"these kernels run one layer after the other, and tokens jump at visit {visit}")
    if branch.by == "open":
        raise ValueError(f"these kernels do not wait for Python, which decides at visit {visit}")
    if branch.router is None:
        return None
    if layer.whole and branch.router.soft:
        raise ValueError(f"these kernels weigh the MLP of a layer, and visit {visit} is weighed as a whole")
    if layer.absent == "nothing":
        raise ValueError(f"these kernels read all that lies before a token, and a router leaves gaps at visit {visit}")
    gate = gate_of(branch.router)
    if gate.enc.dtype != dtype:
        raise ValueError(f"these kernels round a router's code, and that of visit {visit} is its decision")
    return gate


def plain(weight: object) -> Tensor:
    if not isinstance(weight, Tensor):
        raise ValueError("int8 weights run on the CPU only; on a GPU leave weights='auto'")
    return weight
