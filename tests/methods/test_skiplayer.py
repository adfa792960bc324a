"""SkipLayer against the paper's forward written by hand: routers, noise, losses and gradients of a tiny Llama."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.methods.asking import ask, tokens
from torch import Tensor

from depthdial.core.decision import Decision
from depthdial.core.draws import uniform
from depthdial.core.method import Dims
from depthdial.core.tokens import Trace
from depthdial.methods import SkipLayer, method_named
from depthdial.models.checkpoint import parts_of
from depthdial.models.convert import revert

IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
KEYS = torch.tensor([11, 4_000_000])
DEPTH = 4


@pytest.fixture
def make(tiny_model: Callable, adapted: Callable) -> Callable[..., Any]:
    def model(**fields: Any) -> Any:
        return adapted(tiny_model("llama", num_hidden_layers=DEPTH), SkipLayer(first=1, temperature=0.7, **fields))

    return model


def routers(model: Any) -> dict[int, Tensor]:
    """The two rows of each router, [2, d], by layer."""
    return {int(name.split(".")[1]): weight for name, weight in parts_of(model).items()}


def by_hand(
    model: Any, weights: dict[int, Tensor], share: float | None, detach: bool
) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits and r of the paper's model: y = r F(x) + (1 - r) x. `model` is a stock Llama; share: of the noise, None in
    inference."""
    places = torch.arange(IDS.shape[1])[None]
    x, ran = model.model.embed_tokens(IDS), {}
    rope = model.model.rotary_emb(x, position_ids=places)
    for i, layer in enumerate(model.model.layers):
        block = layer(x, position_embeddings=rope, position_ids=places)
        if i not in weights:
            x = block
            continue
        z = layer.input_layernorm(x)
        run, skip = ((z.detach() if detach else z) @ weights[i].T).unbind(-1)
        if share is not None:  # a two-way Gumbel-softmax: only the difference of the two noises counts
            draw = uniform(0, i, KEYS[:, None], places)
            noise = share * (draw / (1 - draw)).log().float()
            soft = torch.stack([(run + noise) / 0.7, skip / 0.7], -1).softmax(-1)[..., 0]
            r = (soft > 0.5).float() + soft - soft.detach()
        else:
            r = (run > skip).float()
        ran[i] = r
        x = r[..., None] * block + (1 - r[..., None]) * x
    return model.lm_head(model.model.norm(x)), ran


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("share", [None, 1.0, 0.4, 0.0])
def test_forward_and_gradients_are_the_papers(make: Callable, share: float | None, detach: bool):
    noisy = share is not None
    model = make(detach=detach, **({"noise": share} if noisy else {}))
    model.converted.set(training=noisy, key=KEYS if noisy else None)
    weights = routers(model)
    model(IDS).logits.square().mean().backward()
    logits = model(IDS).logits
    decisions = model.route.decisions
    learned = {name: p.grad.clone() for name, p in model.named_parameters() if ".parts." in name and p.grad is not None}
    body = [p.grad.clone() for name, p in model.named_parameters() if ".parts." not in name]
    stock = revert(model)
    stock.zero_grad()
    weights = {i: weight.detach().clone().requires_grad_() for i, weight in weights.items()}
    expected, ran = by_hand(stock, weights, share, detach)
    torch.testing.assert_close(logits, expected)
    for i, r in ran.items():
        assert torch.equal(decisions[i].keep, r > 0.5)
    assert 0.1 < torch.stack([d.keep for d in decisions.values()]).float().mean() < 0.9
    expected.square().mean().backward()
    for ours, theirs in zip(body, (p.grad for p in stock.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert bool(learned) == noisy, "greedy decisions teach the router nothing"
    for name, grad in learned.items():
        theirs = weights[int(name.split(".")[2])].grad
        assert theirs is not None and theirs.abs().max() > 0
        torch.testing.assert_close(grad, theirs, rtol=1e-4, atol=1e-7)


def loss_of(method: SkipLayer, run: Tensor, **of: Any) -> Tensor:
    """Of a pass over two layers, [B, T]. run: [2, B, T]."""
    trace = Trace(method.program(2))
    for s, r in enumerate(run.flatten(1)):
        trace.decisions[s] = Decision(r > 0.5, r, 1 - r)
    loss = method.loss(tokens(run.shape[1], run.shape[2], **of), trace)
    assert loss is not None
    return loss.view(run.shape[1:])


def test_loss_of_each_row_by_hand():
    run = torch.tensor([[[1.0, 1, 0, 1], [0, 0, 0, 0]], [[1, 0, 1, 0], [1, 1, 1, 1]]])
    loss = loss_of(SkipLayer(density=0.5), run)
    rows = [0.1 * ((3 / 4 - 0.5) ** 2 + 0), 0.1 * (0.25 + 0.25)]
    torch.testing.assert_close(loss, torch.tensor(rows)[:, None].expand(2, 4))
    real = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    loss = loss_of(SkipLayer(density=0.25, alpha=2.0), run, real=real)
    rows = [2 * ((2 / 3 - 0.25) ** 2 + (1 / 3 - 0.25) ** 2), 2 * (0.25**2 + 0.75**2)]
    torch.testing.assert_close(loss, torch.tensor(rows)[:, None].expand(2, 4))


def test_loss_of_a_whole_step_is_exact_in_parts():
    """The paper's (r - P)^2 over all tokens, value and gradient, from passes that see a row each."""
    run = torch.rand(2, 6, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    whole = 0.1 * (run.mean((1, 2)) - 0.3).square().sum()
    (expected,) = torch.autograd.grad(whole, run)
    measured = {s: r.detach().mean() for s, r in enumerate(run)}
    method = SkipLayer(density=0.3)
    parts = [loss_of(method, run[:, i : i + 1], density=measured) for i in range(6)]
    total = torch.stack([part.sum() for part in parts]).sum() / 30
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(total, run)[0], expected)


@torch.no_grad()
def test_noise_is_fair_at_any_temperature_and_absent_in_inference():
    method, x = SkipLayer(temperature=5.0), torch.zeros(1, 20_000, 8)
    parts = method.parts(method.program(6).steps[0], Dims(8, 16))
    assert ask(method, parts, x, offset=0.8).keep.all()
    ran, rate = ask(method, parts, x, offset=0.8, training=True), 1 / (1 + math.exp(-0.8))
    assert abs(float(ran.keep.float().mean()) - rate) < 5 * math.sqrt(rate * (1 - rate) / 20_000)
    torch.testing.assert_close(ran.score, torch.full((1, 20_000), rate))


def test_modules_decide_by_themselves(tiny_model: Callable, adapted: Callable):
    model: Any = adapted(tiny_model("llama"), SkipLayer(units=("attn", "mlp")))
    for training in (False, True):
        model.converted.set(training=training)
        model(IDS)
        for layer in range(6):
            attn, mlp = (model.route.decisions[2 * layer + i].keep for i in (0, 1))
            assert not torch.equal(attn, mlp)
    method, last = model.converted.method, model.route.last
    loss = method.loss(last.tokens, last.trace).view(2, 9)
    shares = torch.stack([d.keep.float().mean(-1) for d in model.route.decisions.values()])
    torch.testing.assert_close(loss, (0.1 * (shares - 0.5).square().sum(0))[:, None].expand(2, 9))
    units = model.converted.routed
    assert all(method.lowered(unit.parts, s).like is None for s, unit in units.items()), "each half by itself"


def test_sampled_draws_by_chance_and_learns_straight_through():
    method, x = SkipLayer(estimator="sampled", temperature=3.0), torch.zeros(1, 20_000, 8)
    parts = method.parts(method.program(6).steps[0], Dims(8, 16))
    weight = parts["router"].head.weight
    ran = ask(method, parts, x + torch.randn(8), offset=0.4, training=True)
    rate = float(ran.score.detach().mean())
    assert abs(float(ran.keep.float().mean()) - rate) < 5 * math.sqrt(rate * (1 - rate) / 20_000)
    (ours,) = torch.autograd.grad(ran.run.mean(), weight, retain_graph=True)
    (theirs,) = torch.autograd.grad(ran.score.mean(), weight)
    torch.testing.assert_close(ours, theirs)
    late = ask(method, parts, x + torch.randn(8), offset=0.4, training=True, progress=1.0)
    assert torch.equal(late.keep, late.score > 0.5), "nothing is left to chance at the end"


def test_reinforce_by_hand():
    """d loss / d logit = (loss of the token - mean) (kept - chance); weights have no gradient."""
    method, x = SkipLayer(estimator="reinforce", alpha=0.0), torch.randn(1, 40, 8)
    parts = method.parts(method.program(1).steps[0], Dims(8, 16))
    trace = Trace(method.program(1))
    ran = ask(method, parts, x, trace=trace, training=True)
    assert not ran.run.requires_grad
    came = torch.rand(40)
    loss = method.loss(replace(tokens(1, 40, training=True), loss=came), trace)
    (grad,) = torch.autograd.grad(loss.sum(), parts["router"].head.weight)
    push = (came - came.mean()) * (ran.keep.float() - ran.score.detach())[0]
    by_hand = torch.stack([push @ x[0], -push @ x[0]])
    torch.testing.assert_close(grad, by_hand, rtol=1e-4, atol=1e-5)
    assert 0.1 < ran.keep.float().mean() < 0.9
    with pytest.raises(ValueError, match="needs what came of each token"):
        method.loss(tokens(1, 40), trace)


def test_a_share_over_all_layers_lets_some_run_more():
    run = torch.tensor([[[1.0, 1, 1, 1]], [[0, 0, 0, 0]]])
    assert (loss_of(SkipLayer(density=0.5, over="all"), run) == 0).all()
    assert (loss_of(SkipLayer(density=0.5), run) > 0.04).all()
    whole = loss_of(SkipLayer(density=0.25, over="all"), run, density={0: torch.tensor(1.0), 1: torch.tensor(0.0)})
    torch.testing.assert_close(whole.mean(), torch.tensor(0.1 * 0.25**2))


def test_a_router_with_a_bottleneck_starts_from_running_everything(make: Callable):
    model = make(router_ratio=4, start=20.0)
    model(IDS)
    assert all(decision.keep.all() for decision in model.route.decisions.values())
    with model.converted.using(offset=-40.0):
        model(IDS)
    assert not any(decision.keep.any() for decision in model.route.decisions.values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0.0}, "density must lie between 0 and 1, not 0.0"),
        ({"density": 1.5}, "density must lie"),
        ({"density": float("nan")}, "density of method .* is a number, not nan"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"noise": 1.5}, "noise is a share"),
        ({"alpha": -1}, "alpha must not be below 0"),
        ({"units": ["layer", "mlp"]}, "units must be layer, or attn and mlp"),
        ({"estimator": "exact"}, "estimator must be"),
        ({"over": "row"}, "over must be"),
        ({"start": 1.0}, "start is of a router with a bias"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        method_named("skiplayer", fields)
    assert method_named("skiplayer", {"units": "layer", "but": [2]}) == SkipLayer(but=(2,))
