"""Recursive: the paper's forward written by hand, its exits, and what one loop alone is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from depthdial.core.layers import LoRA
from depthdial.core.program import END
from depthdial.methods import Recursive, method_named
from depthdial.models.checkpoint import parts_of
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of

IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(5))
LINEARS = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


@torch.no_grad()
def forward(model: Any, offset: float | Tensor = 0.0, ids: Tensor = IDS, **kwargs: Any) -> Tensor:
    """Logits [B, T, vocabulary]."""
    with converted_of(model).using(offset=offset):
        return model(ids, **kwargs).logits


@torch.no_grad()
def by_hand(base: Any, changes: dict[int, dict[str, Tensor]], visits: list[int], ids: Tensor = IDS) -> Tensor:
    """The logits of blocks visited in this order. changes: by place in `visits`, by name of the map, [out, in]."""
    config, x = base.config, base.get_input_embeddings()(ids)
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    speed = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    angle = torch.arange(ids.shape[1])[:, None] * speed
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    for visit, block in enumerate(visits):
        layer: Any = base.get_decoder().layers[block]
        change = changes.get(visit, {})

        def linear(x: Tensor, unit: str, name: str, layer: Any = layer, change: dict[str, Tensor] = change) -> Tensor:
            return x @ (layer.get_submodule(f"{unit}.{name}").weight + change.get(name, 0)).T

        z = normed(x, layer.input_layernorm.weight)
        q, k, v = (linear(z, "self_attn", f"{n}_proj").unflatten(-1, (-1, size)).transpose(1, 2) for n in "qkv")
        k, v = (each.repeat_interleave(heads // groups, 1) for each in (turned(k), v))
        scores = (turned(q) @ k.transpose(2, 3) / math.sqrt(size)).masked_fill(later, -math.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), "self_attn", "o_proj")
        z = normed(x, layer.post_attention_layernorm.weight)
        x = x + linear(F.silu(linear(z, "mlp", "gate_proj")) * linear(z, "mlp", "up_proj"), "mlp", "down_proj")
    return normed(x, base.get_decoder().norm.weight) @ base.get_output_embeddings().weight.T


def changes_of(model: Any) -> dict[int, dict[str, Tensor]]:
    """What the parts of a converted model add to each weight, by step."""
    return {
        s: {
            f"{name}_proj": part.up.detach() @ part.down.detach()
            for name, part in unit.parts.items()
            if isinstance(part, LoRA)
        }
        for s, unit in converted_of(model).parted.items()
    }


@pytest.fixture
def pair(tiny_model: Callable, adapted: Callable) -> tuple[Any, Any]:
    """A base and the same with blocks 1 to 3 run three times."""
    base = tiny_model("llama")
    return base, adapted(copy.deepcopy(base), Recursive(loops=3, first=1, last=4, rank=8))


@pytest.mark.parametrize("loops", [1, 2, 3])
def test_it_is_the_forward_written_by_hand(pair: tuple[Any, Any], loops: int):
    base, model = pair
    changes = changes_of(model)
    assert set(changes) == set(range(1, 10)) and all(set(each) == LINEARS for each in changes.values())
    assert not torch.equal(changes[1]["q_proj"], changes[4]["q_proj"]), "each visit has its own"
    visits = [0, *[1, 2, 3] * loops, 4, 5]
    expected = by_hand(base, {v: changes[v] for v in range(1, 1 + 3 * loops)}, visits)
    torch.testing.assert_close(forward(model, loops - 3.0), expected, rtol=1e-4, atol=1e-4)
    used = model.route.layers_used
    assert (used == len(visits)).all()
    cost = [base.get_output_embeddings().weight.numel()]
    cost += [sum(w.numel() for w in layer.parameters() if w.ndim == 2) for layer in base.get_decoder().layers]
    assert model.route.cost() == pytest.approx((cost[0] + cost[1] * len(visits)) / (cost[0] + cost[1] * 12), rel=1e-6)


def test_the_untouched_base_has_all_loops(pair: tuple[Any, Any]):
    base, model = pair
    expected = by_hand(base, changes_of(model), [0, *[1, 2, 3] * 3, 4, 5])
    torch.testing.assert_close(forward(model, math.inf), expected, rtol=1e-4, atol=1e-4)
    assert model.route.cost() == 1.0
    assert torch.equal(forward(model, 1e9), forward(model, math.inf))


def test_each_row_stops_where_its_dial_says(pair: tuple[Any, Any]):
    _, model = pair
    rows = forward(model, torch.tensor([-2.0, 0.0]))
    for row, offset in enumerate((-2.0, 0.0)):
        torch.testing.assert_close(rows[row], forward(model, offset)[row], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(rows[0], forward(model, 0.0)[0])


@pytest.mark.parametrize("offset", [-2.0, -1.0, 0.0])
def test_a_cached_pass_is_the_whole_one(pair: tuple[Any, Any], offset: float):
    """Each visit has K and V of its own, and a row that stops at a loop's end asks for none of the later ones."""
    _, model = pair
    cache = DynamicCache(config=model.config)
    steps = [IDS[:, :4], *IDS[:, 4:].split(1, 1)]
    logits = torch.cat([forward(model, offset, step, past_key_values=cache, use_cache=True) for step in steps], 1)
    torch.testing.assert_close(logits, forward(model, offset), rtol=1e-4, atol=1e-4)
    assert len(cache.layers) == 12


def test_a_loop_over_all_blocks_ends_the_model():
    program = Recursive(loops=2, rank=2).program(3)
    assert [step.block for step in program.steps] == [0, 1, 2, 0, 1, 2]
    assert program.routed == (3,) and program.steps[3].otherwise == END
    assert [step.absent for step in program.steps] == ["project"] * 3 + ["nothing"] * 3
    assert program.parted == tuple(range(6)) and len(program.visits) == 6
    assert Recursive(loops=2).program(3).parted == (3,), "without changes only the exit may have parts"


def test_the_dial_has_a_stop_for_each_loop():
    for stop in (None, 1, 2, 3):
        method = Recursive(loops=3, stop=stop)
        stops = method.stops(method.program(2))
        assert stops == [offset - (stop or 3) for offset in (1, 2, 3)]


def test_plain_recursion_is_the_blocks_again(tiny_model: Callable):
    base = tiny_model("llama")
    model: Any = convert(copy.deepcopy(base), Recursive(loops=2))
    torch.testing.assert_close(forward(model), by_hand(base, {}, [*range(6)] * 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(forward(model, -1.0), base(IDS).logits, rtol=1e-5, atol=1e-5)
    assert not parts_of(model)


def test_changes_start_at_nothing_and_learn(tiny_model: Callable):
    base = tiny_model("llama")
    model: Any = convert(copy.deepcopy(base), Recursive(loops=2, rank=4))
    plain: Any = convert(copy.deepcopy(base), Recursive(loops=2))
    assert torch.equal(forward(model), forward(plain)), "bit for bit"
    model(IDS, labels=IDS).loss.backward()
    parts = [part for unit in converted_of(model).parted.values() for part in unit.parts.values()]
    gradients = [part.get_parameter("up").grad for part in parts]
    assert len(parts) == 12 * 7 and all(isinstance(part, LoRA) and part.macs == 0 for part in parts)
    assert all(gradient is not None and gradient.any() for gradient in gradients)
    held = {id(weight) for part in parts for weight in part.parameters()}
    assert held == {id(w) for w in model.parameters() if w.requires_grad}, "the parts of all visits are the model's"
    assert all(weight.grad is None for weight in model.parameters() if id(weight) not in held)


def test_weights_that_are_replaced_are_those_of_all_visits(tiny_model: Callable):
    model: Any = convert(tiny_model("llama"), Recursive(loops=2))
    before = forward(model)
    state = {name: tensor * 1.5 for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    changed = forward(model)
    other = tiny_model("llama")
    other.load_state_dict(state)
    assert torch.equal(changed, forward(convert(other, Recursive(loops=2)))) and not torch.allclose(changed, before)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loops": 1}, "loops must be at least 2"),
        ({"rank": -1}, "rank must be at least 0"),
        ({"loops": 2, "stop": 3}, "stop must be one of 1 to 2 loops"),
        ({"stop": 0}, "stop must be one of 1 to 2 loops"),
    ],
)
def test_fields_that_make_no_loop_are_refused(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        method_named("recursive", fields)


@pytest.mark.parametrize("fields", [{"first": 3, "last": 3}, {"last": 7}, {"first": -1}])
def test_a_loop_that_does_not_fit_is_refused(fields: dict[str, Any]):
    with pytest.raises(ValueError, match="does not fit a model of 6 layers"):
        method_named("recursive", fields).program(6)


def test_modules_that_a_twin_cannot_follow_are_refused(tiny_model: Callable):
    """A LoRA of peft, say, would act in the first visit alone."""
    model: Any = convert(tiny_model("llama"), Recursive(loops=2))
    layer = model.get_decoder().layers[2]
    linear, layer.mlp.up_proj = layer.mlp.up_proj, torch.nn.Sequential(layer.mlp.up_proj)
    with pytest.raises(ValueError, match="holds a LoRA or another foreign module"):
        forward(model)
    layer.mlp.up_proj = linear
    forward(model)


def test_a_copy_is_a_model_of_its_own(pair: tuple[Any, Any]):
    _, model = pair
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    assert not torch.allclose(forward(other), forward(model))
    other.load_state_dict(model.state_dict())
    assert torch.equal(forward(other), forward(model))
