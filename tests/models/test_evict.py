"""Tokens that leave no key: never seen by a later one, whatever the family, the attention and the passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from depthdial.core.decision import Decision
from depthdial.core.method import Method
from depthdial.core.program import plain
from depthdial.methods import MixtureOfDepths
from depthdial.models.catalogue import odds_of
from depthdial.models.convert import convert, revert
from depthdial.models.families import FAMILIES

IDS = torch.randint(3, 300, (3, 14), generator=torch.Generator().manual_seed(0))
METHOD = MixtureOfDepths(every=1, capacity=0.5, predictor_ratio=4)
ONES = torch.ones(3, 10, dtype=torch.long)  # or Hugging Face takes a gap in the places for a new document
EAGER = ("gemma2", "gpt_oss")
"""Whose attention, with caps or sinks, is known to no kernel of PyTorch."""


def each(families: Iterable[str]) -> pytest.MarkDecorator:
    """`family` and `attention`, in all pairs that Hugging Face has."""
    pairs = [(f, kind) for f in families for kind in ("sdpa", "eager") if kind == "eager" or f not in EAGER]
    return pytest.mark.parametrize(("family", "attention"), pairs)


@dataclass(frozen=True)
class Places(Method):
    """Skips the tokens at given places, at every layer."""

    reads = frozenset({"position"})

    units: tuple[str, ...] = ("layer",)
    holes: tuple[int, ...] = ()

    def program(self, depth):
        return plain(depth, range(depth), self.units, absent="nothing")

    def decide(self, parts, seen, s, tokens, trace):
        return Decision.hard(~torch.isin(tokens.position, torch.tensor(self.holes, dtype=torch.long)))


def decoded(model: Any, ids: Tensor, sizes: list[int], cache: Any = None) -> Tensor:
    """Logits [B, T, V] from passes of these sizes over one cache."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    return torch.cat(
        [model(step, past_key_values=cache, use_cache=True).logits for step in ids.split(sizes, dim=1)], dim=1
    )


@each(FAMILIES)
@torch.no_grad()
def test_a_cached_pass_equals_a_whole_one(tiny_model: Callable, adapted: Callable, family: str, attention: str):
    model: Any = adapted(tiny_model(family, attn_implementation=attention), METHOD)
    whole = model(IDS, use_cache=False).logits
    assert 0.1 < model.route.keep().float().mean() < 0.9
    for sizes in ([6] + [1] * 8, [1] * 14, [5, 4, 5]):
        torch.testing.assert_close(decoded(model, IDS, sizes), whole, rtol=1e-3, atol=1e-3)


@each(name for name, family in FAMILIES.items() if name == "mistral" or "windows" not in odds_of(family))
@pytest.mark.parametrize("units", [("layer",), ("attn",)], ids=["layer", "attn"])
@torch.no_grad()
def test_a_text_goes_on_as_if_skipped_tokens_had_not_been(
    tiny_model: Callable, family: str, attention: str, units: tuple[str, ...]
):
    """Where every layer skips the same tokens, they influence nothing: the rest is a text with gaps."""
    base: Any = tiny_model(
        family, attn_implementation=attention, **({"sliding_window": None} if family == "mistral" else {})
    )
    rest = [i for i in range(14) if i not in (2, 5, 6, 11)]
    gapped: Any = convert(base, Places(units=units))
    expected = gapped(IDS[:, rest], position_ids=torch.tensor([rest]), use_cache=False, attention_mask=ONES).logits
    model: Any = convert(revert(base), Places(units=units, holes=(2, 5, 6, 11)))
    assert not any(layer.window for layer in model.converted.ledger.layers), "a window counts places, not keys"
    torch.testing.assert_close(model(IDS, use_cache=False).logits[:, rest], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoded(model, IDS, [4, 1, 1, 3, 1, 1, 3])[:, rest], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_holes_follow_the_cache(tiny_model: Callable, adapted: Callable):
    """Rows are sorted, shared and cut back, as engines do: what was skipped stays skipped."""
    model: Any = adapted(tiny_model("llama"), METHOD)
    cache: Any = DynamicCache(config=model.config)
    decoded(model, IDS[:, :9], [9], cache)
    order = torch.tensor([2, 0, 0, 1])
    cache.batch_select_indices(order)
    cache.crop(-2)
    torch.testing.assert_close(
        decoded(model, IDS[order, 7:], [1] * 7, cache), model(IDS[order], use_cache=False).logits[:, 7:],
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@torch.no_grad()
def test_generate_and_padding(tiny_model: Callable, adapted: Callable):
    model: Any = adapted(tiny_model("llama"), METHOD)
    ids, mask = IDS[:2].clone(), torch.ones_like(IDS[:2])
    ids[1, :5], mask[1, :5] = 0, 0
    told = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    out = model.generate(ids, attention_mask=mask, **told)
    alone = model.generate(ids[1:, 5:], **told)
    assert torch.equal(out[1, 14:], alone[0, 9:])
    text = out[:1]
    assert torch.equal(model(text[:, :-1], use_cache=False).logits[0, 13:].argmax(-1), text[0, 14:])


def test_hooks_are_undone(tiny_model: Callable, adapted: Callable):
    base = tiny_model("llama")
    names = list(base.state_dict())
    model: Any = adapted(base, METHOD)
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == 1 + 3 * 6, "the pass, and each layer's three"
    assert list(revert(model).state_dict()) == names
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_what_cannot_leave_keys_out_is_refused(tiny_model: Callable):
    flash: Any = tiny_model("llama")
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        convert(flash, METHOD)
    model: Any = convert(tiny_model("llama"), Places(holes=(3,)))
    fixed = StaticCache(config=model.config, max_cache_len=32)
    with torch.no_grad(), pytest.raises(ValueError, match="growing cache"):
        decoded(model, IDS, [6, 4, 4], fixed)
