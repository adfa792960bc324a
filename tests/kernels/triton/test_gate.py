"""What these kernels do not run is refused in one line, which a runner can log."""

from __future__ import annotations

import pytest
import torch

from depthdial.kernels.tensors import END, Act, Branch, Dense, Look, ModelTensors, Norm, RouterTensors
from depthdial.kernels.triton.gate import gates_of
from depthdial.models.block import spine_of
from depthdial.models.families import FAMILIES


def test_gates_are_read_from_their_operations(tiny_tensors):
    model = tiny_tensors(routed=(1,), soft=True)
    none, gate, other = gates_of(model)
    router = model.layers[1].branch.router
    assert none is None and other is None and gate is not None
    assert gate.norm_first and gate.soft and gate.bias == pytest.approx(0.1) and gate.enc is not None
    assert torch.equal(gate.folded, router.ops[3].weight[0]) and torch.equal(gate.scale, router.ops[1].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp_branch": Branch()}, "visit 1 decides its MLP apart"),
        ({"branch": Branch("table", otherwise=END)}, "tokens jump at visit 1"),
        ({"base": False}, "tokens jump at visit 1"),
        ({"branch": Branch("open")}, "Python, which decides at visit 1"),
        ({"branch": Branch("ops", RouterTensors((Look(), Dense(torch.ones(1, 2)))))}, "routers of one form only"),
        ({"branch": Branch("ops", RouterTensors((Dense(torch.ones(1, 32)), Act("silu"))))}, "routers of one form only"),
        ({"whole": True}, "visit 1 is weighed as a whole"),
        ({"absent": "nothing"}, "leaves gaps at visit 1"),
    ],
)
def test_other_programs_are_refused(change, message, tiny_tensors):
    model: ModelTensors = tiny_tensors(soft=True)
    layers = (model.layers[0], model.layers[1]._replace(**change), model.layers[2])
    with pytest.raises(ValueError, match=message):
        gates_of(model._replace(layers=layers))


def test_a_router_that_decides_in_fp32_is_refused_in_bf16(tiny_tensors):
    model: ModelTensors = tiny_tensors(torch.bfloat16)
    ops = (Dense(torch.ones(1, 32)), Norm(torch.ones(1), 1e-5), Act("tanh"), Dense(torch.ones(1, 1)))
    layer = model.layers[1]._replace(branch=Branch("ops", RouterTensors(ops)))
    with pytest.raises(ValueError, match="round a router's code"):
        gates_of(model._replace(layers=(model.layers[0], layer, model.layers[2])))


RUN = (
    "llama", "mistral", "ministral", "qwen2", "qwen3", "cwm", "iquestcoder", "internlm3", "seed_oss", "smollm3",
    "gemma", "gemma3_text",
)  # fmt: skip
"""Families whose layers these kernels run."""


@pytest.mark.parametrize("family", FAMILIES)
def test_families_with_more_to_them_are_refused(family: str, tiny_model):
    spine = spine_of(tiny_model(family))
    if family in RUN:
        assert gates_of(spine) == (None,) * 6
        return
    with pytest.raises(ValueError, match="these kernels do not know ") as no:
        gates_of(spine)
    assert "\n" not in str(no.value)
