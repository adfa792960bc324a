"""The laws of every method, over METHODS x FAMILIES: a new line in either list is covered at once. Beside METHODS stand
toys, for shapes of programs that need not be among them.

0 the reference is the forward written by hand; 1 keep-all is the base; 2 weights are zero off their branch; 3 what is
skipped has no influence, and costs nothing; 4 no token sees a later one; 5 a row does not depend on its neighbours;
6 frozen means frozen; 7 one big batch is many small ones; 8 save, load, same logits; 10 random choices belong to the
row; 11 what is lowered says what the method says, and who decides ahead does not look; 12 decoding with a cache is one
pass. Law 9 (random and static always stand beside a method) is a table of results, not a test. That the engine equals
the reference is the engine's own test.
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
from tests.laws.by_hand import by_hand, changes_of
from tests.laws.cover import MIXTURES, ODD, PLAIN, marks
from tests.laws.examples import DIMS
from tests.laws.toys import TOYS
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from depthdial.core.decision import Decision
from depthdial.core.layers import LinearRouter, Part, Router
from depthdial.core.method import Method, Seen
from depthdial.core.ops import Act, Dense, Look, Norm
from depthdial.core.tokens import Tokens, Trace
from depthdial.methods import METHODS, method_named
from depthdial.models.checkpoint import attach, parts_of, save
from depthdial.models.converted import Converted, converted_of
from depthdial.models.extra import OWN_BLOCKS
from depthdial.models.families import FAMILIES
from depthdial.models.family import ATTN, MLP, for_layers
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
    "readout": {"calm": {"rule": "calm", "threshold": 0.15}},
    "d3": {"reversed": {"schedule": "reversed", "length": 12}},
    "recursive": {"plain": {"rank": 0}, "whole": {"first": None, "last": None}},
}
"""Fields beside a method's own example, by variant. A method need not be here: all are tested by their examples."""
FIXED = {name: {"fixed": {"fixed_input": True}} for name, kind in METHODS.items() if "fixed_input" in vars(kind)}
"""The control that cannot see the token, of every method with a router."""
EXAMPLE = "example"
"""A method's example meets every family, most of them in slow tests (`cover`); variants the plainest one and the one
with most norms."""


def cases(which: Callable[[Method], bool] = lambda _: True, families: tuple[str, ...] = tuple(FAMILIES)) -> list[Any]:
    """Every family, method and variant, where `which` holds of the method."""
    return [
        pytest.param(
            (family, method, fields),
            id=f"{method}-{variant}-{family}",
            marks=marks(list(METHODS), method, family) if variant == EXAMPLE and method in METHODS else (),
        )
        for method in [*METHODS, *TOYS]
        for variant, fields in variants(method).items()
        for family in families
        if ((variant == EXAMPLE and method in METHODS) or family in (PLAIN, ODD)) and which(made(method, fields))
    ]


def variants(method: str) -> dict[str, dict[str, Any]]:
    """A method's fields, by name of the variant."""
    example = dict((TOYS.get(method) or METHODS[method]).example)
    more = {**VARIANTS.get(method, {}), **FIXED.get(method, {})}
    return {EXAMPLE: example, **{name: {**example, **fields} for name, fields in more.items()}}


def made(name: str, fields: dict[str, Any]) -> Method:
    return TOYS[name](**fields) if name in TOYS else method_named(name, fields)


def learns(method: Method) -> bool:
    program = method.program(6)
    parts = (part for s in program.parted for part in method.parts(program.steps[s], DIMS).values())
    return bool(program.own) or any(weight.requires_grad for part in parts for weight in part.parameters())


def of_cases(which: Callable[[Method], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases(which), indirect=True)


@dataclass(frozen=True)
class Case:
    """Two models of the same weights: one as it came, one converted by the method under test."""

    name: str
    base: Any
    model: Any

    @property
    def full(self) -> Any:
        """The untouched base as a stock model: with a layer for each visit, where it visits blocks again."""
        return unrolled(self.base, self.converted)

    def check_full(self, logits: Tensor, expected: Tensor) -> None:
        """Bit for bit; of changes that are merged in one model and not in the other, to rounding, and so of experts,
        whose sums depend on how many tokens come to them."""
        if any(step.relaxed for step in self.converted.program.steps) or self.mixed:
            self.check_near(logits, expected)
        else:
            assert torch.equal(logits, expected)

    def check_same(self, found: Tensor, expected: Tensor) -> None:
        """Bit for bit, but of experts (`check_full`)."""
        if self.mixed:
            self.check_near(found, expected)
        else:
            assert torch.equal(found, expected)

    def check_near(self, logits: Tensor, expected: Tensor) -> None:
        """To rounding. Where experts add tokens in another order, six layers of it, each times a raw weight of
        Mixture-of-Depths, made 3e-4 of it on one processor and 9e-5 on another. A token that skips where it should
        not moves logits by 1 and more."""
        near = 1e-3 if self.mixed else 1e-4
        torch.testing.assert_close(logits, expected, rtol=near, atol=near)

    @property
    def mixed(self) -> bool:
        return self.base.config.model_type in MIXTURES

    @property
    def converted(self) -> Converted:
        return converted_of(self.model)

    @property
    def keeps(self) -> dict[int, Tensor]:
        """bool [B, T], by routed step: who ran it in the last pass."""
        return {s: decision.keep.clone() for s, decision in self.model.route.decisions.items()}

    def there(self, s: int) -> tuple[Tensor, Tensor]:
        """bool [B, T] each: who waited at a step in the last pass, and who ran it."""
        last, every = self.model.route.last, torch.ones(self.model.route.shape, dtype=torch.bool)
        here, ran = last.trace.here.get(s), last.trace.ran(s)
        return tuple(every if each is None else each.view(every.shape).clone() for each in (here, ran))  # pyright: ignore


@torch.no_grad()
def unrolled(base: Any, converted: Converted) -> Any:
    """A model with a layer for each passage of the untouched base through a block, with that passage's own changes."""
    program = converted.program
    visits = [program.visits[v] for v in program.base_visits]
    if [visit.block for visit in visits] == list(range(base.config.num_hidden_layers)):
        return base
    fields = for_layers(base.config.to_dict(), [visit.block for visit in visits])
    model = type(base)(type(base.config)(**fields)).eval()
    model.load_state_dict({n: t for n, t in base.state_dict().items() if ".layers." not in n}, strict=False)
    for layer, visit in zip(model.get_decoder().layers, visits, strict=True):
        state = base.get_decoder().layers[visit.block].state_dict()
        for last, change in (pair for s in visit.steps for pair in changes_of(converted, s).items()):
            name = next(name for name in state if name.endswith(f".{last}.weight"))
            state[name] = state[name] + change
        layer.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def bases(tiny_model: Callable) -> dict[str, PreTrainedModel]:
    """One untouched model of each family; copying it is cheaper than making another."""
    return {family: tiny_model(family) for family in FAMILIES}


@pytest.fixture(params=cases())
def case(request: pytest.FixtureRequest, bases: dict[str, PreTrainedModel], adapted: Callable) -> Case:
    family, name, fields = request.param
    base = bases[family]
    return Case(name, base, adapted(copy.deepcopy(base), made(name, fields)))


def tokens(rows: int = 3, length: int = 12) -> Tensor:
    """int64 [rows, length]; longer than the sliding windows of the tiny models."""
    return torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(rows))


def forward(model: Any, ids: Tensor, offset: float | Tensor = 0.0, **kwargs: Any) -> Tensor:
    """Logits [B, T, vocabulary] in inference mode, with the dial at `offset`."""
    if hasattr(model, "converted"):
        model.converted.set(offset=offset)
    with torch.no_grad():
        return model(ids, **kwargs).logits


def decoded(model: Any, ids: Tensor, prompt: int, offset: float | Tensor, read: float | Tensor | None = None) -> Tensor:
    """Logits [B, T, vocabulary] of a cached pass over `prompt` tokens and then of one pass a token, the dial at
    `offset`; read: where it stands for the prompt, if that is read and not written."""
    cache, logits = DynamicCache(config=model.config), []
    if read is not None:
        model.converted.set(prompt=torch.full((len(ids),), prompt))
    for step in (ids[:, :prompt], *ids[:, prompt:].split(1, dim=1)):
        at = read if read is not None and not logits else offset
        logits.append(forward(model, step, at, past_key_values=cache, use_cache=True))
    return torch.cat(logits, dim=1)


def differing(model: Any, ids: Tensor, offset: float | Tensor, pads: list[int]) -> Tensor:
    """Logits of rows padded on the left, each with its own number of pads, at the positions they have alone."""
    mask = torch.tensor([[0] * n + [1] * (ids.shape[1] - n) for n in pads])
    return forward(
        model, ids * mask, offset, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), use_cache=False
    )


def decides(case: Case) -> bool:
    """Is there anything to decide? A method without routed steps is the base, and one that skips nothing says so."""
    return case.converted.program.skips


def test_the_laws_are_tested_where_tokens_differ(case: Case) -> None:
    """A method that never skips, or never runs, would keep every law below."""
    forward(case.model, tokens())
    assert tuple(case.keeps) == case.converted.program.routed, "every routed step decides"
    if not decides(case):
        assert all(keep.all() for keep in case.keeps.values()), "a program that skips nothing is a promise"
        assert case.keeps or case.name == "dense", "nothing is routed: it is the base"
        return
    kept = [ran[here] for here, ran in map(case.there, case.keeps)]
    share = torch.cat(kept).float().mean()
    assert 0.1 < share < 0.9, "some must be skipped and some kept; give the method an `example` with both"
    assert case.model.route.cost() != 1.0
    if not case.converted.method.steady:
        assert all(0 < each.float().mean() < 1 for each in kept), "at each step"


def test_the_laws_would_see_a_method_that_never_skips(tiny_model: Callable, adapted: Callable) -> None:
    model: Any = adapted(tiny_model("llama"), method_named("random", {**METHODS["random"].example, "rate": 1 - 1e-9}))
    with pytest.raises(AssertionError, match="give the method an `example`"):
        test_the_laws_are_tested_where_tokens_differ(Case("random", None, model))


@pytest.mark.parametrize("case", cases(families=(PLAIN,)), indirect=True)
@pytest.mark.parametrize("offset", [0.0, -0.4, 0.6, math.inf])
def test_0_the_reference_is_the_forward_by_hand(case: Case, offset: float) -> None:
    ids = tokens()
    logits = forward(case.model, ids, offset)
    for row, expected in zip(ids, logits, strict=True):
        case.check_near(by_hand(case.model, row, offset), expected)


@pytest.mark.parametrize("offset", [math.inf, 1e9, torch.tensor([math.inf, 1e9, math.inf])], ids=["inf", "1e9", "rows"])
def test_1_keep_all_is_the_base_bit_for_bit(case: Case, offset: float | Tensor) -> None:
    """At the highest offset, unless it buys more than the base."""
    ids, highest = tokens(), torch.as_tensor(offset).expand(3) != math.inf
    full = case.full
    logits, expected = forward(case.model, ids, offset), full(ids).logits
    route, depth = case.model.route, full.config.num_hidden_layers
    beyond = highest & (route.token_cost() > 1.0).any(-1) & (route.layers_used > depth).all(-1)
    assert not beyond.any() or not all(step.base for step in case.converted.program.steps)
    case.check_full(logits[~beyond], expected[~beyond])
    assert (route.layers_used[~beyond] == depth).all()
    if not beyond.all():
        step_by_step = decoded(case.model, ids, 5, offset)
        case.check_full(step_by_step[~beyond], decoded(full, ids, 5, offset)[~beyond])
    if not highest.any():
        assert route.cost() == pytest.approx(case.converted.ledger.untouched, rel=1e-6)


def test_1_what_is_read_in_full_is_the_base(case: Case) -> None:
    """Beside tokens of the same rows that are written."""
    ids, route = tokens(), case.model.route
    read = torch.arange(12).expand(3, 12) < torch.tensor([[5], [12], [0]])
    case.converted.set(read=read, read_offset=math.inf)
    logits, expected = forward(case.model, ids), case.full(ids).logits
    case.check_full(logits[0, :5], expected[0, :5])
    case.check_full(logits[1], expected[1])
    cost = route.token_cost()
    full = case.converted.ledger.untouched
    assert torch.allclose(cost[read], torch.tensor(full)) and (full == 1.0 or not case.converted.program.plain)
    if decides(case):
        assert not torch.allclose(logits[0, 5:], expected[0, 5:], 1e-3) and not cost[2].eq(full).all()
    case.converted.set(read=None)
    torch.testing.assert_close(forward(case.model, ids)[2], logits[2], rtol=1e-5, atol=1e-5)
    mixed = torch.tensor([[0.0] * 6 + [math.inf] * 6, [-0.5] * 12, [1.0, -1.0] * 6])
    forward(case.model, ids, mixed)
    assert torch.allclose(case.model.route.token_cost()[0, 6:], torch.tensor(full))


def test_2_weights_are_zero_off_their_branch(case: Case) -> None:
    for training in (False, True):
        case.converted.set(training=training, offset=0.0)
        case.model(tokens())
        for decision in case.model.route.decisions.values():
            assert (decision.run[~decision.keep] == 0).all()
            assert (decision.skip[decision.keep] == 0).all()


def test_3_what_is_skipped_has_no_influence(case: Case) -> None:
    ids = tokens()
    expected, keeps = forward(case.model, ids), case.keeps
    with noise(case) as calls:
        case.check_same(forward(case.model, ids), expected)
    assert all(torch.equal(keep, keeps[s]) for s, keep in case.keeps.items())
    once = {(s, tuple(ids.shape)): 1 for s in case.converted.units}
    assert calls == once, "the reference runs each unit once, for every token; only an engine may run fewer"


@contextmanager
def noise(case: Case) -> Iterator[dict[Any, int]]:
    """Replace by huge numbers: each unit's output at tokens that do not run it, each bypass's at all but those that
    skip, and the K and V of the first where they are to leave none. Gives the number of calls by step and shape."""
    calls: dict[Any, int] = {}

    def spoil(out: Tensor, where: Tensor) -> Tensor:
        return torch.where(where[..., None], torch.randn_like(out) * 1e4, out)

    def unit(s: int, ran: Tensor):
        def hook(_module: nn.Module, _args: tuple, out: Any) -> Any:
            update = out[0] if isinstance(out, tuple) else out
            key = (s, tuple(update.shape[:2]))
            calls[key] = calls.get(key, 0) + 1
            spoiled = spoil(update, ~ran)
            return (spoiled, *out[1:]) if isinstance(out, tuple) else spoiled

        return hook

    def kv(module: Any, where: Tensor):
        """Of a map that gives K and V, or K or V after q."""
        q = module.out_features - keys(case.base.config) * (2 if module.out_features > keys(case.base.config) else 1)
        return lambda _module, _args, out: torch.cat((out[..., :q], spoil(out[..., q:], where)), -1)

    def at(where: Tensor):
        return lambda _module, _args, out: spoil(out.view(*where.shape, -1), where).view_as(out)

    with ExitStack() as stack:
        for s, wrapped in case.converted.units.items():
            here, ran = case.there(s)
            stack.callback(wrapped.unit.register_forward_hook(unit(s, ran), prepend=True).remove)
            for part in wrapped.parts.values():
                if isinstance(part, Part) and part.runs_for == "skipped":
                    stack.callback(part.register_forward_hook(at(ran | ~here)).remove)
            if wrapped.step.absent == "nothing":
                for name, module in wrapped.unit.named_modules():
                    if name.endswith(KEYS):
                        stack.callback(module.register_forward_hook(kv(module, ~ran)).remove)
        yield calls


KEYS = ("k_proj", "v_proj", "qkv_proj")


def keys(config: Any) -> int:
    """Numbers of K of a layer."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_key_value_heads * size


def test_3_what_is_skipped_costs_nothing(case: Case) -> None:
    offset = torch.tensor([0.0, -1.0, math.inf])
    forward(case.model, tokens(), offset)
    head = case.base.get_output_embeddings().weight.numel()
    dense = linear(case.full.get_decoder().layers) + head
    work, beside = torch.full((3, 12), head, dtype=torch.float64), 0
    for s, step in enumerate(case.converted.program.steps):
        (here, ran), unit = case.there(s), unit_of(case, s)
        attends = step.absent == "project" and any(name.endswith(KEYS) for name, _ in unit.named_modules())
        written = 2 * keys(case.base.config) * case.base.config.hidden_size if attends else 0
        work += torch.where(ran, linear(unit), written)
        beside += 0 if step.base else written
        for part in case.converted.units[s].parts.values() if step.routed != "no" else ():
            macs = linear(part)
            if isinstance(part, Router):  # its last two matrices have nothing between them: at inference one vector
                macs = linear(part.enc) + part.enc.out_features
            if isinstance(part, LinearRouter):  # two logits, of which the difference counts
                macs = part.head.in_features
            if isinstance(part, Router | LinearRouter) and part.fixed:  # a number
                macs = 0
            skipped = isinstance(part, Part) and part.runs_for == "skipped"
            work += macs * (here & ~ran if skipped else here)
        if step.shows:
            work += here * (case.base.get_output_embeddings().weight[: step.head_rows].numel())
    work[2] = dense + beside  # a row at `inf` makes no decision, and leaves K and V where others run what it does not
    torch.testing.assert_close(case.model.route.token_cost().double(), work / dense, rtol=1e-6, atol=0)
    assert case.model.route.cost() == pytest.approx(float(work.mean() / dense), rel=1e-6)


def unit_of(case: Case, s: int) -> nn.Module:
    """The module that a step runs."""
    step = case.converted.program.steps[s]
    if s in case.converted.units:
        return case.converted.units[s].unit
    layer = case.model.get_decoder().layers[step.block]
    return layer if step.unit == "layer" else layer.get_submodule({"attn": ATTN, "mlp": MLP}[step.unit])


def linear(module: nn.Module) -> int:
    """Multiply-accumulates per token, from nothing but the shapes of weights; of experts those that a token runs."""
    work = 0
    for name, m in module.named_modules():
        children: Any = dict(m.named_children())
        if isinstance(m, nn.Linear) and "parts." not in name:
            work += m.in_features * m.out_features
        if "experts" in children:
            router, each = children.get("router", children.get("gate")), children["experts"]
            count, d = router.weight.shape
            matrices = sum(part.numel() for name, part in each.named_parameters() if "bias" not in name)
            work += count * d + router.top_k * matrices // count
    return work


def test_3_the_floor_is_the_cost_of_the_cheapest_way(case: Case) -> None:
    if not decides(case):
        return
    for offset in (1.0, 0.0, -0.5, -1e9):
        forward(case.model, tokens(), offset)
        assert (case.model.route.token_cost() > case.converted.ledger.floor - 1e-6).all()
    cost = case.model.route.token_cost()
    torch.testing.assert_close(cost, torch.full_like(cost, case.converted.ledger.floor), rtol=1e-6, atol=0)
    assert (case.model.route.layers_used >= case.converted.program.least).all()


def test_4_a_later_token_changes_nothing_before_it(case: Case) -> None:
    ids = tokens()
    other = ids.clone()
    other[:, 7] = (ids[:, 7] + 1) % 300
    seen = []
    for text in (ids, other):
        logits = forward(case.model, text)[:, :7]
        fields = [
            field[:, :7]
            for d in case.model.route.decisions.values()
            for field in (d.keep, d.run, d.skip, d.score)
            if field is not None
        ]
        seen.append([logits, case.model.route.token_cost()[:, :7], *fields])
    for a, b in zip(*seen, strict=True):
        case.check_same(a, b)


@pytest.mark.parametrize("rows", [False, True], ids=["one offset", "an offset per row"])
def test_5_a_row_does_not_depend_on_its_neighbours(case: Case, rows: bool) -> None:
    ids, pads = tokens(4), [0, 5, 9, 2]
    offsets = [0.0, -0.7, 1.3, math.inf] if rows else [0.2] * 4
    batch = differing(case.model, ids, torch.tensor(offsets) if rows else offsets[0], pads)
    keeps, costs = case.keeps, case.model.route.token_cost()
    for i, (offset, pad) in enumerate(zip(offsets, pads, strict=True)):
        alone = forward(case.model, ids[i : i + 1, pad:], offset, use_cache=False)
        case.check_near(batch[i : i + 1, pad:], alone)
        assert all(torch.equal(keeps[s][i : i + 1, pad:], keep) for s, keep in case.keeps.items())
        assert torch.equal(costs[i : i + 1, pad:], case.model.route.token_cost())


@of_cases(lambda method: learns(method) and method.frozen)
def test_6_frozen_means_frozen(case: Case, packed: Callable) -> None:
    before = {name: tensor.clone() for name, tensor in parts_of(case.model).items()}
    relaxed = any(step.relaxed for step in case.converted.program.steps)  # then the base learns, and teaches nobody
    lesson = Lesson(case.model, "lm" if relaxed else "distill", None)
    optimizer = torch.optim.AdamW(lesson.parameters(), lr=1e-2, weight_decay=0.0)
    lesson(**packed())["loss"].backward()
    optimizer.step()

    frozen = {n: p for n, p in case.model.named_parameters() if ".parts." not in n and f".{OWN_BLOCKS}." not in n}
    assert len(frozen) == len(dict(case.base.named_parameters()))
    assert all(p.grad is None and not p.requires_grad for p in frozen.values())
    case.check_full(forward(case.model, tokens(), math.inf), case.full(tokens()).logits)
    own = sorted((tuple(t.shape), float(t.detach().sum())) for t in case.base.parameters())
    assert sorted((tuple(t.shape), float(t.sum())) for t in frozen.values()) == own

    case.converted.set(offset=0.0)
    lesson(**packed())
    after, program = parts_of(case.model), case.converted.program
    for s in program.parted:
        step, keep = program.steps[s], case.there(s)[1]
        start = f"layers.{step.block}.{step.unit}." if program.plain else f"steps.{s}."
        start = start if step.block >= 0 else f"own.{-1 - step.block}.parts."
        mine = [name for name in before if name.startswith(start)]
        # an adapter that nobody used has nothing to learn, nor has a change of what nobody ran
        if decides(case) and (keep.any() if step.relaxed else not keep.all()):
            assert all(not torch.equal(before[name], after[name]) for name in mine)
        if step.block < 0 and keep.any():
            own = [name for name in before if name.startswith(f"own.{-1 - step.block}.")]
            assert own and all(not torch.equal(before[name], after[name]) for name in own)


@of_cases(learns)
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


def test_8_save_load_same_logits(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in (METHODS._known, METHODS._own) if case.name in TOYS else ():
        monkeypatch.setitem(known, case.name, TOYS[case.name])
    for tensor in parts_of(case.model).values():  # as after training: no number is a round one
        tensor.add_(torch.randn_like(tensor) * 0.05)
    expected = forward(case.model, tokens())
    folder = save(case.model, tmp_path / "plugin")
    model = attach(copy.deepcopy(case.base), folder)
    assert torch.equal(forward(model, tokens()), expected)
    assert torch.equal(converted_of(model).route.token_cost(), case.model.route.token_cost())


def test_10_random_choices_belong_to_the_row(case: Case) -> None:
    ids, order = tokens(4), torch.tensor([2, 0, 3, 1])
    seen = []
    for seed, rows in ((1, ids), (2, ids[order]), (3, ids[order][:2])):
        torch.manual_seed(seed)
        case.converted.set(training=True, key=row_keys(rows))
        forward(case.model, rows)
        seen.append(case.keeps)
    for s, keep in seen[0].items():
        assert torch.equal(keep[order], seen[1][s])
        assert torch.equal(keep[order][:2], seen[2][s])


def asked(case: Case, s: int, seen: Seen, offset: Tensor) -> Trace:
    """The method's own decisions at a step and at the earlier ones of its visit. offset: fp32 [N]."""
    program, count = case.converted.program, len(offset)
    tokens = Tokens(offset, torch.arange(count), id=torch.arange(count) % 300, shape=(1, count))
    trace = Trace(program)
    for each in program.visits[program.visit_of[s]].steps:
        if each <= s and each in case.converted.routed:
            parts = case.converted.units[each].parts
            trace.decisions[each] = case.converted.method.decide(parts, seen, each, tokens, trace)
    return trace


def seen_at(case: Case, s: int, count: int) -> Seen:
    """Something to look at: normed inputs and, where they are shown, logits."""
    step, generator = case.converted.program.steps[s], torch.Generator().manual_seed(3)
    logits = torch.randn(count, step.head_rows or 300, generator=generator) * 4 if step.shows else None
    return Seen(torch.randn(count, 32, generator=generator), logits)


def same(a: Decision, b: Decision) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("keep", "run", "skip"))


def worked_out(ops: Any, seen: Seen) -> Tensor:
    """The one number that operations make for each token, fp32 [N]."""
    code = seen.x
    for op in ops:
        if isinstance(op, Look):
            assert seen.logits is not None
            top = seen.logits.softmax(-1).topk(2).values
            code = torch.stack([top[:, 0], top[:, 0] - top[:, 1]], -1)
        elif isinstance(op, Dense):
            code = code @ op.weight.float().T + (0 if op.bias is None else op.bias)
        elif isinstance(op, Norm):
            code = code / (code.square().mean(-1, keepdim=True) + op.eps).sqrt() * op.weight
        else:
            assert isinstance(op, Act)
            code = torch.tanh(code) if op.name == "tanh" else getattr(nn.functional, op.name)(code)
    return code.squeeze(-1)


@torch.no_grad()
def test_11_what_is_lowered_says_what_the_method_says(case: Case) -> None:
    method, offset = case.converted.method, torch.tensor([0.0, 1.5, -2.0, math.inf, 0.3]).repeat(40)
    for s, unit in case.converted.routed.items():
        lowered, seen = method.lowered(unit.parts, s), seen_at(case, s, len(offset))
        if lowered is None:
            continue
        trace = asked(case, s, seen, offset)
        own = trace.decisions[s]
        if lowered.like is not None:
            like = trace.decisions[lowered.like]
            keep, g = like.keep, like.score
        elif lowered.ops is None:
            assert method.ahead, "somebody must decide"
            keep, g = own.keep, None
        else:
            number = worked_out(lowered.ops, seen) + offset
            keep, g = number > lowered.cut, number.sigmoid()
            near = (number - lowered.cut).abs() < 1e-4
            assert near.sum() <= 2 and torch.equal(keep[~near], own.keep[~near])
            assert own.score is None or torch.allclose(own.score, g, atol=1e-5)
            assert own.keep[offset == math.inf].all() and 0 < own.keep.float().mean() < 1
            keep = own.keep
        if lowered.weights == "hard":
            assert same(own, Decision.hard(keep))
        else:
            assert g is not None
            torch.testing.assert_close((own.run, own.skip), (keep * g, ~keep * (1 - g)))
        bypass = method.bypass(unit.parts, seen.x, s)
        assert (bypass is None) == (lowered.bypass is None)
        if lowered.bypass is not None and bypass is not None:
            assert torch.equal(bypass, lowered.bypass(seen.x))


@of_cases(lambda method: method.ahead)
def test_11_all_steps_at_once_are_what_each_says(case: Case) -> None:
    forward(case.model, tokens(), torch.tensor([0.0, -1.0, 1.0]))
    program, keeps = case.converted.program, case.keeps
    at_once = case.converted.method.keeps(program, case.model.route.last.tokens)
    if at_once is not None:
        first = {program.visit_of[s]: s for s in reversed(program.routed)}
        each = torch.stack([keeps[first[visit]].view(-1) for visit in sorted(first)])
        assert torch.equal(at_once, each)


@of_cases(lambda method: method.ahead)
def test_11_who_decides_ahead_does_not_look(case: Case) -> None:
    offset = torch.tensor([0.0, -1.0]).repeat(9)
    for s in case.converted.routed:
        seen = seen_at(case, s, len(offset))
        blind = Seen(seen.x * math.nan, None if seen.logits is None else seen.logits * math.nan)
        one, other = asked(case, s, seen, offset), asked(case, s, blind, offset)
        assert all(same(one.decisions[each], other.decisions[each]) for each in one.decisions)


@pytest.mark.parametrize("offset", [0.0, -0.6])
def test_12_decoding_with_a_cache_is_one_pass(case: Case, offset: float) -> None:
    """What tokens leave behind, and do not leave, is found by later passes."""
    ids = tokens()
    expected, keeps = forward(case.model, ids, offset, use_cache=False), case.keeps
    case.check_near(decoded(case.model, ids, 5, offset), expected)
    assert all(torch.equal(keep[:, -1:], case.keeps[s]) for s, keep in case.keeps.items() for keep in [keeps[s]])


def test_12_what_goes_on_from_a_prompt_read_in_full_is_one_pass(case: Case) -> None:
    ids, read = tokens(), torch.arange(12).expand(3, 12) < 5
    case.converted.set(read=read, read_offset=math.inf)
    expected = forward(case.model, ids, use_cache=False)
    case.converted.set(read=None)
    case.check_near(decoded(case.model, ids, 5, 0.0, math.inf), expected)
