"""FlexiDepth against the paper's forward written by hand: plain torch, from the weights of a tiny Llama."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.methods.asking import ask, tokens
from torch import Tensor, nn

from depthdial.core.decision import Decision
from depthdial.core.method import Dims
from depthdial.core.program import Step
from depthdial.core.routed import Pass, Routed
from depthdial.core.tokens import Trace
from depthdial.methods import METHODS, FlexiDepth, method_named
from depthdial.models.checkpoint import parts_of

DEPTH, FIRST, HEADS, KEYS, SIZE, EPS = 4, 2, 4, 2, 8, 1e-6
IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
METHOD = FlexiDepth(first=FIRST, router_ratio=4, adapter_ratio=4, start=0.0)
FORMS = [
    pytest.param(replace(METHOD, **fields), id="-".join(map(str, fields.values())))
    for fields in (
        {"weights": "soft", "router_order": "norm_tanh", "gate_gradient": "straight_through"},
        {"weights": "soft", "router_order": "norm_tanh", "gate_gradient": "soft_scale"},
        {"weights": "soft", "router_order": "tanh_norm", "gate_gradient": "straight_through"},
        {"weights": "soft", "router_order": "tanh_norm", "gate_gradient": "soft_scale"},
        {"weights": "hard", "router_order": "norm_tanh", "gate_gradient": "straight_through"},
        {"weights": "hard", "router_order": "tanh_norm", "gate_gradient": "straight_through"},
        {"weights": "hard", "detach": True},
        {"weights": "soft", "detach": True, "gate_gradient": "soft_scale"},
    )
]


def rms(x: Tensor, weight: Tensor, eps: float = EPS) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x: Tensor) -> Tensor:
    """Rotary positions 0, 1, ... x: [B, heads, T, SIZE]."""
    angle = torch.arange(x.shape[2])[:, None] * 10000.0 ** (-torch.arange(0, SIZE, 2) / SIZE)
    a, b = x[..., : SIZE // 2], x[..., SIZE // 2 :]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def attention(z: Tensor, w: Callable[[str], Tensor]) -> Tensor:
    """Causal attention with grouped keys; every token has its K and V, whatever its gate says."""

    def heads(name: str, count: int) -> Tensor:
        return (z @ w(f"self_attn.{name}_proj").T).unflatten(-1, (count, SIZE)).transpose(1, 2)

    q, k, v = turned(heads("q", HEADS)), turned(heads("k", KEYS)), heads("v", KEYS)
    k, v = (t.repeat_interleave(HEADS // KEYS, dim=1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) / SIZE**0.5
    future = torch.ones(z.shape[1], z.shape[1]).triu(1).bool()
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(-2) @ w("self_attn.o_proj").T


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def mlp(u: Tensor, w: Callable[[str], Tensor]) -> Tensor:
    return (silu(u @ w("mlp.gate_proj").T) * (u @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T


def adapter(u: Tensor, p: Callable[[str], Tensor]) -> Tensor:
    return (silu(u @ p("gate.weight").T) * (u @ p("up.weight").T)) @ p("down.weight").T


def gate(z: Tensor, p: Callable[[str], Tensor], method: FlexiDepth, offset: Tensor | float) -> Tensor:
    code = z @ p("enc.weight").T
    if method.router_order == "norm_tanh":
        code = rms(code, p("norm.weight")).tanh()
    else:
        code = rms(code.tanh(), p("norm.weight"))
    return ((code @ p("dec.weight").T @ p("head.weight").T)[..., 0] + p("bias") + offset).sigmoid()


def by_hand(model: Any, parts: dict[str, Tensor], ids: Tensor, offset: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Logits [B, T, V] and gates [routed layers, B, T] of the method's equations; autograd does the rest."""
    weights = {name: t for name, t in model.named_parameters() if ".parts." not in name}
    method = model.converted.method
    x, gates = weights["model.embed_tokens.weight"][ids], []
    for i in range(DEPTH):

        def w(name: str, i: int = i) -> Tensor:
            return weights[f"model.layers.{i}.{name}.weight"]

        z = rms(x, w("input_layernorm"))
        a = attention(z, w)
        if i < FIRST:
            x = x + a
            x = x + mlp(rms(x, w("post_attention_layernorm")), w)
            continue
        seen = z.detach() if method.detach else z
        g = gate(seen, lambda name, i=i: parts[f"layers.{i}.attn.router.{name}"], method, offset)
        gates.append(g)
        m = (g > method.tau).float()
        if method.gate_gradient == "straight_through":
            m = m + g - g.detach()
        run, skip = (m, 1 - m) if method.weights == "hard" else (m * g, (1 - m) * (1 - g))
        h = x + m[..., None] * a
        u = rms(h, w("post_attention_layernorm"))
        bypass = adapter(u, lambda name, i=i: parts[f"layers.{i}.mlp.adapter.{name}"])
        x = h + run[..., None] * mlp(u, w) + skip[..., None] * bypass
    return rms(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T, torch.stack(gates)


@pytest.fixture
def model(request: pytest.FixtureRequest, tiny_model: Callable, adapted: Callable) -> Any:
    base = tiny_model("llama", num_hidden_layers=DEPTH, rms_norm_eps=EPS, tie_word_embeddings=False)
    for name, tensor in base.named_parameters():
        if "norm" in name:  # ones tell nothing
            tensor.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    converted = adapted(base, getattr(request, "param", METHOD))
    for tensor in parts_of(converted).values():
        if tensor.ndim < 2:  # the router's norm and bias
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)))
    return converted


@pytest.mark.parametrize("model", FORMS, indirect=True)
@pytest.mark.parametrize("offset", [0.0, -0.8, torch.tensor([[0.5], [-0.5]])], ids=["0", "-0.8", "rows"])
def test_forward_is_the_papers(model: Any, offset: float | Tensor):
    model.converted.set(offset=offset[:, 0] if isinstance(offset, Tensor) else offset)
    with torch.no_grad():
        logits = model(IDS).logits
        expected, gates = by_hand(model, parts_of(model), IDS, offset)
    kept = gates > 0.5
    assert all(0 < layer.float().mean() < 1 for layer in kept), "both branches must be seen"
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    trace = model.route.last.trace
    assert torch.equal(trace.stack("keep", "attn").view_as(kept), kept)
    torch.testing.assert_close(trace.stack("score", "attn").view_as(gates), gates, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.route.layers_used, FIRST + kept.sum(0))


@pytest.mark.parametrize("model", FORMS, indirect=True)
def test_gradients_are_those_of_the_papers_forward(model: Any):
    direction = torch.randn(2, 9, 300, generator=torch.Generator().manual_seed(1))
    (model(IDS).logits * direction).mean().backward()
    given = {
        f"layers.{unit.step.block}.{unit.step.unit}.{name}": p.grad
        for unit in model.converted.routed.values()
        for name, p in unit.parts.named_parameters()
    }
    parts = {name: t.detach().clone().requires_grad_() for name, t in parts_of(model).items()}
    (by_hand(model, parts, IDS)[0] * direction).mean().backward()
    for name, part in parts.items():
        assert part.grad is not None and part.grad.any(), name
        torch.testing.assert_close(given[name], part.grad, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


class Constant(nn.Module):
    """A unit or a router whose output does not depend on its input."""

    def __init__(self, out: Tensor):
        super().__init__()
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        return self.out


class ConstantPart(Constant):
    runs_for = "all"


LOGIT = torch.tensor([[1.2, -0.4, 0.1], [-2.0, 0.6, -0.1]])
G, M = LOGIT.sigmoid(), (LOGIT > 0).float()
A, F, B, C, D = torch.randn(5, 2, 3, 7, generator=torch.Generator().manual_seed(2)).unbind()
"""Attention's update, the MLP's, the adapter's, and the directions in which the two outputs are looked at."""


def step_gradient(method: FlexiDepth) -> Tensor:
    """d/dlogit of sum(C * attention) + sum(D * mlp), where units and adapter are constants."""
    program = replace(method, first=0).program(1)
    running = Pass(program, tokens(2, 3))
    logit = LOGIT.clone().requires_grad_()
    attn = Routed(Constant(A), method, program, 0, {"router": ConstantPart(logit.view(-1))}, lambda: running)
    feed = Routed(Constant(F), method, program, 1, {"adapter": ConstantPart(B.flatten(0, 1))}, lambda: running)
    x = torch.zeros(2, 3, 7)
    ((attn.unit(x) * C).sum() + (feed.unit(x) * D).sum()).backward()
    assert logit.grad is not None
    return logit.grad


@pytest.mark.parametrize(
    ("fields", "slope"),
    [
        # d(m a)/dg = a; d(m g F)/dg = (g + m) F; d((1 - m)(1 - g) B)/dg = -((1 - g) + (1 - m)) B
        ({}, (A * C).sum(-1) + (G + M) * (F * D).sum(-1) - ((1 - G) + (1 - M)) * (B * D).sum(-1)),
        # only g itself has a gradient
        ({"gate_gradient": "soft_scale"}, M * (F * D).sum(-1) - (1 - M) * (B * D).sum(-1)),
        # run = m, skip = 1 - m
        ({"weights": "hard"}, (A * C).sum(-1) + (F * D).sum(-1) - (B * D).sum(-1)),
    ],
    ids=["straight_through", "soft_scale", "hard"],
)
def test_router_gradient_by_hand(fields: dict[str, Any], slope: Tensor):
    torch.testing.assert_close(step_gradient(replace(METHOD, **fields)), G * (1 - G) * slope)


def test_soft_scale_reaches_the_router_through_the_weights_only():
    logit, x = LOGIT.clone().requires_grad_(), torch.zeros(2, 3, 7)
    parts = {"router": ConstantPart(logit.view(-1))}
    for gradient, reaches in (("soft_scale", False), ("straight_through", True)):
        method = replace(METHOD, gate_gradient=gradient)
        trace = Trace(method.program(6))
        decision = ask(method, parts, x, (2, "attn"), trace=trace)
        assert decision.run.requires_grad == decision.skip.requires_grad == reaches
        weights = ask(method, {}, x, (2, "mlp"), trace=trace)
        assert weights.run.requires_grad and weights.skip.requires_grad


def drawing(logit: Tensor, progress: float = 0.0, row: int = 0) -> tuple[Decision, Tensor]:
    """A decision drawn in training, and the logits it was drawn from, [1, T]."""
    logit = logit.clone().requires_grad_()
    method, parts = replace(METHOD, weights="hard", gate_gradient="sampled"), {"router": ConstantPart(logit.view(-1))}
    decision = ask(method, parts, logit[..., None], training=True, progress=progress, key=torch.tensor([row]))
    return decision, logit


def test_drawn_gates_run_as_often_as_they_say():
    for value in (-1.5, 0.0, 1.0):
        decision, _ = drawing(torch.full((1, 4000), value))
        assert abs(float(decision.keep.float().mean()) - torch.tensor(value).sigmoid()) < 0.025


def test_drawn_gates_learn_as_much_as_is_left_to_chance():
    for progress, noise in ((0.0, 1.0), (0.6, 1.0), (0.725, 0.5), (0.85, 0.0), (1.0, 0.0)):
        decision, logit = drawing(LOGIT[:1], progress)
        (decision.run * 3.0).sum().backward()
        torch.testing.assert_close(logit.grad, 3.0 * noise * G[:1] * (1 - G[:1]))
    assert torch.equal(drawing(LOGIT[:1], 0.85)[0].keep, LOGIT[:1] > 0), "nothing is left to chance: the threshold"


def test_drawn_gates_are_plain_ones_outside_training():
    method = replace(METHOD, gate_gradient="sampled")
    parts = {"router": ConstantPart(LOGIT.view(-1))}
    drawn, plain = (ask(m, parts, torch.zeros(2, 3, 7)) for m in (method, METHOD))
    assert torch.equal(drawn.keep, plain.keep) and torch.equal(drawn.run, plain.run)


def test_drawn_gates_keep_the_order_of_what_a_unit_is_worth():
    """Loss a/2 (1 - m)^2, price p for running: gates settle at 1 - p / a, where plain ones end at the threshold."""
    worth, price = torch.tensor([[1.2, 2.0, 4.0, 8.0]]).repeat_interleave(64, 1), 1.0
    logit, plain = torch.zeros(1, 256), torch.zeros(1, 256)
    for step in range(1500):
        decision, leaf = drawing(logit, row=step)
        (worth / 2 * (1 - decision.run).square() + price * decision.run).sum().backward()
        assert leaf.grad is not None
        logit = logit - 0.3 * leaf.grad
        hard = plain > 0
        g = plain.sigmoid()
        plain = plain - 0.3 * g * (1 - g) * (price - worth * ~hard)
    settled = logit.sigmoid().unflatten(1, (4, 64)).mean((0, 2))
    torch.testing.assert_close(settled, torch.tensor([1 / 6, 1 / 2, 3 / 4, 7 / 8]), atol=0.06, rtol=0)
    assert plain.abs().max() < 0.7, "without draws nothing but the threshold is learnt"


def test_threshold_is_strict():
    at = torch.tensor([0.0, 1e-6, -1e-6])
    decision = ask(METHOD, {"router": ConstantPart(at)}, torch.zeros(1, 3, 7))
    assert decision.keep.tolist() == [[False, True, False]]
    higher = replace(METHOD, tau=0.7)
    at = torch.tensor([0.8, 0.9])  # sigmoid 0.690, 0.711
    decision = ask(higher, {"router": ConstantPart(at)}, torch.zeros(1, 2, 7))
    assert decision.keep.tolist() == [[False, True]]


def test_skip_loss_by_hand():
    trace, keep = Trace(FlexiDepth(first=0).program(2)), torch.ones(2, dtype=torch.bool)
    for layer, scores in enumerate(([0.5, 0.25], [0.5, 0.5])):
        score = torch.tensor(scores, dtype=torch.bfloat16)
        trace.decisions[2 * layer] = trace.decisions[2 * layer + 1] = Decision.hard(keep, score)
    loss = FlexiDepth(alpha=0.1).loss(tokens(1, 2), trace)
    assert loss is not None and loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor([0.1 * 1.0**2, 0.1 * 0.75**2]))


def test_sizes_are_the_papers():
    """Llama-3-8B: 13.1 M a layer, 209.8 M in all, the upper half."""
    method, dims = FlexiDepth(), Dims(4096, 14336)
    assert layers(method, 32) == list(range(16, 32))
    with torch.device("meta"):
        parts = [p for unit in ("attn", "mlp") for p in method.parts(Step(16, unit), dims).values()]
    size = sum(p.numel() for part in parts for p in part.parameters())
    assert round(size / 1e6, 1) == 13.1 and round(16 * size / 1e6, 1) == 209.8


def layers(method: FlexiDepth, depth: int) -> list[int]:
    program = method.program(depth)
    return sorted({program.steps[s].block for s in program.routed})


def test_layers_are_a_span_with_gaps():
    assert layers(FlexiDepth(first=1, last=5, but=(2, 3)), 6) == [1, 4]
    assert layers(FlexiDepth(), 5) == [2, 3, 4]
    for first, last in ((6, None), (None, 7), (3, 3), (-1, None)):
        with pytest.raises(ValueError, match="do not fit a model of 6 layers"):
            FlexiDepth(first=first, last=last).program(6)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"weights": "firm"}, "weights must be 'soft' or 'hard', not 'firm'"),
        ({"gate_gradient": "none"}, "gate_gradient must be"),
        ({"weights": "hard", "gate_gradient": "soft_scale"}, "no gradient"),
        ({"router_order": "sideways"}, "router_order must be"),
        ({"tau": 0.0}, "tau must lie between"),
        ({"tau": 1.0}, "tau must lie between"),
        ({"router_ratio": 0}, "at least 1"),
        ({"adapter_ratio": 0}, "at least 1"),
        ({"depth": 3}, "has no field depth"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason) as caught:
        method_named("flexidepth", fields)
    assert "\n" not in str(caught.value)


def test_unknown_methods_are_refused_with_the_list_of_known_ones():
    with pytest.raises(ValueError, match="unknown method 'flexdepth'") as caught:
        method_named("flexdepth")
    assert all(name in str(caught.value) for name in METHODS)
