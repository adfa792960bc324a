"""Gathered rows equal the dense reference, run no more than the kept tokens, and train what the reference trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from depthdial.methods import Highway, MixtureOfDepths, Random, SkipLayer
from depthdial.models.convert import convert
from depthdial.models.families import FAMILIES
from depthdial.train.gathered import GatheredLayer, gather, gathered

METHODS = {
    "skiplayer": SkipLayer(density=0.5),
    "mixture_of_depths": MixtureOfDepths(capacity=0.5, every=2),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@pytest.fixture
def make(tiny_model: Callable) -> Callable[..., Any]:
    def make(method: Any, attention: str = "sdpa", family: str = "llama") -> Any:
        model = tiny_model(family)
        model.set_attn_implementation(attention)
        torch.manual_seed(3)
        convert(model, method)
        model.requires_grad_()
        return model

    return make


def layers(model: Any) -> list[GatheredLayer]:
    return [found for unit in model.converted.routed.values() if (found := gathered(unit.unit)) is not None]


def run(model: Any, ids: Tensor, training: bool, **kwargs: Any) -> Tensor:
    model.converted.set(training=training, key=torch.arange(len(ids)) if training else None)
    return model(input_ids=ids, use_cache=False, **kwargs).logits


@every_method
@attention
@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_it_equals_the_reference_and_runs_the_kept_tokens_only(make, method: Any, attention: str, training: bool):
    model = make(method, attention)
    names = list(model.state_dict())
    for seed in range(3):
        ids = torch.randint(3, 300, (3, 21), generator=torch.Generator().manual_seed(seed))
        expected = run(model, ids, training)
        keep = {s: d.keep.clone() for s, d in model.route.decisions.items()}
        undo = gather(model)
        assert list(model.state_dict()) == names, "checkpoints do not change"
        torch.testing.assert_close(run(model, ids, training), expected, rtol=1e-5, atol=1e-5)
        ran = {layer.s: layer.ran for layer in layers(model)}
        assert ran == {s: int(k.sum()) for s, k in keep.items()}
        assert any(0 < n < ids.numel() for n in ran.values())
        undo()
        assert not layers(model)


REFUSED = ("gemma2", "gpt_oss", "ministral3")
"""Families whose attention has more to it than scores and a mask."""


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("llama", *REFUSED)])
@torch.no_grad()
def test_every_family_can_be_gathered(make, family: str):
    model, ids = make(SkipLayer(), family=family), torch.randint(3, 300, (2, 21))
    expected = run(model, ids, True)
    undo = gather(model)
    torch.testing.assert_close(run(model, ids, True), expected, rtol=1e-5, atol=1e-5)
    assert any(0 < layer.ran < ids.numel() for layer in layers(model))
    undo()


@every_method
def test_padding_and_caches_pass_through(make, method: Any):
    model = make(method)
    ids = torch.randint(3, 300, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :4] = 0
    with torch.no_grad():
        expected = run(model, ids, False, attention_mask=mask)
        told = model.generate(ids[1:], max_new_tokens=6, do_sample=False)
        undo = gather(model)
        found = run(model, ids, False, attention_mask=mask)
        assert torch.equal(model.generate(ids[1:], max_new_tokens=6, do_sample=False), told)
        undo()
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)


@every_method
def test_gradients_are_the_references_but_for_the_term_that_needs_what_was_skipped(make, method: Any):
    model, ids = make(method), torch.randint(3, 300, (3, 17), generator=torch.Generator().manual_seed(0))

    def gradients(mute: bool) -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        if mute:  # the reference without <dy, F(x) - x> at skipped tokens: F's output there is x itself
            hooks = [u.unit.register_forward_hook(still(u), prepend=True) for u in model.converted.routed.values()]
        logits = run(model, ids, True)
        extra = model.converted.method.loss(model.route.last.tokens, model.route.last.trace)
        loss = logits.square().mean() + (0.0 if extra is None else extra.mean())
        loss.backward()
        if mute:
            for hook in hooks:
                hook.remove()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def still(unit: Any) -> Callable[..., Tensor]:
        def hook(_module: Any, args: tuple, out: Tensor) -> Tensor:
            return torch.where(model.route.decisions[unit.s].keep[..., None], out, args[0])

        return hook

    whole, reference = gradients(mute=False), gradients(mute=True)
    undo = gather(model)
    found = gradients(mute=False)
    undo()
    assert found.keys() == reference.keys()
    for name, gradient in reference.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    same = all(torch.allclose(whole[name], found[name], rtol=1e-4, atol=1e-6) for name in whole)
    assert same == (not isinstance(method, SkipLayer)), "only a straight-through router learns from skipped tokens"


@pytest.mark.parametrize("kept", [0.0, 1.0])
@torch.no_grad()
def test_nobody_and_everybody(make, kept: float):
    model, ids = make(SkipLayer()), torch.randint(3, 300, (2, 9))
    model.converted.set(offset=1e4 * (2 * kept - 1))
    expected = model(input_ids=ids, use_cache=False).logits
    undo = gather(model)
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, expected, rtol=1e-5, atol=1e-5)
    assert {layer.ran for layer in layers(model)} == {int(kept * ids.numel())}
    undo()


def test_what_cannot_be_gathered_is_refused(make):
    with pytest.raises(ValueError, match="nothing is skipped"):
        gather(make(Highway()))
    for method in (SkipLayer(units=("attn", "mlp")), Random()):
        with pytest.raises(ValueError, match="only whole layers that are skipped"):
            gather(make(method))


@pytest.mark.parametrize("family", REFUSED)
def test_attention_of_another_kind_is_refused(make, family: str):
    with pytest.raises(ValueError, match=f"attention of {family} cannot be gathered"):
        gather(make(SkipLayer(), family=family, attention="eager"))
