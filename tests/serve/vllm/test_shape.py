"""What the vLLM model reads off a configuration, and what it refuses; vLLM itself is not needed here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from depthdial.core.decision import Decision
from depthdial.core.dial import Curve
from depthdial.core.program import plain
from depthdial.core.tokens import Trace
from depthdial.methods import method_named
from depthdial.models.checkpoint import Plugin
from depthdial.models.converted import converted_of
from depthdial.models.export import own_config
from depthdial.models.fingerprint import fingerprint
from depthdial.serve.vllm.depths import DepthLog, histogram, layers_used
from depthdial.serve.vllm.shape import BUDGET, KINDS, PROMPT_BUDGET, ModelShape, layer_parts


@pytest.fixture
def config(tiny_model: Callable, adaptive: Callable) -> Any:
    return own_config(adaptive(tiny_model("llama"), weights="soft"))


@pytest.mark.parametrize("family", KINDS)
def test_sizes_are_those_of_the_model(family: str, tiny_model: Callable, adaptive: Callable):
    model = adaptive(tiny_model(family))
    shape, attn = ModelShape.of(own_config(model), env={}), model.model.layers[0].self_attn
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (4, 2, attn.head_dim)
    assert shape.qkv_bias == (attn.q_proj.bias is not None) and shape.o_bias == (attn.o_proj.bias is not None)
    assert shape.head_norms == ("q_norm" in dict(attn.named_modules()))
    assert shape.windows == (8 if family == "mistral" else None,) * 6
    assert [len(layer_parts(shape, layer)) for layer in range(6)] == [0, 0, 2, 2, 2, 2]
    assert shape.offset == shape.prompt_offset == 0.0  # it has no base


def test_the_environment_turns_the_dial(tiny_model: Callable, adaptive: Callable, config: Any):
    assert ModelShape.of(config, env={BUDGET: "1.0"}).offset == math.inf
    with pytest.raises(ValueError, match="DEPTHDIAL_BUDGET='much' is no number"):
        ModelShape.of(config, env={BUDGET: "much"})
    with pytest.raises(ValueError, match="needs a plug-in with a budget curve"):
        ModelShape.of(config, env={BUDGET: "0.7"})


def test_prompts_are_read_in_full_where_nothing_else_is_told(tiny_model: Callable, adaptive: Callable):
    model = adaptive(tiny_model("llama"))
    curves = {
        "text": Curve((-1.0, 3.0), (0.7, 0.9), (0.1, 0.1)),
        "generated": Curve((-2.0, 2.0), (0.7, 0.9), (0.1, 0.1)),
    }
    converted = converted_of(model)
    converted.plugin = Plugin("tiny", converted.method, fingerprint(model), curves, recommended=0.8)
    config = own_config(model)

    def offsets(told: str | None = None, **fields: Any) -> tuple[float, float]:
        config.update({"prompt_budget": None, **fields})
        shape = ModelShape.of(config, env={} if told is None else {PROMPT_BUDGET: told})
        return round(shape.prompt_offset, 6) if shape.prompt_offset < math.inf else math.inf, round(shape.offset, 6)

    assert offsets() == (math.inf, 0.0), "written by the curve of what is written"
    assert offsets("same") == (0.0, 0.0) == offsets(prompt_budget="same")
    assert offsets("0.8") == (1.0, 0.0) == offsets(prompt_budget=0.8), "read by the curve of what is read"
    assert offsets("1.0", prompt_budget="same") == (math.inf, 0.0), "the environment says more"
    for wrong in ("much", "0", "1.5"):
        with pytest.raises(ValueError, match="same"):
            offsets(wrong)
    with pytest.raises(ValueError, match=r"^prompt_budget: budget 0\.5 is outside what this plug-in can do"):
        offsets("0.5")


def test_what_was_trained_with_its_routers_reads_as_it_writes(config: Any):
    assert ModelShape.of(config, env={}).prompt_offset == ModelShape.of(config, env={}).offset == 0.0
    with pytest.raises(ValueError, match=r'its own routers.*"same" there, not 1\.0'):
        ModelShape.of(config, env={PROMPT_BUDGET: "1.0"})


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("mixture_of_depths", {}, "leaves holes in the cache"),
        ("static", {"order": (3, 1), "count": 1}, "leaves holes in the cache"),
    ],
)
def test_what_it_cannot_run_is_refused(
    method: str, fields: dict, message: str, tiny_model: Callable, adapted: Callable
):
    model = adapted(tiny_model("llama"), method_named(method, fields))
    with pytest.raises(ValueError, match=message):
        ModelShape.of(own_config(model), env={})


def test_heads_must_divide_over_the_ranks(config: Any):
    shape = ModelShape.of(config, env={})
    shape.split(2)
    with pytest.raises(ValueError, match="give --tensor-parallel-size a divisor of 2"):
        shape.split(4)


def test_a_log_keeps_who_ran_what():
    log, program = DepthLog(), plain(3, (1, 2))
    keep = {1: torch.tensor([True, False, False]), 2: torch.tensor([False, False, True])}
    trace = Trace(program, {s: Decision.hard(kept) for s, kept in keep.items()})
    log.record(torch.tensor([4, 5, 0]), torch.tensor([0, 0, 1]), trace)
    assert log.passes == [], "nothing is kept until asked"
    log.requests = lambda: ["0-abcdefgh", "1-abcdefgh"]
    log.record(torch.tensor([4, 5, 0]), torch.tensor([0, 0, 1]), trace)
    log.record(torch.tensor([6]), torch.tensor([0]), Trace(program))
    assert layers_used(log.passes, "0") == {4: 2, 5: 1, 6: 3} and layers_used(log.passes, "1") == {0: 2}
    assert histogram(log.passes) == {2: 2, 1: 1, 3: 1}
