"""Conversion: in place, undone exactly, and still a Hugging Face model that generates and gives a loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.laws.cover import MIXTURES
from torch import nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from depthdial.core.route import Route
from depthdial.methods import Dense, FlexiDepth, Static
from depthdial.models.convert import convert, layers_of, revert
from depthdial.models.converted import is_converted
from depthdial.models.families import FAMILIES

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def model(request: pytest.FixtureRequest, tiny_model: Callable, adaptive: Callable) -> Any:
    return adaptive(tiny_model(getattr(request, "param", "llama")))


@each_family
def test_revert_gives_the_stock_model_back(tiny_model: Callable, adaptive: Callable, family: str):
    base, model = tiny_model(family), tiny_model(family)
    tensors = dict(model.named_parameters())
    adaptive(model)
    assert {id(t) for t in tensors.values()} <= {id(t) for t in model.parameters()}, "no weight is copied"
    with torch.no_grad():
        model(IDS)
    assert revert(model) is model
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in base.named_modules()]
    assert list(model.state_dict()) == list(base.state_dict())
    assert all(a is b for a, b in zip(model.parameters(), tensors.values(), strict=True))
    assert all(weight.requires_grad for weight in model.parameters()), "frozen while converted, no longer"
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, base(IDS).logits)
    assert (
        not is_converted(model)
        and not isinstance(getattr(model, "route", None), Route)
        and not model.get_decoder()._forward_pre_hooks
    )
    adaptive(model)
    assert len(model.converted.routed) == 2 * (base.config.num_hidden_layers - 2), "and it can be converted again"


@each_family
def test_steps_and_parts_are_where_the_method_wants_them(tiny_model: Callable, family: str):
    model: Any = tiny_model(family)
    assert convert(model, FlexiDepth(first=1, last=5, but=(2,))) is model
    routed = model.converted.routed
    assert [(unit.step.block, unit.step.unit) for unit in routed.values()] == [
        (i, unit) for i in (1, 3, 4) for unit in ("attn", "mlp")
    ]
    parts = {n: p for n, p in model.named_parameters() if ".parts." in n}
    assert all(p.requires_grad and p.dtype == torch.float32 for p in parts.values())
    assert not any(p.requires_grad for n, p in model.named_parameters() if n not in parts)
    for unit in routed.values():
        assert set(unit.parts) == {{"attn": "router", "mlp": "adapter"}[unit.step.unit]}
        assert unit.method is model.converted.method


def test_parts_are_fp32_beside_a_bf16_base(tiny_model: Callable):
    model: Any = convert(tiny_model("llama").bfloat16(), FlexiDepth())
    assert {p.dtype for n, p in model.named_parameters() if ".parts." in n} == {torch.float32}
    logits = model(IDS).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


def test_converting_twice_is_refused(tiny_model: Callable):
    model: Any = convert(tiny_model("llama"), Dense())
    with pytest.raises(ValueError, match="converted already"):
        convert(model, FlexiDepth())
    assert not model.converted.routed


def test_unknown_families_are_refused_with_the_known_ones():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="'gpt2' cannot be converted yet") as caught:
        convert(model, Dense())
    assert all(family in str(caught.value) for family in FAMILIES)


def test_a_method_that_does_not_fit_leaves_the_model_alone(tiny_model: Callable):
    base, model = tiny_model("llama"), tiny_model("llama")
    for method in (FlexiDepth(first=6), Static(order=(9,))):
        with pytest.raises(ValueError, match="fit a model of 6 layers"):
            convert(model, method)
    assert list(model.state_dict()) == list(base.state_dict())
    assert all(p.requires_grad for p in model.parameters())


def greedy(model: Any, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return model.generate(ids, min_new_tokens=10, max_new_tokens=10, do_sample=False, pad_token_id=0, **kwargs)


@each_family
def test_generate_is_the_bases_at_inf_and_its_own_below(tiny_model: Callable, adaptive: Callable, family: str):
    base, model = tiny_model(family), adaptive(tiny_model(family))
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[1, :4], mask[1, :4] = 0, 0
    model.converted.set(offset=math.inf)
    expected = greedy(base, ids, attention_mask=mask)
    assert torch.equal(greedy(model, ids, attention_mask=mask), expected)
    model.converted.set(offset=0.0)
    shallow = greedy(model, ids, attention_mask=mask)
    assert shallow.shape == expected.shape and not torch.equal(shallow, expected)
    alone = greedy(model, IDS[1:, 4:])
    assert torch.equal(alone[0, 8:], shallow[1, 12:]), "padding changes nothing"


@each_family
def test_the_route_follows_prefill_and_decode(tiny_model: Callable, adaptive: Callable, family: str):
    model: Any = adaptive(tiny_model(family))
    cache: Any = DynamicCache(config=model.config)
    mask = torch.tensor([[1] * 12, [0] * 3 + [1] * 9])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        model(IDS, attention_mask=mask, position_ids=positions, past_key_values=cache)
        route = model.route
        assert route.layers_used.shape == route.token_cost().shape == (2, 12)
        tokens = route.last.tokens
        assert torch.equal(tokens.rows(tokens.real), mask.bool()) and torch.equal(
            tokens.rows(tokens.position), positions
        )
        cost = route.token_cost()[mask.bool()].mean()
        assert route.cost() == pytest.approx(float(cost)), "padding is no token"
        longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        model(IDS[:, :1], attention_mask=longer, position_ids=torch.tensor([[12], [9]]), past_key_values=cache)
        assert route.layers_used.shape == (2, 1) and len(route.decisions) == 8
        assert route.last.tokens.real.tolist() == [True, True] and route.last.tokens.position.tolist() == [12, 9]
        model(IDS)
        assert route.last.tokens.real is None and route.shape == (2, 12)
    assert {layer.keys.shape[0] for layer in cache.layers} == {2}
    for index, layer in enumerate(cache.layers):
        window = model.converted.ledger.layers[index].window
        seen = 13 if window is None else min(13, window - 1)  # what Hugging Face keeps of a sliding layer
        assert layer.keys.shape[-2] == layer.values.shape[-2] == seen, "K and V are written for every token"


@each_family
def test_embeddings_may_come_instead_of_tokens(tiny_model: Callable, adaptive: Callable, family: str):
    model: Any = adaptive(tiny_model(family))
    with torch.no_grad():
        expected, used = model(IDS).logits, model.route.layers_used
        again = model(inputs_embeds=model.get_input_embeddings()(IDS)).logits
    assert torch.equal(again, expected) and torch.equal(model.route.layers_used, used)


@each_family
def test_labels_give_a_loss_that_trains_parts_only(tiny_model: Callable, adaptive: Callable, family: str):
    model: Any = adaptive(tiny_model(family))
    labels = IDS.clone()
    labels[0, :5] = -100
    out = model(IDS, labels=labels)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and p.grad.isfinite().all()) == (".parts." in name), name


@each_family
def test_prices_are_counted_from_the_weights(tiny_model: Callable, family: str):
    model: Any = convert(tiny_model(family), FlexiDepth())
    ledger, config = model.converted.ledger, model.config
    heads, keys = 32, 16  # 4 and 2 heads of 8
    size = getattr(config, "sliding_window", None)
    for i, layer in enumerate(ledger.layers):
        assert (layer.kv, layer.attn) == (2 * 32 * keys, 2 * 32 * heads)
        assert (layer.attend, layer.kv_width) == (2 * heads, 2 * keys)
        kinds = getattr(config, "layer_types", None)
        assert layer.window == (size if kinds is None or kinds[i] == "sliding_attention" else None)
        if family not in MIXTURES:
            assert layer.mlp == (2 if family == "arcee" else 3) * 32 * 64
    assert ledger.head == 300 * 32
    linear = sum(m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".parts." not in n)
    mlps = [layer.get_submodule("mlp") for layer in layers_of(model)]
    experts = [mlp.get_submodule("experts") for mlp in mlps if "experts" in dict(mlp.named_children())]
    assert bool(experts) == (family in MIXTURES)
    for kind in experts:  # two of six for each token
        matrices = sum(p.numel() for n, p in kind.named_parameters() if "bias" not in n)
        linear += matrices // 3 + 6 * 32
    assert ledger.dense == linear
    if family == "gemma3_text":
        assert {layer.window for layer in ledger.layers} == {8, None}, "both kinds of layer are seen"


def test_gradient_checkpointing_records_no_decision_twice(model: Any):
    model(IDS, labels=IDS).loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model(IDS, labels=IDS).loss.backward()
    assert len(model.route.decisions) == 8
    again = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(again, plain)
