"""The GPU's runner, in Triton's interpreter: what the engine makes of it equals the dense reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from depthdial.engine.graph import GraphRunner, Graphs
from depthdial.engine.llm import LLM
from depthdial.engine.model_tensors import tensors_of
from depthdial.engine.runner import TorchRunner
from depthdial.engine.stats import Stats
from depthdial.methods import method_named
from depthdial.models.block import spine_of

FIELDS: dict[str, dict[str, Any]] = {
    "flexidepth": {"first": 1, "adapter_ratio": 4, "router_ratio": 4, "start": 0.0},
    "random": {"first": 1, "adapter_ratio": 4, "rate": 0.6},
    "static": {"order": (1, 0), "count": 1, "adapter_ratio": 4},
}


@pytest.fixture
def graphed(tiny_model: Callable, tiny_tokenizer: Any, adapted: Callable) -> Callable[..., LLM]:
    """`graphed(method, family)`: an LLM that runs on the GPU's runner, and its model's torch runner beside it."""

    def make(method: str = "flexidepth", family: str = "llama", layers: int = 3) -> LLM:
        model = adapted(tiny_model(family, num_hidden_layers=layers), method_named(method, FIELDS[method]))
        llm = LLM.of(model, tiny_tokenizer, max_batch=4)
        spine = spine_of(model)
        plain = TorchRunner(model, spine, Stats(layers))
        llm.engine.runner = GraphRunner(plain, tensors_of(spine, plain), buckets=(2, 4))
        return llm

    return make


@pytest.mark.parametrize(
    ("method", "family"),
    [("flexidepth", "llama"), ("flexidepth", "gemma3_text"), ("random", "qwen2"), ("static", "qwen3")],
)
def test_texts_equal_the_reference(graphed, asked, finish, agrees, method: str, family: str):
    llm: LLM = graphed(method, family)
    prompts = [[5 + 7 * i % 250 for i in range(18)], [9, 40]]  # one too long for a graph
    offsets = [0.0, math.inf] if family == "llama" else [0.2, -0.4]
    requests = [asked(llm, ids, o, max_tokens=2) for ids, o in zip(prompts, offsets, strict=True)]
    for request in requests:
        llm.engine.submit(request, llm.tokenizer)
    for request, output in zip(requests, finish(llm, requests), strict=True):
        agrees(llm, request, output)
    stats = llm.engine.runner.stats
    noted = sum(sum(row.ran_depths) for request in requests for row in request.rows)
    assert stats.rows_run == noted and stats.native_tokens == stats.tokens
    # static layers leave no K and V for those that do not run them, as their price says
    assert stats.kv_rows.tolist() == (stats.rows if method == "static" else stats.rows * 0 + stats.tokens).tolist()


def test_bytes_follow_the_route(graphed, asked, finish):
    """A pass of one token reads each weight once if its layer ran, and the adapter where it did not."""
    llm: LLM = graphed()
    runner: Any = llm.engine.runner
    (request,) = [asked(llm, [5], 0.0, max_tokens=1)]
    llm.engine.submit(request, llm.tokenizer)
    finish(llm, [request])
    tensors, stats = runner.tensors, runner.stats
    wanted = tensors.head.numel() + tensors.norm.weight.numel()
    for layer, ran in zip(tensors.layers, stats.attn_rows, strict=True):
        wanted += layer.k.weight.numel() + layer.v.weight.numel()
        if layer.branch.router is not None:
            wanted += layer.branch.router.ops[0].weight.numel()
        read = (layer.q, layer.o, layer.gate, layer.up, layer.down) if ran else ()
        wanted += sum(part.weight.numel() for part in read)
        wanted += 0 if ran or layer.adapter is None else sum(weight.numel() for weight in layer.adapter)
    assert stats.weight_bytes == 4 * wanted


def test_a_pass_too_large_is_refused(graphed):
    llm: LLM = graphed(layers=2)
    runner: Any = llm.engine.runner
    cache = llm.engine.scheduler.cache
    graphs = Graphs(runner.tensors, cache.paged, buckets=(2,))
    three = torch.zeros(3, dtype=torch.int32)
    with pytest.raises(ValueError, match="at most 2 tokens"):
        graphs.run(three.long(), three, three, three.float())
