"""Make one machine train at the speed it has: compiled pieces, and memory that is reused instead of returned."""

from __future__ import annotations

import ctypes
import logging
import sys

import torch
from transformers import PreTrainedModel, TrainingArguments

from depthdial.core.layers import Part
from depthdial.core.routed import mixed
from depthdial.models.convert import layers_of
from depthdial.models.converted import converted_of
from depthdial.train.gathered import gathered

log = logging.getLogger(__name__)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def keep_memory() -> None:
    """Let glibc keep freed blocks. By default every large tensor is mapped and unmapped, page by page, at each step,
    which costs a CPU run up to half its time in the softmax over the vocabulary. No effect elsewhere."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_M_TOP_PAD, 1 << 28)


def one_device(args: TrainingArguments) -> TrainingArguments:
    """Keep transformers from spreading one process over all GPUs in sight: what a pass does is its thread's own."""
    if args.n_gpu > 1:
        log.warning("training on one of %d GPUs; use torchrun --nproc-per-node for all of them", args.n_gpu)
        args._n_gpu = 1
    return args


def compile_pieces(model: PreTrainedModel) -> None:
    """Compile what is free of routing, piece by piece: whole frozen layers, and the units, norms and parts of routed
    ones. Each kind of piece is compiled once for all layers; the decisions stay plain Python.
    """
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    converted = converted_of(model)
    if not converted.program.plain:
        raise ValueError(
            "only programs of the base's own layers, each in its turn, can be compiled; leave --compile off"
        )
    for index, layer in enumerate(layers_of(model)):
        mine = [unit for unit in converted.units.values() if unit.step.block == index]
        if not mine:  # its forward alone: the hooks around it say which pass it is
            layer.forward = torch.compile(layer.forward, dynamic=False)
            continue
        inside = {unit.unit for unit in mine}
        for child in () if layer in inside else layer.children():
            if child not in inside:
                child.compile(dynamic=False)
        for unit in mine:
            if (inner := gathered(unit.unit)) is not None:
                for name in inner.PIECES:  # numbers of rows vary: torch makes kernels for any once it has seen two
                    setattr(inner, name, torch.compile(getattr(inner, name)))
            else:  # its forward alone: the hooks around it decide
                unit.unit.forward = torch.compile(unit.unit.forward, dynamic=False)
            unit.mix = torch.compile(mixed, dynamic=False)
            for part in unit.parts.values():
                assert isinstance(part, Part)
                part.compile(dynamic=False)
