"""The structs of csrc/abi.h, field by field, and how tensors go into them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from depthdial.kernels.blocks import FORMS, Blocks
from depthdial.kernels.tensors import Int8, Linear, Norm, Weight

ACTS = ("tanh", "silu", "relu", "gelu", "sigmoid")
"""Operations on each number of a code, numbered from OP_TANH on as in csrc/abi.h."""
OP_DENSE, OP_NORM, OP_TANH = 0, 1, 2
ACTIVATIONS = ("silu", "gelu_tanh", "relu2")
"""Of an MLP, numbered as in csrc/abi.h."""
DECIDERS = ("no", "ops", "table", "open")
"""Of a `Branch`, numbered as in csrc/abi.h."""
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
BLOCKS = {name: 3 + i for i, name in enumerate(FORMS)}


class Mat(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("data", "scale", "bias")),
        *((name, c_int32) for name in ("rows", "cols", "kind")),
    ]


class NormSpec(Structure):
    _fields_ = [("weight", c_void_p), ("eps", c_float), ("once", c_int32)]


class OpSpec(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("weight", "bias")),
        ("eps", c_float),
        *((name, c_int32) for name in ("kind", "rows", "cols")),
    ]


class RouterSpec(Structure):
    _fields_ = [
        ("first", Mat),
        ("ops", POINTER(OpSpec)),
        ("cut", c_float),
        *((name, c_int32) for name in ("count", "look", "wide", "soft")),
    ]


class BranchSpec(Structure):
    _fields_ = [("router", RouterSpec), *((name, c_int32) for name in ("by", "then", "otherwise"))]


class LayerSpec(Structure):
    _fields_ = [
        *((name, NormSpec) for name in ("before_attn", "before_mlp", "after_attn", "after_mlp", "q_norm", "k_norm")),
        *((name, Mat) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, Mat) for name in ("adapter_gate", "adapter_up", "adapter_down")),
        *((name, BranchSpec) for name in ("branch", "mlp_branch")),
        *((name, c_int32) for name in ("step", "halves", "cache", "nothing", "base", "whole")),
        *((name, c_int32) for name in ("heads", "kv_heads", "head_dim", "rope", "act", "window")),
        *((name, c_int32) for name in ("bare", "wide", "late", "turned", "neighbours")),
        *((name, c_float) for name in ("scale", "softcap", "residual")),
    ]


class ModelSpec(Structure):
    _fields_ = [
        ("layers", POINTER(LayerSpec)),
        *((name, Mat) for name in ("embed", "head")),
        ("norm", NormSpec),
        *((name, c_void_p) for name in ("inv_freq", "rope_scaling")),
        *((name, c_int32) for name in ("count", "dim", "ropes", "bf16", "max_tokens", "exact_ropes", "query_scales")),
        *((name, c_float) for name in ("embed_scale", "logit_scale", "softcap")),
    ]


class PassSpec(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("ids", "positions", "sequences", "page_table", "k_cache", "v_cache", "held")),
        *((name, c_void_p) for name in ("offsets", "given", "logits", "argmax", "keep", "score")),
        *((name, c_void_p) for name in ("x", "z", "run", "skip", "at", "inv_freq", "query_scale", "asked")),
        *((name, c_int64) for name in ("table_stride", "cache_stride")),
        *((name, c_int32) for name in ("tokens", "resumed", "table_rows", "table_columns", "pages", "asked_count")),
        ("reading", c_int32),
        *((name, c_int64) for name in ("rows_run", "layers_run", "weight_bytes", "kv_bytes", "padded_rows", "looks")),
    ]


class Pointers:
    """Turns tensors into structs and keeps every tensor alive whose address it gave away."""

    def __init__(self) -> None:
        self.held: list[object] = []

    def address(self, tensor: Tensor) -> int:
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        self.held.append(tensor)
        return tensor.data_ptr()

    def mat(self, weight: Weight, bias: Tensor | None = None) -> Mat:
        if isinstance(weight, Blocks):
            pointers = self.address(weight.codes), self.address(weight.scales)
            wide = None if bias is None else self.address(bias.detach().float())
            return Mat(*pointers, wide, weight.rows, weight.cols, BLOCKS[weight.kind])
        values = weight.values if isinstance(weight, Int8) else weight
        scale = self.address(weight.scale) if isinstance(weight, Int8) else None
        wide = None if bias is None else self.address(bias.detach().float())
        rows, cols = values.shape
        return Mat(self.address(values.detach()), scale, wide, rows, cols, KINDS[values.dtype])

    def linear(self, part: Linear | None) -> Mat:
        return Mat() if part is None else self.mat(part.weight, part.bias)

    def norm(self, part: Norm | None) -> NormSpec:
        if part is None:
            return NormSpec()
        weight = part.weight.detach().float()
        return NormSpec(self.address(weight + 1 if part.plus_one else weight), part.eps, part.plus_one or part.once)


def load(path: str) -> ctypes.CDLL:
    """The library, with the signatures of its functions."""
    found = ctypes.CDLL(path)
    found.depthdial_ready.argtypes = []
    found.depthdial_ready.restype = ctypes.c_int
    found.depthdial_new.argtypes = [POINTER(ModelSpec), ctypes.c_int]
    found.depthdial_new.restype = c_void_p
    found.depthdial_free.argtypes = [c_void_p]
    found.depthdial_free.restype = None
    found.depthdial_read.argtypes = [c_void_p, c_void_p, c_int64]
    found.depthdial_read.restype = c_int64
    for run in (found.depthdial_steps, found.depthdial_prefill):
        run.argtypes = [c_void_p, POINTER(PassSpec), ctypes.c_int, ctypes.c_int]
        run.restype = ctypes.c_int
    found.depthdial_prefills.argtypes = [c_void_p]
    found.depthdial_prefills.restype = ctypes.c_int
    return found
