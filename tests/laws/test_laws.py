"""The laws of every method, over METHODS x FAMILIES: a new line in either list is covered at once.

1 keep-all is the base; 2 weights are zero off their branch; 3 what is skipped has no influence, and costs nothing;
4 no token sees a later one; 5 a row does not depend on its neighbours; 6 frozen means frozen; 7 one big batch is many
small ones; 8 save, load, same logits; 10 random choices belong to the row; 11 a gate says what the method says, and who
says so does not look at its input. Law 9 (random and static always stand beside
a method) is a table of results, not a test. That the engine equals the reference is the engine's own test.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from depthdial.core.decision import Decision, Site
from depthdial.core.layers import LinearRouter, Part, Router
from depthdial.core.method import Dims, Method
from depthdial.core.routed import Routed
from depthdial.methods import METHODS, method_named
from depthdial.models.checkpoint import attach, parts_of, save
from depthdial.models.convert import routed
from depthdial.models.families import FAMILIES
from depthdial.train.lesson import Lesson, row_keys

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "flexidepth": {
        "hard": {"weights": "hard"},
        "scaled": {"gate_gradient": "soft_scale", "router_order": "tanh_norm"},
    },
    "skiplayer": {
        "modules": {"units": ("attn", "mlp"), "first": 2},
        "mlps": {"units": ("mlp",), "first": 2},
    },
    "mixture_of_depths": {"sigmoid": {"every": 2, "weights": "sigmoid"}},
    "random": {"bare": {"rate": 0.4, "adapter_ratio": 0, "first": None}},
    "static": {"bare": {"order": (0, 5), "count": 1, "adapter_ratio": 0}},
}
"""Fields beside a method's own example, by variant. A method need not be here: all are tested by their examples."""
FIXED = {name: {"fixed": {"fixed_input": True}} for name, kind in METHODS.items() if "fixed_input" in vars(kind)}
"""The control that cannot see the token, of every method with a router."""
EXAMPLE, PLAIN, ODD = "example", "llama", "gemma3_text"
"""A method's example meets every family; the variants the plainest one and the one with most norms."""


def cases(which: Callable[[Method], bool] = lambda _: True) -> list[Any]:
    """Every family, method and variant, where `which` holds of the method."""
    return [
        pytest.param((family, method, fields), id=f"{method}-{variant}-{family}")
        for method in METHODS
        for variant, fields in variants(method).items()
        for family in FAMILIES
        if (variant == EXAMPLE or family in (PLAIN, ODD)) and which(method_named(method, fields))
    ]


def variants(method: str) -> dict[str, dict[str, Any]]:
    """A method's fields, by name of the variant."""
    example, more = dict(METHODS[method].example), {**VARIANTS.get(method, {}), **FIXED.get(method, {})}
    return {EXAMPLE: example, **{name: {**example, **fields} for name, fields in more.items()}}


def has_parts(method: Method) -> bool:
    dims = Dims(hidden=32, intermediate=64, eps=1e-6)
    return any(method.parts(Site(layer, unit), dims) for layer in method.layers(6) for unit in method.units)


def of_cases(which: Callable[[Method], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases(which), indirect=True)


@dataclass(frozen=True)
class Case:
    """Two models of the same weights: one as it came, one converted by the method under test."""

    name: str
    base: Any
    model: Any

    @property
    def keeps(self) -> dict[Any, Tensor]:
        return {site: decision.keep.clone() for site, decision in self.model.route.decisions.items()}


@pytest.fixture(scope="module")
def bases(tiny_model: Callable) -> dict[str, PreTrainedModel]:
    """One untouched model of each family; copying it is cheaper than making another."""
    return {family: tiny_model(family) for family in FAMILIES}


@pytest.fixture(params=cases())
def case(request: pytest.FixtureRequest, bases: dict[str, PreTrainedModel], adapted: Callable) -> Case:
    family, name, fields = request.param
    base = bases[family]
    return Case(name, base, adapted(copy.deepcopy(base), method_named(name, fields)))


def tokens(rows: int = 3, length: int = 12) -> Tensor:
    """int64 [rows, length]; longer than the sliding windows of the tiny models."""
    return torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(rows))


def forward(model: Any, ids: Tensor, offset: float | Tensor = 0.0, **kwargs: Any) -> Tensor:
    """Logits [B, T, vocabulary] in inference mode, with the dial at `offset`."""
    model.route.offset = offset
    with torch.no_grad():
        return model(ids, **kwargs).logits


def decoded(model: Any, ids: Tensor, prompt: int) -> Tensor:
    """Logits [B, T, vocabulary] of a cached pass over `prompt` tokens and then of one pass a token."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        steps = [ids[:, :prompt], *ids[:, prompt:].split(1, dim=1)]
        return torch.cat([model(step, past_key_values=cache, use_cache=True).logits for step in steps], dim=1)


def differing(model: Any, ids: Tensor, offset: float | Tensor, pads: list[int]) -> Tensor:
    """Logits of rows padded on the left, each with its own number of pads, at the positions they have alone."""
    mask = torch.tensor([[0] * n + [1] * (ids.shape[1] - n) for n in pads])
    return forward(
        model, ids * mask, offset, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), use_cache=False
    )


def decides(case: Case) -> bool:
    """Is there anything to decide? A method without sites is the base, and one that skips nothing says so."""
    return bool(routed(case.model)) and case.model.method.skips


def test_the_laws_are_tested_where_tokens_differ(case: Case) -> None:
    """A method that never skips, or never runs, would keep every law below."""
    forward(case.model, tokens())
    assert set(case.keeps) == set(routed(case.model)), "every site decides"
    if not decides(case):
        assert all(keep.all() for keep in case.keeps.values()), "skips = False is a promise"
        assert case.model.method.skips is False or case.name == "dense", "nothing is routed: it is the base"
        return
    keep = torch.stack(list(case.keeps.values()))
    assert 0.1 < keep.float().mean() < 0.9, "some must be skipped and some kept; give the method an `example` with both"
    assert case.model.route.cost() != 1.0
    if not case.model.method.steps:
        assert all(0 < kept.float().mean() < 1 for kept in keep), "at each site"


def test_the_laws_would_see_a_method_that_never_skips(tiny_model: Callable, adapted: Callable) -> None:
    model: Any = adapted(tiny_model("llama"), method_named("random", {**METHODS["random"].example, "rate": 1 - 1e-9}))
    with pytest.raises(AssertionError, match="give the method an `example`"):
        test_the_laws_are_tested_where_tokens_differ(Case("random", None, model))


@pytest.mark.parametrize("offset", [math.inf, 1e9, torch.tensor([math.inf, 1e9, math.inf])], ids=["inf", "1e9", "rows"])
def test_1_keep_all_is_the_base_bit_for_bit(case: Case, offset: float | Tensor) -> None:
    ids = tokens()
    assert torch.equal(forward(case.model, ids, offset), case.base(ids).logits)
    assert (case.model.route.layers_used == case.base.config.num_hidden_layers).all()
    assert torch.equal(decoded(case.model, ids, 5), decoded(case.base, ids, 5))
    if not isinstance(offset, Tensor) and offset == math.inf:
        assert case.model.route.cost() == 1.0


def test_1_what_is_read_in_full_is_the_base(case: Case) -> None:
    """Beside tokens of the same rows that are written."""
    ids, route = tokens(), case.model.route
    route.read, route.read_offset = torch.arange(12).expand(3, 12) < torch.tensor([[5], [12], [0]]), math.inf
    logits, expected = forward(case.model, ids), case.base(ids).logits
    assert torch.equal(logits[0, :5], expected[0, :5]) and torch.equal(logits[1], expected[1])
    cost = route.token_cost()
    assert cost[route.read].eq(1.0).all()
    if decides(case):
        assert not torch.equal(logits[0, 5:], expected[0, 5:]) and not cost[2].eq(1.0).all()
    route.read = None
    torch.testing.assert_close(forward(case.model, ids)[2], logits[2], rtol=1e-5, atol=1e-5)
    mixed = torch.tensor([[0.0] * 6 + [math.inf] * 6, [-0.5] * 12, [1.0, -1.0] * 6])
    forward(case.model, ids, mixed)
    assert case.model.route.token_cost()[0, 6:].eq(1.0).all()


def test_2_weights_are_zero_off_their_branch(case: Case) -> None:
    for training in (False, True):
        case.model.route.training, case.model.route.offset = training, 0.0
        case.model(tokens())
        for decision in case.model.route.decisions.values():
            assert (decision.run[~decision.keep] == 0).all()
            assert (decision.skip[decision.keep] == 0).all()


def test_3_what_is_skipped_has_no_influence(case: Case) -> None:
    ids = tokens()
    expected, keeps = forward(case.model, ids), case.keeps
    with noise(case.model, keeps) as calls:
        assert torch.equal(forward(case.model, ids), expected)
    assert all(torch.equal(keep, keeps[site]) for site, keep in case.keeps.items())
    rows = {(site, tuple(ids.shape)): 1 for site in keeps}
    assert calls == rows, "the reference runs each unit once, for every token; only an engine may run fewer"


@contextmanager
def noise(model: Any, keeps: dict[Any, Tensor]) -> Iterator[dict[Any, int]]:
    """Replace by huge numbers: each unit's output at skipped tokens, each bypass's at kept ones, and the K and V of
    skipped tokens if the method says that nobody asks for them. Gives the number of calls by site and shape."""
    calls: dict[Any, int] = {}

    def spoil(out: Tensor, where: Tensor) -> Tensor:
        return torch.where(where[..., None], torch.randn_like(out) * 1e4, out)

    def unit(site: Any, keep: Tensor):
        def hook(_module: nn.Module, _args: tuple, out: Any) -> Any:
            update = out[0] if isinstance(out, tuple) else out
            key = (site, tuple(update.shape[:2]))
            calls[key] = calls.get(key, 0) + 1
            spoiled = spoil(update, ~keep)
            return (spoiled, *out[1:]) if isinstance(out, tuple) else spoiled

        return hook

    def at(where: Tensor):
        return lambda _module, _args, out: spoil(out, where)

    with ExitStack() as stack:
        for site, keep in keeps.items():
            wrapped = routed(model)[site]
            stack.callback(wrapped.unit.register_forward_hook(unit(site, keep), prepend=True).remove)
            for part in wrapped.parts.values():
                if isinstance(part, Part) and part.runs_for == "skipped":
                    stack.callback(part.register_forward_hook(at(keep)).remove)
            if model.method.kv != "project":
                for name, linear in wrapped.unit.named_modules():
                    if name.endswith(("k_proj", "v_proj")):
                        stack.callback(linear.register_forward_hook(at(~keep)).remove)
        yield calls


def test_3_what_is_skipped_costs_nothing(case: Case) -> None:
    offset = torch.tensor([0.0, -1.0, math.inf])
    forward(case.model, tokens(), offset)
    dense = linear(case.base.get_decoder().layers) + case.base.get_output_embeddings().weight.numel()
    work = torch.full((3, 12), dense, dtype=torch.float64)
    for site, unit in routed(case.model).items():
        skipped = ~case.keeps[site]
        for part in unit.parts.values():
            macs = linear(part)
            if isinstance(part, Router):  # its last two matrices have nothing between them: at inference one vector
                macs = linear(part.enc) + part.enc.out_features
            if isinstance(part, LinearRouter):  # two logits, of which the difference counts
                macs = part.head.in_features
            if isinstance(part, Router | LinearRouter) and part.fixed:  # a number
                macs = 0
            work += macs * (skipped if isinstance(part, Part) and part.runs_for == "skipped" else 1)
        work -= (linear(unit.unit) - written(unit, case.model.method.kv)) * skipped
    work[2] = dense  # a row at `inf` makes no decision
    torch.testing.assert_close(case.model.route.token_cost().double(), work / dense, rtol=1e-6, atol=0)
    assert case.model.route.cost() == pytest.approx(float(work.mean() / dense), rel=1e-6)


def linear(module: nn.Module) -> int:
    """Multiply-accumulates per token, from nothing but the shapes of weights."""
    return sum(
        m.in_features * m.out_features
        for name, m in module.named_modules()
        if isinstance(m, nn.Linear) and not name.startswith("parts.")
    )


def written(unit: Routed, kv: str) -> int:
    """What a skipped token still pays for its K and V."""
    named = unit.unit.named_modules()
    return sum(linear(m) for name, m in named if name.endswith(("k_proj", "v_proj"))) if kv == "project" else 0


def test_3_the_floor_is_the_cost_of_skipping_everything(case: Case) -> None:
    forward(case.model, tokens(), -1e9)
    cost = case.model.route.token_cost()
    if decides(case):
        assert not any(keep.any() for keep in case.keeps.values())
        torch.testing.assert_close(cost, torch.full_like(cost, case.model.route.ledger.floor), rtol=1e-6, atol=0)


def test_4_a_later_token_changes_nothing_before_it(case: Case) -> None:
    ids = tokens()
    other = ids.clone()
    other[:, 7] = (ids[:, 7] + 1) % 300
    seen = []
    for given in (ids, other):
        logits = forward(case.model, given)[:, :7]
        fields = [
            field[:, :7]
            for d in case.model.route.decisions.values()
            for field in (d.keep, d.run, d.skip, d.score)
            if field is not None
        ]
        seen.append([logits, case.model.route.token_cost()[:, :7], *fields])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


@pytest.mark.parametrize("rows", [False, True], ids=["one offset", "an offset per row"])
def test_5_a_row_does_not_depend_on_its_neighbours(case: Case, rows: bool) -> None:
    ids, pads = tokens(4), [0, 5, 9, 2]
    offsets = [0.0, -0.7, 1.3, math.inf] if rows else [0.2] * 4
    batch = differing(case.model, ids, torch.tensor(offsets) if rows else offsets[0], pads)
    keeps, costs = case.keeps, case.model.route.token_cost()
    for i, (offset, pad) in enumerate(zip(offsets, pads, strict=True)):
        alone = forward(case.model, ids[i : i + 1, pad:], offset, use_cache=False)
        torch.testing.assert_close(batch[i : i + 1, pad:], alone, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(keeps[site][i : i + 1, pad:], keep) for site, keep in case.keeps.items())
        assert torch.equal(costs[i : i + 1, pad:], case.model.route.token_cost())


@of_cases(lambda method: has_parts(method) and method.frozen)
def test_6_frozen_means_frozen(case: Case, packed: Callable) -> None:
    before = {name: tensor.clone() for name, tensor in parts_of(case.model).items()}
    lesson = Lesson(case.model, "distill", None)
    optimizer = torch.optim.AdamW(lesson.parameters(), lr=1e-2, weight_decay=0.0)
    lesson(**packed())["loss"].backward()
    optimizer.step()

    frozen = {n: p for n, p in case.model.named_parameters() if ".parts." not in n}
    assert len(frozen) == len(dict(case.base.named_parameters()))
    assert all(p.grad is None and not p.requires_grad for p in frozen.values())
    assert torch.equal(forward(case.model, tokens(), math.inf), case.base(tokens()).logits)
    own = sorted((tuple(t.shape), float(t.detach().sum())) for t in case.base.parameters())
    assert sorted((tuple(t.shape), float(t.sum())) for t in frozen.values()) == own

    case.model.route.offset = 0.0
    lesson(**packed())
    for site, keep in case.keeps.items():
        mine = [name for name in before if name.startswith(f"layers.{site.layer}.{site.unit}.")]
        if decides(case) and not keep.all():  # an adapter that nobody used has nothing to learn
            after = parts_of(case.model)
            assert all(not torch.equal(before[name], after[name]) for name in mine)


@of_cases(has_parts)
@pytest.mark.parametrize("objective", ["lm", "distill"])
def test_7_one_big_batch_is_many_small_ones(case: Case, packed: Callable, objective: Any) -> None:
    lesson, batch = Lesson(case.model, objective, None), packed()
    whole = lesson(**batch)["loss"]
    whole.backward()
    big = {name: p.grad.clone() for name, p in lesson.named_parameters() if p.grad is not None}
    assert big
    lesson.zero_grad()
    items = (batch["labels"] != -100).sum()
    total = torch.zeros(())
    for i in range(4):
        row = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        loss = lesson(**row, num_items_in_batch=items)["loss"]
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(total, whole.detach())
    small = {name: p.grad for name, p in lesson.named_parameters() if p.grad is not None}
    torch.testing.assert_close(small, big, rtol=1e-3, atol=1e-5)


def test_8_save_load_same_logits(case: Case, tmp_path: Path) -> None:
    for tensor in parts_of(case.model).values():  # as after training: no number is a round one
        tensor.add_(torch.randn_like(tensor) * 0.05)
    expected = forward(case.model, tokens())
    folder = save(case.model, tmp_path / "plugin")
    model = attach(copy.deepcopy(case.base), folder)
    assert torch.equal(forward(model, tokens()), expected)
    route: Any = model.route
    assert torch.equal(route.token_cost(), case.model.route.token_cost())


def test_10_random_choices_belong_to_the_row(case: Case) -> None:
    ids, order = tokens(4), torch.tensor([2, 0, 3, 1])
    seen = []
    for seed, rows in ((1, ids), (2, ids[order]), (3, ids[order][:2])):
        torch.manual_seed(seed)
        case.model.route.training, case.model.route.sample = True, row_keys(rows)
        forward(case.model, rows)
        seen.append(case.keeps)
    for site, keep in seen[0].items():
        assert torch.equal(keep[order], seen[1][site])
        assert torch.equal(keep[order][:2], seen[2][site])


def asked(case: Case, layer: int, x: Tensor, offset: Tensor) -> tuple[Any, Any]:
    """The method's own decisions of a layer's attention and MLP for the input x: [B, T, d]."""
    route = case.model.route
    route.begin((x.shape[0], x.shape[1]), None)
    route.offset, route.positions = offset, torch.arange(x.shape[1])[None]
    for unit in case.model.method.units:
        site = Site(layer, unit)
        route.decisions[site] = case.model.method.decide(routed(case.model)[site].parts, x, site, route)
    if case.model.method.units == ("layer",):
        return (route.decisions[Site(layer, "layer")],) * 2
    return tuple(route.decisions[Site(layer, unit)] for unit in ("attn", "mlp"))


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("keep", "run", "skip"))


@torch.no_grad()
def test_11_a_gate_says_what_the_method_says(case: Case) -> None:
    method, x = case.model.method, torch.randn(5, 40, 32, generator=torch.Generator().manual_seed(3))
    offset = torch.tensor([0.0, 1.5, -2.0, math.inf, 0.3])
    for layer in sorted({site.layer for site in routed(case.model)}):
        parts = {site.unit: unit.parts for site, unit in routed(case.model).items() if site.layer == layer}
        gate = method.gate(parts, layer)
        if gate is None:
            continue
        if gate.router is None:
            assert not method.reads_input, "somebody must decide"
            attn, mlp = asked(case, layer, x, offset)
            assert same(attn, mlp) and same(attn, Decision.hard(attn.keep)), "a given decision has weights 0 and 1"
        else:
            for mine, own in zip(gate.decide(x, offset[:, None]), asked(case, layer, x, offset), strict=True):
                assert same(mine, own) and torch.equal(mine.score, own.score)
                assert own.keep[3].all() and 0 < own.keep.float().mean() < 1
        last = method.units[-1]
        bypass = method.bypass(parts[last], x, Site(layer, last))
        assert (bypass is None) == (gate.adapter is None)
        assert last == "layer" or method.bypass(parts["attn"], x, Site(layer, "attn")) is None
        assert gate.adapter is None or torch.equal(bypass, gate.adapter(x))


@of_cases(lambda method: not method.reads_input)
def test_11_all_layers_at_once_are_what_each_layer_says(case: Case) -> None:
    route, method = case.model.route, case.model.method
    forward(case.model, tokens(), torch.tensor([0.0, -1.0, 1.0]))
    first = {site.layer: site for site in sorted(case.keeps, reverse=True) if site.unit != "mlp"}
    found = method.keeps(sorted(first), route)
    if found is not None:
        assert torch.equal(found, torch.stack([case.keeps[first[layer]] for layer in sorted(first)]))


@of_cases(lambda method: not method.reads_input)
def test_11_who_does_not_read_does_not_look(case: Case) -> None:
    x, offset = torch.randn(2, 9, 32), torch.tensor([0.0, -1.0])
    for layer in {site.layer for site in routed(case.model)}:
        for one, other in zip(asked(case, layer, x, offset), asked(case, layer, x * torch.nan, offset), strict=True):
            assert same(one, other)
