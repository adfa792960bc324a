"""What a pass notes as it opens: real tokens under every kind of mask and cache, sizes that change, rows of beams."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from depthdial.methods import Dense, FlexiDepth, SkipLayer
from depthdial.models.convert import convert
from depthdial.models.families import FAMILIES
from depthdial.models.opening import real_tokens

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 12, [0] * 5 + [1] * 7])
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def model(tiny_model: Callable, adaptive: Callable) -> Callable[[str], Any]:
    return lambda family="llama": adaptive(tiny_model(family))


@torch.no_grad()
def costs(model: Any, **kwargs: Any) -> list[float]:
    """Of each pass of a greedy generation of 4 tokens, padded on the left."""
    found: list[float] = []
    handle = model.register_forward_hook(lambda *_: found.append(model.route.cost()))
    ids = IDS.masked_fill(MASK == 0, 0)
    model.generate(
        ids, attention_mask=MASK, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, **kwargs
    )
    handle.remove()
    return found


def real(model: Any) -> Any:
    """bool [B, T]: which tokens of the last pass were real."""
    tokens = model.route.last.tokens
    return tokens.rows(tokens.real)


@each_family
def test_padding_is_no_token_whatever_the_cache(model: Callable, family: str):
    dynamic = costs(model(family))
    assert len(dynamic) == 4 and len(set(dynamic)) > 1
    assert costs(model(family), cache_implementation="static", disable_compile=True) == pytest.approx(dynamic)
    assert costs(model(family), use_cache=False)[0] == pytest.approx(dynamic[0])


@each_family
@pytest.mark.parametrize("steps", [(12,), (8, 3, 1)])
def test_a_mask_may_be_as_long_as_a_static_cache(model: Callable, family: str, steps: tuple[int, ...]):
    own = model(family)
    places = (MASK.cumsum(-1) - 1).clamp(min=0)
    for longer in (0, 8):
        fixed, growing = StaticCache(config=own.config, max_cache_len=20), DynamicCache(config=own.config)
        start = 0
        for length in steps:
            now = slice(start, start + length)
            told = {"position_ids": places[:, now]}
            with torch.no_grad():
                own(IDS[:, now], attention_mask=MASK[:, : start + length], past_key_values=growing, **told)
                wanted = real(own), own.route.cost()
                assert torch.equal(wanted[0], MASK[:, now].bool())
                mask = torch.cat([MASK, torch.zeros(2, 8, dtype=torch.long)], 1) if longer else MASK[:, : now.stop]
                own(IDS[:, now], attention_mask=mask, past_key_values=fixed, **told)
            assert torch.equal(real(own), wanted[0]) and own.route.cost() == pytest.approx(wanted[1])
            start += length


def test_the_real_tokens_of_masks_in_four_dimensions():
    two = torch.zeros(2, 1, 3, 8, dtype=torch.bool)  # three tokens behind two cached ones, in a cache of eight
    causal = torch.ones(3, 5, dtype=torch.bool).tril(2)
    two[0, 0, :, :5] = causal
    two[1, 0, 1:, 3:5] = causal[1:, 3:]  # a row whose cached and first new tokens are padding

    class Two(DynamicCache):
        def get_seq_length(self, layer_idx: int = 0) -> int:
            return 2

    expected = [[True, True, True], [False, True, True]]
    added = torch.zeros(2, 1, 3, 8).masked_fill(~two, torch.finfo(torch.float32).min)
    for mask in (two, added, {"sliding_attention": None, "full_attention": two}, {"sliding_attention": two}):
        found = real_tokens(mask, Two(), 3)
        assert isinstance(found, Tensor) and found.tolist() == expected
    assert real_tokens(None, None, 3) is None and real_tokens({"full_attention": None}, None, 3) is None
    assert real_tokens(torch.ones(2, 2), None, 3) is None, "too short to say"


def test_arguments_may_come_without_names(model: Callable):
    own = model()
    with torch.no_grad():
        own.get_decoder()(IDS, MASK)
    assert torch.equal(real(own), MASK.bool())


def test_a_pass_without_a_real_token_has_no_cost(model: Callable):
    own = model()
    with torch.no_grad():
        own(IDS, attention_mask=torch.zeros_like(IDS))
    with pytest.raises(ValueError, match="no real token"):
        own.route.cost()


@pytest.mark.parametrize("size", [310, 280])
def test_a_resized_vocabulary_is_paid_for(model: Callable, tiny_model: Callable, size: int):
    own = model()
    with torch.no_grad():
        own(IDS % 280)
        before, dense = own.route.token_cost(), own.converted.ledger.dense
        own.resize_token_embeddings(size)
        own(IDS % 280)
    ledger = own.converted.ledger
    assert ledger.dense - dense == (size - 300) * own.config.hidden_size
    saved = (1 - before) * dense  # the same layers ran
    torch.testing.assert_close(own.route.token_cost(), (1 - saved / ledger.dense).float())


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", [FlexiDepth(start=0.0), SkipLayer(), Dense()])
def test_a_traced_pass_leaves_no_answers(tiny_model: Callable, method: Any, strict: bool):
    own: Any = convert(tiny_model("llama"), method)
    with torch.no_grad():
        program = torch.export.export(own, (), {"input_ids": IDS, "use_cache": False}, strict=strict)
    if method != Dense():  # which has no decision to lose
        with pytest.raises(ValueError, match="only traced"):
            own.route.cost()
        with pytest.raises(ValueError, match="only traced"):
            _ = own.route.layers_used
    with torch.no_grad():
        expected = own(IDS, use_cache=False).logits
    assert own.route.cost() <= 1.0 and own.route.layers_used.shape == (2, 12)
    torch.testing.assert_close(program.module()(input_ids=IDS, use_cache=False).logits, expected)


def test_before_a_pass_there_is_nothing_to_tell(model: Callable):
    for asked in (lambda route: route.cost(), lambda route: route.keep(), lambda route: route.token_cost()):
        with pytest.raises(ValueError, match="in this thread, or it was only traced: run it"):
            asked(model().route)


@torch.no_grad()
def test_an_offset_per_row_goes_with_each_of_its_beams(model: Callable):
    own = model()

    def texts(ids: Tensor, offset: Any) -> Tensor:
        own.converted.set(offset=offset)
        return own.generate(ids, num_beams=3, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)

    both = texts(IDS, torch.tensor([-0.8, math.inf]))
    assert own.route.shape == (6, 1)
    assert own.route.token_cost()[3:].eq(1.0).all() and not own.route.token_cost()[:3].eq(1.0).all()
    assert torch.equal(both[:1], texts(IDS[:1], -0.8)) and torch.equal(both[1:], texts(IDS[1:], math.inf))
    for offset, rows in ((torch.zeros(2), 3), (torch.zeros(3), 2), (torch.zeros(2, 1), 2), (torch.zeros(0), 2)):
        own.converted.set(offset=offset)
        with pytest.raises(ValueError, match=rf"offset has shape .* the batch {rows} rows"):
            own(torch.cat([IDS, IDS])[:rows])


@pytest.mark.parametrize("whole", [False, True], ids=["halves", "whole layers"])
def test_a_reentrant_checkpoint_says_what_it_hides(model: Callable, tiny_model: Callable, whole: bool):
    own: Any = convert(tiny_model("llama"), SkipLayer()) if whole else model()
    own.train().converted.set(training=True)
    own.enable_input_require_grads()

    def gradients() -> int:
        own.zero_grad(set_to_none=True)
        own(IDS, labels=IDS, use_cache=False)
        own.converted.method.loss(own.route.last.tokens, own.route.last.trace).mean().backward()
        routers = [unit.parts["router"] for unit in own.converted.routed.values() if "router" in unit.parts]
        return sum(weight.grad is not None for router in routers for weight in router.parameters())

    known = gradients()
    assert known > 0
    own.gradient_checkpointing_enable({"use_reentrant": False})
    assert gradients() == known
    own.gradient_checkpointing_enable({"use_reentrant": True})
    if whole:  # they decide before their checkpoint begins
        assert gradients() == known
        return
    with pytest.warns(UserWarning, match="use_reentrant=True: a loss on decisions gives routers no gradient"):
        own(IDS, labels=IDS, use_cache=False).loss.backward()
    own.eval()
    with torch.no_grad():
        own(IDS)


def test_fresh_weights_are_those_of_the_parts(tiny_model: Callable, tmp_path):
    torch.manual_seed(0)
    made: Any = convert(tiny_model("llama"), FlexiDepth(start=1.5))
    made.save_pretrained(tmp_path)
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    for own in (made, type(opened)(opened.config)):
        own.to_empty(device="cpu")
        for weight in own.parameters():
            weight.data.fill_(math.nan)
        for module in own.modules():
            module._is_hf_initialized = False
        own.init_weights()
        for unit in own.converted.routed.values():
            for name, weight in unit.parts.named_parameters():
                assert weight.isfinite().all(), name
                if name == "router.bias":
                    assert weight.item() == 1.5
                if name == "adapter.down.weight":
                    assert not weight.any()
                if name == "router.head.weight":
                    assert weight.std().item() == pytest.approx(1.6 * 32**-0.5, rel=0.5)
        assert all(weight.isfinite().all() for weight in own.parameters())
