"""What a random case of the engine must have given: what one dense pass of the reference over each text says.

The reference is the converted model's own forward in Hugging Face: every unit runs for every token, and skipping is a
weight of 0. Where the reference's gate is so close to its cut that rounding decides, it follows the engine; each such
place must be shown to be that close.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from tests.laws.fuzz import Ran
from torch import Tensor

from depthdial.core.decision import Decision
from depthdial.core.method import Method, Parts, Seen
from depthdial.core.tokens import Tokens, Trace
from depthdial.engine.request import Row
from depthdial.engine.sampling import SamplingParams, choose, draw_key

GATE = {torch.float32: 1e-4, torch.bfloat16: 0.12}
"""How far a gate, in (0, 1), may be from its cut to count as a tie."""
EXACT = 1e-3
"""Error of a logit in fp32, relative to the spread of its row."""
RIVALS = 4
"""Most logits that may stand in a token's way by no more than that."""
NOISE = 4.0
"""Error of a logit in bf16, as a multiple of what rounding does to the reference's own at that place (rms)."""


class Following:
    """What a method says, but for gates so close to their cut that rounding decides: these follow the engine.

    asked: bool [visits, B, T], which visits it ran; known: bool [B, T], where that is known; near: see GATE. apart: are
    the halves of a layer decided apart? What the engine ran of it is not told then, so a row with such a gate is
    `unclear`.
    """

    def __init__(self, method: Method, asked: Tensor, known: Tensor, near: float, apart: bool):
        self.method, self.apart, self.unclear = method, apart, torch.zeros(len(known), dtype=torch.bool)
        self.asked, self.known, self.near, self.ties = asked, known, near, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        decision, attn = self.method.decide(parts, seen, s, tokens, trace), trace.decisions.get(s - 1)
        mlp = trace.program.steps[s].unit == "mlp"
        if decision.score is None or (mlp and attn is not None and decision.keep is attn.keep):
            return decision
        close = ((decision.score - 0.5).abs() < self.near) & self.known.view(-1)
        if s in trace.here:
            close = close & trace.here[s]
        if self.apart:
            self.unclear |= close.view_as(self.known).any(-1)
            return decision
        other = (decision.keep != self.asked[trace.program.visit_of[s]].view(-1)) & close
        if mlp or not other.any():
            return decision
        self.ties += int(other.sum())
        keep = decision.keep ^ other
        # a weight of its own is that of who runs it
        run = torch.where(other, keep.to(decision.run.dtype), decision.run)
        return Decision(keep, run, torch.where(other, (~keep).to(run.dtype), decision.skip), decision.score)


@torch.no_grad()
def check(ran: Ran) -> Counter[str]:
    """Compare all rows of a case with the reference; gives what there was to compare. AssertionError where they
    differ."""
    case, llm = ran.case, ran.llm
    rows = [row for request in ran.requests for row in request.rows]
    assert all(row.error is None for row in rows), [row.error for row in rows]
    _work(ran)
    rows = [row for row in rows if row.ran_depths]
    for row in rows:  # a text that was cancelled may have verified drafts that nobody took
        ran.keeps[row] = ran.keeps[row][: len(row.ran_depths)]
    if case.dtype == torch.bfloat16 and llm.stats.preemptions:
        # what was read again may have gone another way where rounding decides; figures are those of the first time
        ran.changed.update(row for row in rows if row.ran_depths != ran.keeps[row].sum(1).tolist())
    kind = str(case.dtype).removeprefix("torch.")
    counts: Counter[str] = Counter({"computed otherwise again": len(ran.changed)})
    if not rows:
        return counts
    logits, off, depths, costs, gates = _reference(ran, rows)
    counts[f"{kind} gates at the cut"], counts["halves at the cut"] = gates.ties, int(gates.unclear.sum())
    if case.dtype == torch.float32:
        assert not ran.changed, "in fp32 what runs again runs as before"
    for b, row in enumerate(rows):
        if row in ran.changed or gates.unclear[b]:
            continue
        length = len(row.ran_depths)
        counts["texts"] += 1
        counts[f"{kind} places compared"] += length
        counts[f"{kind} tokens compared"] += len(row.token_ids)
        assert row.ran_depths == depths[b, :length].tolist(), f"depths of row {b}"
        if not row.request.params.lossless:
            torch.testing.assert_close(torch.tensor(row.ran_costs), costs[b, :length], rtol=1e-5, atol=1e-6)
        else:
            assert all(0 < cost < math.inf for cost in row.ran_costs)
        counts[f"{kind} ties of tokens"] += _tokens(row, logits[b], off[b].tolist())
        if row.finish_reason in ("length", "stop"):
            ended = row.token_ids[-1] in llm.ends and not row.request.params.ignore_eos
            assert (row.finish_reason == "stop") == ended
            assert ended or len(row.token_ids) == row.request.limit
    return counts


def _reference(ran: Ran, rows: list[Row]) -> tuple[Tensor, Tensor, Tensor, Tensor, Following]:
    """Of one dense pass: logits, fp32 [B, T, V]; how far off they may be, depths and costs, [B, T]; and the gates that
    followed the engine. A bf16 model runs in fp32, too, to see what rounding does."""
    llm: Any = ran.llm
    model, most = llm.model, max(len(row.tokens) for row in rows)
    ids = torch.tensor([row.tokens + [0] * (most - len(row.tokens)) for row in rows])
    asked = torch.ones(llm.layers, len(rows), most, dtype=torch.bool)
    known = torch.zeros(len(rows), most, dtype=torch.bool)
    for b, row in enumerate(rows):
        keep = ran.keeps[row]
        asked[:, b, : len(keep)], known[b, : len(keep)] = torch.from_numpy(keep.T), True
    route, converted = model.route, model.converted
    read = torch.arange(most) < torch.tensor([len(row.request.token_ids) for row in rows])[:, None]
    converted.set(offset=torch.tensor([_offsets(row, most) for row in rows]), read=read)
    following = Following(converted.method, asked, known, GATE[ran.case.dtype], ran.case.apart)
    for unit in converted.units.values():
        unit.method = following
    logits = model(ids, use_cache=False).logits.float()
    depths, costs, spread = route.layers_used, route.token_cost(), logits.std(-1)
    if ran.case.dtype == torch.float32:
        return logits, EXACT * spread, depths, costs, following
    exact = model.float()(ids, use_cache=False).logits
    off = NOISE * (logits - exact).square().mean(-1).sqrt() + 0.02 * spread
    return exact, off, depths, costs, following


def _offsets(row: Row, length: int) -> list[float]:
    """The dial at each place of a text, by what it cost: the reference says if that is what it costs."""
    dials, prompt = row.request.dials, len(row.request.token_ids)
    reading = dials.written if dials.read is None else dials.read
    offsets = [reading] * prompt
    if dials.hold is None:
        return (offsets + [dials.written] * length)[:length]
    state = dials.hold.begin()
    for cost in [*row.ran_costs[prompt:], *[0.0] * length]:
        offsets.append(dials.hold.offset(state))
        state = dials.hold.after(state, [cost])
    return offsets[:length]


def _tokens(row: Row, logits: Tensor, close: list[float]) -> int:
    """Every token is the one that the reference's logits [T, V] give, or would if some of them were off by `close` [T];
    the number of the latter."""
    start, params, ties = len(row.request.token_ids), row.request.params, 0
    for i, token in enumerate(row.token_ids):
        place = start + i
        own, off = logits[place - 1], close[place - 1]
        key = draw_key(row.request.seed, row.sample, place)
        if (first := int(choose(own[None], [params], [key]))) != token:
            # a nucleus is wider or narrower, too, where all its logits are off
            assert params.top_p is not None
            widths = [1.0] if params.top_p == 1 else [1.0, math.exp(-2 * off), math.exp(2 * off)]
            near = any(
                _wins(token, own, off, replace(params, top_p=min(1.0, params.top_p * width)), key) for width in widths
            )
            assert near, f"token {i} is {token}, and the reference's {first}; off by {off}"
            ties += 1
        if params.logprobs is not None:
            right = own.log_softmax(-1)
            for id, logprob in row.logprobs[i].items():
                assert abs(float(right[id]) - logprob) <= 2 * off, (
                    f"logprob of {id} at token {i} is {logprob}, and the reference's {float(right[id])} +- {2 * off}"
                )
    return ties


def _wins(token: int, logits: Tensor, off: float, params: SamplingParams, key: int) -> bool:
    """Is a token the one drawn, where its logit and those of a few that stand in its way are off?"""
    moved = logits.clone()
    moved[token] += off
    for _ in range(RIVALS):
        if (rival := int(choose(moved[None], [params], [key]))) == token:
            return True
        moved[rival] = logits[rival] - off
    return False


def _work(ran: Ran) -> None:
    """What was skipped did not run, and what nobody asks for was not written."""
    stats, program, case = ran.llm.stats, ran.llm.model.converted.program, ran.case
    assert int(stats.rows.sum()) == ran.kept
    for v, visit in enumerate(program.visits):
        leaves = stats.attn_rows[v] if v in program.sparse else stats.tokens
        assert stats.kv_rows[v] == leaves or (case.select and v in program.sparse), "K and V that nobody asks for"
        if len({program.steps[s].routed for s in visit.steps}) == 1 and not case.select and not case.apart:
            assert stats.attn_rows[v] == stats.mlp_rows[v] == stats.rows[v], "units ran that were skipped"
