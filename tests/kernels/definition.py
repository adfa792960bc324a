"""The definition of the kernels, in plain torch: each of them alone, and a whole pass, which the torch runner makes.

T is the dtype of the model (bfloat16 or float32); rounding follows Hugging Face: norms in fp32 and rounded, outputs of
linear maps rounded, softmax in fp32. Nothing here is fast, and shapes are not checked.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.core.cost import LayerWork, Ledger, StepWork
from depthdial.core.decision import Decision
from depthdial.core.method import Method, Parts, Seen
from depthdial.core.program import Program, Step
from depthdial.core.routed import Pass
from depthdial.core.tokens import Tokens, Trace
from depthdial.engine.layer import capped, rms_norm
from depthdial.engine.maths import Maths
from depthdial.engine.runner import TorchRunner
from depthdial.engine.stats import Stats
from depthdial.kernels.blocks import COLS, Blocks, take, unpack
from depthdial.kernels.passing import Decide, PagedCache, PassTokens, Waiting
from depthdial.kernels.tensors import (
    END,
    PAGE,
    Act,
    AdapterTensors,
    Branch,
    Dense,
    Int8,
    Linear,
    Look,
    ModelTensors,
    Norm,
    RouterTensors,
    Weight,
)
from depthdial.models.converted import Converted

BLOCK = 64
"""Activations that share one scale in `int8_linear`."""


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x: T [N, in], weight: T or Int8 [out, in], bias [out] -> T [N, out]."""
    if isinstance(weight, Int8):
        return int8_linear(x, weight, bias)
    if isinstance(weight, Blocks):
        return blocks_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def int8_quantise(x: Tensor, width: int = BLOCK) -> tuple[Tensor, Tensor]:
    """x: [N, in] -> (whole numbers within -127..127, fp32 [N, blocks, width], padded by 0; scale, fp32 [N, blocks])."""
    blocks = F.pad(x.float(), (0, -x.shape[-1] % width)).unflatten(-1, (-1, width))
    scale = blocks.abs().amax(-1) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0)
    return (blocks * inverse[..., None]).round().clamp(-127, 127), scale


def int8_linear(x: Tensor, weight: Int8, bias: Tensor | None = None) -> Tensor:
    """x: T [N, in] -> T [N, out]. Activations are quantised too, in blocks of 64 with a scale each; sums are exact
    within a block and fp32 across them."""
    values, scale = int8_quantise(x)
    rows = F.pad(weight.values.float(), (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    out = torch.einsum("nbk,obk,nb->no", values, rows, scale) * weight.scale
    return (out if bias is None else out + bias.float()).to(x.dtype)


def blocks_linear(x: Tensor, weight: Blocks, bias: Tensor | None = None) -> Tensor:
    """x: T [N, in] -> T [N, out]: the unpacked matrix by activations that are quantised, too, each 32 of them."""
    values, scale = int8_quantise(x, COLS)
    near = (values * scale[..., None]).flatten(1)[:, : weight.cols]
    return F.linear(near, unpack(weight), None if bias is None else bias.float()).to(x.dtype)


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor, scaling: float = 1.0) -> Tensor:
    """x: T [N, heads, hd], positions: [N], inv_freq: fp32 [hd/2] -> T [N, heads, hd]. The two halves are paired."""
    angle = positions.float()[:, None] * inv_freq.float()
    cos, sin = ((f(angle) * scaling).to(x.dtype).repeat(1, 2)[:, None] for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def write_kv(
    k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, page_table: Tensor, sequences: Tensor, positions: Tensor
) -> None:
    """Writes k, v (T [N, kv_heads, hd]) of one layer into its caches (T [pages, kv_heads, PAGE, hd]), in place.

    page_table: int32 [sequences, pages of a sequence]; sequences: [N], row of the table; positions: [N].
    """
    place = positions.long()
    page = page_table[sequences.long(), place // PAGE].long()
    k_cache[page, :, place % PAGE] = k
    v_cache[page, :, place % PAGE] = v


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    sequences: Tensor,
    positions: Tensor,
    scale: float,
    window: int | None = None,
    held: Tensor | None = None,
) -> Tensor:
    """q: T [N, heads, hd] -> T [N, heads * hd]: each token over positions 0..its own of its sequence, or the last
    `window` of them, as far as there are pages and `held` (uint8 [pages, PAGE]) says so. Caches of one visit: T [pages,
    kv_heads, PAGE, hd]."""
    out = torch.empty_like(q)
    group = q.shape[1] // k_cache.shape[1]
    for n, (sequence, position) in enumerate(zip(sequences.tolist(), positions.tolist(), strict=True)):
        start = 0 if window is None else max(0, position + 1 - window)
        place = torch.arange(start, position + 1, device=q.device)
        page, slot = page_table[sequence].long()[place // PAGE], place % PAGE
        there = page >= 0 if held is None else (page >= 0) & held[page, slot].bool()
        seen = (cache[page[there], :, slot[there]] for cache in (k_cache, v_cache))
        k, v = (part.float().repeat_interleave(group, 1) for part in seen)  # [seen, heads, hd]
        weight = (torch.einsum("hd,shd->hs", q[n].float(), k) * scale).softmax(-1)
        out[n] = torch.einsum("hs,shd->hd", weight, v).to(q.dtype)
    return out.flatten(1)


def gated_mlp(x: Tensor, gate: Linear, up: Linear, down: Linear, activation: str = "silu") -> Tensor:
    """x: T [N, d] -> T [N, d]: down(act(gate x) * (up x))."""
    opened = linear(x, *gate)
    opened = F.silu(opened) if activation == "silu" else F.gelu(opened, approximate="tanh")
    return linear(opened * linear(x, *up), *down)


def adapter(u: Tensor, parts: AdapterTensors) -> Tensor:
    """u: T [N, d] -> T [N, d]."""
    return gated_mlp(u, Linear(parts.gate), Linear(parts.up), Linear(parts.down))


def router_number(z: Tensor, router: RouterTensors, logits: Tensor | None = None) -> Tensor:
    """z: T [N, d], the unit's normed input; logits: fp32 [N, V], for a router that looks -> fp32 [N]."""
    first, *later = router.ops
    if isinstance(first, Look):
        assert logits is not None
        top = logits[:, : first.rows].softmax(-1).topk(2).values
        code = torch.stack((top[:, 0], top[:, 0] - top[:, 1]), -1)
    else:
        assert isinstance(first, Dense)
        bias = None if first.bias is None else first.bias.to(first.weight.dtype)
        code = F.linear(z.to(first.weight.dtype), first.weight, bias).float()
    for op in later:
        if isinstance(op, Dense):
            code = F.linear(code, op.weight.float(), op.bias)
        elif isinstance(op, Norm):
            code = F.rms_norm(code, op.weight.shape, op.weight.float(), op.eps)
        else:
            assert isinstance(op, Act)
            code = getattr(torch if op.name in ("tanh", "sigmoid") else F, op.name)(code)
    return code[:, 0]


def embed(ids: Tensor, table: Weight, scale: float, dtype: torch.dtype) -> Tensor:
    """ids: int64 [N] -> T [N, d]."""
    if isinstance(table, Blocks):
        rows = take(table, ids).to(dtype)
    elif isinstance(table, Int8):
        rows = (table.values[ids].float() * table.scale[ids, None]).to(dtype)
    else:
        rows = table[ids]
    return rows if scale == 1.0 else rows * scale


def head(x: Tensor, norm: Norm, weight: Weight, softcap: float | None = None, scale: float = 1.0) -> Tensor:
    """x: T [N, d] -> logits, fp32 [N, V], not rounded to T."""
    normed = rms_norm(x, *norm)
    logits = linear(normed.float(), weight.float() if isinstance(weight, Tensor) else weight)
    return capped(logits * scale, softcap)


class Choice(NamedTuple):
    """keep: bool [N]. score: fp32 [N], sigmoid(number + offset), or as `keep` where no router spoke. run, skip: fp32
    [N], the weights on the update and on the adapter."""

    keep: Tensor
    score: Tensor
    run: Tensor
    skip: Tensor


def choose(branch: Branch, offsets: Tensor, number: Tensor | None = None, given: Tensor | None = None) -> Choice:
    """Who runs a step, of tokens that all wait there. offsets: fp32 [N], +inf keeps a token, with weight 1.

    number: fp32 [N], what the router says; given: uint8 [N], of a step that is decided by a table.
    """
    untouched, one = offsets == float("inf"), torch.ones_like(offsets)
    if branch.by == "ops":
        assert branch.router is not None and number is not None
        shifted = torch.where(untouched, 0, number) + torch.where(untouched, 0, offsets)
        score = torch.where(untouched, 1.0, shifted.sigmoid())
        run, skip = (score, 1 - score) if branch.router.soft else (one, one)
        return Choice(untouched | (shifted > branch.router.cut), score, run, skip)
    keep = untouched | (one > 0 if branch.by != "table" or given is None else given.bool())
    return Choice(keep, keep.float(), one, one)


class Passed(NamedTuple):
    """logits: fp32 [N, V]; keep: uint8 [steps, N]; score: fp32 [steps, N]."""

    logits: Tensor
    keep: Tensor
    score: Tensor


def forward_pass(model: ModelTensors, tokens: PassTokens, cache: PagedCache, decide: Decide | None = None) -> Passed:
    """N tokens through the model by the torch runner; the cache is written in place. decide: of "open" steps; it is
    not shown the stream."""
    method = Branches(model, tokens, decide)
    count, stats = len(tokens.ids), Stats(len(model.layers))
    places = Tokens(tokens.offsets, tokens.positions.long(), tokens.ids, key=torch.arange(count, device=cache.k.device))
    free = LayerWork(0, 0, 0, 0, 0)
    ledger = Ledger(method.steps, tuple(StepWork(free) for _ in method.steps.steps), head=1)
    converted = Converted(method, method.steps, ledger, frozen=True)
    converted.units = dict.fromkeys(method.steps.routed, SimpleNamespace(parts={}))  # pyright: ignore
    runner = TorchRunner(SimpleNamespace(converted=converted), model, stats)
    runner.maths = Maths(model, stats, linear)
    running = Pass(method.steps, places)
    x = runner.stream(_batch(model, tokens, places, cache), running)
    for s, (v, row) in enumerate(zip(method.steps.visit_of, method.rows, strict=True)):
        if s != method.steps.visits[v].steps[0] and not model.layers[v].mlp_branch:
            continue
        if (decision := running.trace.decisions.get(s)) is None:
            here = running.trace.here.get(s)
            method.keep[row] = method.score[row] = 1 if here is None else here
        else:  # who runs the base is not asked
            method.keep[row] = torch.where(places.full, decision.keep, method.keep[row])
            method.score[row] = torch.where(places.full, decision.keep.float(), method.score[row])
    logits = head(x, model.norm, model.head, model.softcap, model.logit_scale)
    return Passed(logits, method.keep.to(torch.uint8), method.score)


def program_of(model: ModelTensors) -> Program:
    """The steps of a model's visits: a visit that is weighed as a whole is one, any other two."""
    begins = list(itertools.accumulate((1 if layer.whole else 2 for layer in model.layers), initial=0))
    steps: list[Step] = []

    def step(v: int, unit: Any, branch: Branch, at: Branch, **more: Any) -> None:
        """branch: which decides; at: whose jumps are taken here."""
        layer = model.layers[v]
        asks = branch.by != "no" or layer.absent == "nothing" or not layer.base
        if branch.router is not None and isinstance(branch.router.ops[0], Look):
            more["shows"] = frozenset({"logits"})
        jumps: Any = (to if to is None or to == END else begins[to] for to in (at.then, at.otherwise))
        steps.append(Step(v, unit, "skip" if asks else "no", *jumps, base=layer.base, **more))

    for v, layer in enumerate(model.layers):
        branch, mlp = layer.branch, layer.mlp_branch
        if layer.whole:
            step(v, "layer", branch, branch, absent=layer.absent)
        else:  # decided as one, the visit is left from its MLP
            step(v, "attn", branch, Branch() if mlp is None else branch, absent=layer.absent)
            step(v, "mlp", branch if mlp is None else mlp, branch if mlp is None else mlp)
    return Program(tuple(steps))


class Branches(Method):
    """Decides as a model's branches say, and notes it. rows: of each step of its program, that of its decisions."""

    def __init__(self, model: ModelTensors, tokens: PassTokens, decide: Decide | None):
        self.model, self.tokens, self.ask, self.steps = model, tokens, decide, program_of(model)
        first = [s for s, step in enumerate(model.steps) if step.unit != "mlp"]
        self.rows = [
            first[step.block] + (step.unit == "mlp" and model.layers[step.block].mlp_branch is not None)
            for step in self.steps.steps
        ]
        shape, device = (len(model.steps), len(tokens.ids)), tokens.offsets.device
        self.keep = torch.zeros(shape, dtype=torch.bool, device=device)
        self.score, self.run, self.skip = (torch.zeros(shape, device=device) for _ in range(3))

    def program(self, depth: int) -> Program:
        return self.steps

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        row, step = self.rows[s], self.steps.steps[s]
        if (at := tokens.key) is None:  # the runner tries it on tokens of its own
            return Decision.hard(torch.ones_like(tokens.full))
        layer = self.model.layers[step.block]
        if step.unit != "mlp" or layer.mlp_branch is not None:
            choice = self._choice(row, seen, tokens, at)
            ran = choice.keep & (layer.base | ~tokens.full)
            self.keep[row, at], self.run[row, at], self.skip[row, at] = ran, choice.run, choice.skip
            self.score[row, at] = torch.where(tokens.full, ran.float(), choice.score)
        keep = self.keep[row, at]
        if step.unit == "attn" and layer.mlp_branch is None:  # weights are on the MLP alone
            return Decision.hard(keep)
        return Decision(keep, self.run[row, at] * keep, self.skip[row, at] * ~keep)

    def _choice(self, row: int, seen: Seen, tokens: Tokens, at: Tensor) -> Choice:
        branch = self.model.steps[row].branch
        if branch.by != "open":
            number = None if branch.router is None else router_number(seen.x, branch.router, seen.logits)
            table = None if self.tokens.given is None else self.tokens.given[row, at]
            return choose(branch, tokens.offset, number, table)
        assert self.ask is not None
        free, one = ~tokens.full, torch.ones_like(tokens.offset)
        here = self.keep.new_zeros(self.keep.shape[1]).index_copy(0, at, free)
        z = seen.x.new_zeros(len(here), seen.x.shape[1]).index_copy(0, at, seen.x).float()
        keep, *weights = self.ask(Waiting(row, here, torch.empty(0), z))
        run, skip = (one if weight is None else torch.where(free, weight[at], one) for weight in weights)
        kept = keep[at] | tokens.full
        return Choice(kept, kept.float(), run, skip)

    def bypass(self, parts: Parts, x: Tensor, s: int) -> Tensor | None:
        step = self.steps.steps[s]
        tensors = self.model.layers[step.block].adapter
        return None if tensors is None or step.unit == "attn" else adapter(x, tensors)


def _batch(model: ModelTensors, tokens: PassTokens, places: Tokens, cache: PagedCache) -> Any:
    """What the torch runner asks of a pass: side by side, tokens of a sequence at following places are a slice."""
    table = cache.table[[i if layer.cache is None else layer.cache for i, layer in enumerate(model.layers)]]
    sparse = tuple(i for i, each in enumerate(model.layers) if each.absent == "nothing" and cache.held is not None)

    def note(visit: int, slots: Tensor, positions: Tensor, leaves: Tensor) -> None:
        assert cache.held is not None
        page = table[visit, slots.long(), positions // PAGE].long()
        cache.held[page, positions % PAGE] = leaves.to(torch.uint8)

    slices: list[Any] = []
    for sequence, position in zip(tokens.sequences.tolist(), tokens.positions.tolist(), strict=True):
        last = slices[-1] if slices else None
        if last is not None and last.row.slot == sequence and last.start + last.count == position:
            last.count += 1
        else:
            slices.append(SimpleNamespace(row=SimpleNamespace(slot=sequence), start=position, count=1))
    held = cache.held if sparse else None
    shape = SimpleNamespace(dtype=cache.k.dtype, sparse=sparse)
    paged = SimpleNamespace(k=cache.k, v=cache.v, table=table, held=held, shape=shape, note=note)
    of = {"ids": tokens.ids, "positions": tokens.positions, "slots": tokens.sequences, "tokens": places}
    return SimpleNamespace(**of, cache=paged, singles=0, slices=slices, lengths=torch.zeros(2, 0))
