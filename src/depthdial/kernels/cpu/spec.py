"""A model's tensors as the structs of csrc/abi.h."""

from __future__ import annotations

import torch
from torch import Tensor

from depthdial.kernels.cpu.abi import (
    ACTIVATIONS,
    ACTS,
    DECIDERS,
    OP_DENSE,
    OP_NORM,
    OP_TANH,
    BranchSpec,
    LayerSpec,
    ModelSpec,
    OpSpec,
    Pointers,
    RouterSpec,
)
from depthdial.kernels.tensors import (
    END,
    Act,
    Branch,
    Dense,
    LayerTensors,
    Look,
    ModelTensors,
    Norm,
    Op,
    RouterTensors,
    rows_of,
)


def model_spec(model: ModelTensors, to: Pointers, max_tokens: int) -> ModelSpec:
    """to: what keeps the tensors alive. Raises ValueError for what cannot run natively."""
    dtype, ropes = model.norm.weight.dtype, list(model.ropes)
    layers = (LayerSpec * len(model.layers))()
    begins = [s for s, step in enumerate(model.steps) if step.unit != "mlp"]
    for visit, layer in enumerate(model.layers):
        layers[visit] = _layer(layer, ropes, model.ropes[layer.rope].inv_freq.shape[0], to)
        layers[visit].cache = visit if layer.cache is None else layer.cache
        layers[visit].step = begins[visit]
    for s, (visit, unit, branch) in enumerate(model.steps):
        following = s + 1 if s + 1 < len(model.steps) else END
        spec = _branch(branch, to, dtype, rows_of(model.head))
        for name, target in (("then", branch.then), ("otherwise", branch.otherwise)):
            if target is not None and target != END and not visit < target < len(begins):
                raise ValueError(f"step {s}: {name} is visit {target}, which does not come after visit {visit}")
            setattr(spec, name, following if target is None else END if target == END else begins[target])
        setattr(layers[visit], "mlp_branch" if unit == "mlp" else "branch", spec)
    half = model.layers[0].head_dim // 2
    frequencies = torch.stack([padded(model.ropes[name].inv_freq.float().cpu(), half) for name in ropes])
    scaling = torch.tensor([model.ropes[name].scaling for name in ropes], dtype=torch.float32)
    if len(exact := {model.ropes[name].exact for name in ropes}) > 1:
        raise ValueError("native kernels round all ropes of a model the same way; run this model in torch")
    return ModelSpec(
        *(layers, to.mat(model.embed), to.mat(model.head), to.norm(model.norm)),
        *(to.address(frequencies), to.address(scaling)),
        *(len(layers), model.norm.weight.shape[0], len(ropes), dtype == torch.bfloat16, max_tokens),
        *(exact.pop(), model.query_scale is not None),
        *(model.embed_scale, model.logit_scale, model.softcap or 0.0),
    )


def padded(frequencies: Tensor, half: int) -> Tensor:
    """[..., half], zeros behind those of a rope that turns only a part of a head."""
    return torch.nn.functional.pad(frequencies, (0, half - frequencies.shape[-1])).contiguous()


def _layer(layer: LayerTensors, ropes: list[str], turned: int, to: Pointers) -> LayerSpec:
    if layer.experts is not None or layer.sinks is not None:
        raise ValueError("native kernels have no mixture of experts and no sinks")
    if layer.heads % layer.kv_heads or layer.heads // layer.kv_heads > 64:
        raise ValueError(f"{layer.heads} heads cannot share {layer.kv_heads} K/V heads in native kernels")
    spec = LayerSpec()
    for name in ("before_attn", "before_mlp", "after_attn", "after_mlp", "q_norm", "k_norm"):
        setattr(spec, name, to.norm(getattr(layer, name)))
    for name in ("q", "k", "v", "o", "gate", "up", "down"):
        setattr(spec, name, to.linear(getattr(layer, name)))
    if layer.adapter is not None:
        spec.adapter_gate, spec.adapter_up, spec.adapter_down = (to.mat(weight) for weight in layer.adapter)
    spec.halves, spec.nothing, spec.base = layer.mlp_branch is not None, layer.absent == "nothing", layer.base
    spec.whole = layer.whole
    spec.heads, spec.kv_heads, spec.head_dim = layer.heads, layer.kv_heads, layer.head_dim
    spec.rope, spec.act = ropes.index(layer.rope), ACTIVATIONS.index(layer.activation)
    spec.window, spec.scale, spec.softcap = layer.window or 0, layer.scale, layer.softcap or 0.0
    spec.bare, spec.residual, spec.late = layer.bare, layer.residual, layer.norms_turned
    spec.turned, spec.neighbours = turned, layer.pairs == "neighbours"
    spec.wide = layer.q_norm is not None and layer.q_norm.weight.shape[0] != layer.head_dim
    return spec


def _branch(branch: Branch, to: Pointers, dtype: torch.dtype, vocabulary: int) -> BranchSpec:
    spec = BranchSpec(by=DECIDERS.index(branch.by))
    if branch.by == "ops":
        if branch.router is None:
            raise ValueError("a branch that is decided by operations has no router")
        spec.router = _router(branch.router, to, dtype, vocabulary)
    return spec


def _router(router: RouterTensors, to: Pointers, dtype: torch.dtype, vocabulary: int) -> RouterSpec:
    first, later = router.ops[0], list(router.ops[1:])
    spec = RouterSpec(cut=router.cut, soft=router.soft)
    if isinstance(first, Look):
        spec.look, width = vocabulary if first.rows is None else first.rows, 2
        if not 2 <= spec.look <= vocabulary:
            raise ValueError(f"a router looks at {spec.look} tokens of a vocabulary of {vocabulary}")
    elif isinstance(first, Dense):
        weight, width = first.weight.detach(), first.weight.shape[0]
        if weight.dtype == torch.float32 and dtype != torch.float32:
            weight, together = _in_three(weight, dtype)
            later, spec.wide = [Dense(together, first.bias), *later], True
            first = Dense(weight)
        spec.first = to.mat(weight, first.bias)
    else:
        raise ValueError("the first operation of a router must be a Dense or a Look")
    shapes = [width if isinstance(first, Look) else spec.first.rows]
    for op in later:
        shapes.append(op.weight.shape[0] if isinstance(op, Dense) else shapes[-1])
    if shapes[-1] != 1:
        raise ValueError(f"the operations of a router must leave one number, not {shapes[-1]}")
    ops = (OpSpec * len(later))(*(_op(op, width, to) for op, width in zip(later, shapes, strict=False)))
    to.held.append(ops)
    spec.ops, spec.count = ops, len(later)
    return spec


def _op(op: Op, width: int, to: Pointers) -> OpSpec:
    """width: of the code it gets."""
    if isinstance(op, Act):
        return OpSpec(kind=OP_TANH + ACTS.index(op.name), rows=width, cols=width)
    if isinstance(op, Look) or op.weight.shape[-1] != width:
        raise ValueError(f"an operation of a router does not take the {width} numbers that it is given")
    weight = to.address(op.weight.detach().float())
    if isinstance(op, Norm):
        return OpSpec(weight=weight, eps=op.eps, kind=OP_NORM, rows=width, cols=width)
    bias = None if op.bias is None else to.address(op.bias.detach().float())
    return OpSpec(weight=weight, bias=bias, kind=OP_DENSE, rows=op.weight.shape[0], cols=width)


def _in_three(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """fp32 [out, in] as the sum of three of a narrower dtype, [3 out, in]: the first has the leading digits, and so on;
    and what sums their products up again, fp32 [out, 3 out]."""
    parts, rest = [], weight
    for _ in range(3):
        parts.append(rest.to(dtype))
        rest = rest - parts[-1].float()
    return torch.cat(parts), torch.eye(len(weight), device=weight.device).repeat(1, 3)
