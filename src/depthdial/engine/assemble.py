"""Put an engine together for a converted model: cache, scheduler, and the fastest runner this machine has for it."""

from __future__ import annotations

import logging
from typing import Any

import torch

from depthdial.core.program import Program
from depthdial.engine.batch import Batch
from depthdial.engine.cache import Cache, Shape
from depthdial.engine.config import EngineConfig
from depthdial.engine.model_tensors import tensors_of
from depthdial.engine.native import NativeRunner
from depthdial.engine.runner import Runner, TorchRunner
from depthdial.engine.scheduler import Scheduler
from depthdial.engine.speculate import MOST
from depthdial.engine.stats import Stats
from depthdial.engine.step import Engine
from depthdial.engine.weights import Pack, int4, int4_head, int8, narrow_spine
from depthdial.kernels.cpu.build import Unavailable
from depthdial.kernels.tensors import ModelTensors
from depthdial.models.block import spine_of
from depthdial.models.convert import converted_of
from depthdial.models.gguf_blocks import stored_blocks

log = logging.getLogger(__name__)

CHUNK = 512
"""Most prompt tokens in one step."""
CACHE_BYTES = 2**30
"""Size of the KV cache where none is asked for, at most; on a CPU pages take memory only once they are written."""
LEAST_TOKENS = 4096


def fit_cache(model: Any, asked: int | None, most: int) -> int:
    """Tokens of the KV cache: those asked for, or what a gigabyte holds. most: more could never be used."""
    if asked is not None:
        return asked
    fits = CACHE_BYTES // shape_of(spine_of(model), converted_of(model).program).token_bytes
    return min(most, max(fits, LEAST_TOKENS))


def shape_of(spine: ModelTensors, program: Program) -> Shape:
    """What a token leaves in the cache, the same at all visits (`models.convert`)."""
    ((kv_heads, head_dim),) = {(layer.kv_heads, layer.head_dim) for layer in spine.layers}
    windows = tuple(layer.window or 0 for layer in spine.layers)
    return Shape(len(spine.layers), kv_heads, head_dim, spine.norm.weight.dtype, program.sparse, windows)


def assemble(
    model: Any, options: EngineConfig, cache_tokens: int, context: int, ends: frozenset[int], name: str | None = None
) -> Engine:
    """An engine with a cache of its own over the model's own weights, or over narrow ones made from them.

    name: what the model was opened by, where it is nobody else's: narrow weights then take the place of its own
    matrices, and it can be run by this engine only. Raises ValueError for what the engine cannot run.
    """
    spine = spine_of(model)
    device: torch.device = spine.norm.weight.device
    stats = Stats(len(spine.layers))
    max_batch = options.max_batch
    runner = (
        _runner(model, spine, stats)
        if options.weights == "auto"
        else _narrow_runner(model, spine, stats, options, name)
    )
    shape = shape_of(spine, converted_of(model).program)
    # K of a rope that follows from the length of its text is of no use to another text
    cache = Cache(shape, cache_tokens, context, max_batch, device, options.prefix_cache and not spine.stretches)
    batch = Batch(cache, max_batch + CHUNK + MOST, device)
    batch.measures = spine.stretches
    return Engine(runner, Scheduler(cache, max_batch, CHUNK, stats), batch, ends)


def _runner(model: Any, spine: ModelTensors, stats: Stats) -> Runner:
    plain, kind = TorchRunner(model, spine, stats), spine.norm.weight.device.type
    if kind == "cuda":
        return _on_cuda(plain, spine)
    if kind != "cpu":
        stats.in_torch = f"there are no kernels for {kind}"
        log.warning("running in PyTorch, %s", stats.in_torch)
        return plain
    try:
        native = tensors_of(spine, plain)
        runner, stats.open_steps = NativeRunner(plain, native), len(native.open)
        if native.open:
            log.info("Python decides at %d of %d routed steps of a pass", len(native.open), len(plain.parts))
        return runner
    except (ValueError, Unavailable) as reason:
        stats.in_torch = f"without native kernels: {reason}"
        log.warning("decoding in PyTorch, %s", stats.in_torch)
        return plain


def _on_cuda(plain: TorchRunner, spine: ModelTensors) -> Runner:
    try:
        from depthdial.engine.graph import GraphRunner  # needs Triton, which comes with CUDA builds of torch

        return GraphRunner(plain, tensors_of(spine, plain))
    except (ValueError, ImportError) as reason:
        plain.stats.in_torch = f"without CUDA graphs: {reason}"
        log.warning("running in PyTorch, %s", plain.stats.in_torch)
        return plain


def _narrow_runner(model: Any, spine: ModelTensors, stats: Stats, options: EngineConfig, name: str | None) -> Runner:
    weights = options.weights
    if spine.norm.weight.device.type != "cpu":
        raise ValueError(f"{weights} weights run on a CPU only; use weights='auto'")
    pack: Pack = {"int8": int8, "int4": int4, "int4-head": int4_head}.get(weights) or _from_file(model, name)
    try:
        plain = TorchRunner(model, narrow_spine(spine, pack, name is not None), stats)
        return NativeRunner(plain, tensors_of(plain.spine, plain), activations=options.activations)
    except Unavailable as reason:
        raise ValueError(f"{weights} weights need the native kernels ({reason}); use weights='auto'") from reason
    except ValueError as reason:
        raise ValueError(f"{weights} weights cannot be had ({reason}); use weights='auto'") from reason


def _from_file(model: Any, name: str | None) -> Pack:
    """The blocks that a GGUF file holds of each matrix; what it holds unquantised stays as it was loaded."""
    if name is None:
        raise ValueError("weights='file' needs the GGUF file: open the model by its name, LLM(NAME, weights='file')")
    stored = stored_blocks(name, model)
    return lambda weight, _: stored[id(weight)]() if id(weight) in stored else weight
