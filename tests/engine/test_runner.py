"""What the torch runner computes, and that it computes nothing else: work is counted in multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.laws.toys import TOYS
from torch.utils.flop_counter import FlopCounterMode

from depthdial.core.cost import Ledger
from depthdial.core.layers import LinearRouter, Router
from depthdial.engine.batch import Batch, Passed
from depthdial.engine.breakeven import BreakEven, Point
from depthdial.engine.llm import LLM
from depthdial.engine.request import Row
from depthdial.engine.runner import TorchRunner
from depthdial.engine.scheduler import Slice
from depthdial.engine.stats import Stats
from depthdial.maps.schema import Facts
from depthdial.methods import METHODS
from depthdial.models.block import spine_of
from depthdial.models.families import FAMILIES

STEP = 16


@dataclass
class Bench:
    """A torch runner with rows that have slots of their own, and no scheduler."""

    llm: LLM
    runner: TorchRunner
    asked: Callable

    def row(self, length: int, offset: float = 0.0, seed: int = 0, prompt: int | None = None) -> Row:
        """prompt: how many tokens are read, the others are written; None: all are read."""
        ids = torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        row = Row(self.asked(self.llm, ids[:prompt], offset), 0, self.llm.tokenizer)
        row.tokens = ids
        row.slot = self.llm.engine.scheduler.cache.open()
        assert self.llm.engine.scheduler.cache.grow(row.slot, 0, length)
        return row

    def run(self, *slices: tuple[Row, int, int]) -> Passed:
        batch = Batch(self.llm.engine.scheduler.cache, 256, torch.device("cpu"))
        batch.fill([Slice(*part) for part in slices])
        return self.runner.run(batch)


@pytest.fixture
def bench(made: Callable, asked: Callable) -> Callable[..., Bench]:
    def make(method: str = "flexidepth", family: str = "llama", fields: dict | None = None) -> Bench:
        llm = made(method, family, fields)
        return Bench(llm, TorchRunner(llm.model, spine_of(llm.model), Stats(llm.layers), STEP), asked)

    return make


def reference(on: Bench, row: Row) -> tuple[torch.Tensor, list[int], list[float]]:
    model = on.llm.model
    read = torch.arange(row.length)[None] < len(row.request.token_ids)
    with torch.no_grad(), model.converted.using(offset=row.request.dials.written, read=read):
        logits = model(torch.tensor([row.tokens]), use_cache=False).logits[0]
    return logits, model.route.layers_used[0].tolist(), model.route.token_cost()[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_references_however_a_text_is_cut(bench, family: str):
    on = bench(family=family)
    long, other, base = on.row(100), on.row(40, -0.5, seed=1), on.row(9, math.inf, seed=2)
    found = [
        on.run((long, 0, 1), (other, 0, 39), (base, 0, 5)),
        on.run((other, 39, 1), (long, 1, 60)),
        on.run((long, 61, 39), (base, 5, 4)),
    ]
    rows = {0: [], 1: [other], 2: [long, base]}
    for i, passed in enumerate(found):
        assert (passed.logits is None) == (not rows[i])
        for logits, row in zip(passed.logits if rows[i] else [], rows[i], strict=True):
            torch.testing.assert_close(logits, reference(on, row)[0][-1], rtol=1e-4, atol=1e-4)
    _, depths, costs = reference(on, long)
    assert found[0].depths[:1] + found[1].depths[1:] + found[2].depths[:39] == depths
    assert found[0].costs[:1] + found[1].costs[1:] + found[2].costs[:39] == pytest.approx(costs)
    assert on.runner.stats.padded_rows > 0, "this test rounds row counts up, too"


@pytest.mark.parametrize("method", [*METHODS, *TOYS])
def test_nothing_is_evaluated_for_a_token_that_skips(bench, method: str):
    on = bench(method)
    offset = math.inf if method == "dense" else 0.0
    row = on.row(STEP, offset, prompt=4)  # up to here no row count is rounded up
    with FlopCounterMode(display=False) as counter:
        passed = on.run((row, 0, STEP))
    _, depths, costs = reference(on, row)
    stats, ledger = on.runner.stats, on.llm.model.converted.ledger
    assert passed.depths == depths and sum(depths) == stats.rows_run
    trace = on.llm.model.route.last.trace
    waited = {s: trace.here.get(s, torch.ones(STEP, dtype=torch.bool)) for s in trace.decisions}
    for rows, unit in ((stats.attn_rows, "attn"), (stats.mlp_rows, "mlp")):
        assert rows.tolist() == on.llm.model.route.keep(unit)[:, 0].sum(1).tolist()
    macs = sum(costs) * ledger.dense - (STEP - 1) * ledger.head  # the head runs for the last token alone
    counts = counter.get_flop_counts()["Global"]
    attention = sum(n for op, n in counts.items() if "scaled_dot" in str(op))
    linear = (sum(counts.values()) - attention) / 2
    assert linear == pytest.approx(macs + routers(on.llm, waited), rel=1e-6)
    if method != "dense" and on.llm.model.converted.program.skips:
        dense = on.row(STEP, math.inf)
        with FlopCounterMode(display=False) as full:
            on.run((dense, 0, STEP))
        assert counter.get_total_flops() < 0.95 * full.get_total_flops() or sum(costs) > STEP
        units = on.llm.model.converted.routed
        replaced = [(waited[s] & ~d.keep).sum() for s, d in trace.decisions.items() if "adapter" in units[s].parts]
        assert stats.adapter_rows.sum() == sum(replaced)
        assert (~torch.stack([d.keep for d in trace.decisions.values()])).any(), "something was skipped"


def routers(llm: LLM, waited: dict[int, torch.Tensor]) -> int:
    """By how many multiply-accumulates routers differ from the price list: one folds dec and head anew in each pass,
    the other is no matrix product, so that nothing is counted."""
    parts = [(s, part) for s, unit in llm.model.converted.routed.items() for part in unit.parts.values()]
    folds = sum(part.dec.weight.numel() for _, part in parts if isinstance(part, Router))
    return folds - sum(int(waited[s].sum()) * part.macs for s, part in parts if isinstance(part, LinearRouter))


def test_a_static_methods_dropped_layers_write_no_k_and_v(bench):
    on = bench("static")
    on.run((on.row(20), 0, 20))
    assert on.runner.stats.kv_rows.tolist() == [20, 0, 20, 0, 20, 20]
    on = bench("flexidepth")
    on.run((on.row(20), 0, 20))
    assert on.runner.stats.kv_rows.tolist() == [20] * 6


def test_a_layer_that_all_tokens_skip_has_its_weights_unread(bench):
    read = {}
    for offset in (math.inf, -1e9):
        on = bench()
        on.run((on.row(1, offset), 0, 1))
        read[offset] = on.runner.stats.weight_bytes
        assert on.runner.stats.layers_run == (6 if offset == math.inf else 2)
    ledger: Ledger = on.llm.model.converted.ledger
    layers = sum(ledger.layers[i].attn + ledger.layers[i].mlp for i in range(2, 6))
    parts = sum(p.numel() for name, p in on.llm.model.named_parameters() if ".parts." in name)
    assert read[math.inf] - read[-1e9] == 4 * (layers - parts)


@pytest.mark.parametrize("method", [*METHODS, *TOYS])
def test_beyond_break_even_all_rows_run_and_the_output_is_the_same(bench, method: str):
    found = {}
    for pays in (True, False):
        on = bench(method)
        # skipping never slower than dense, or always: all shares of kept rows are gathered, or none
        ratio = 0.5 if pays else 2.0
        on.runner.break_even = BreakEven({}, 0.5, 1.0, (Point(1, 0.75, ratio), Point(64, 0.75, ratio)))
        row = on.row(STEP, math.inf if method == "dense" else 0.0)
        found[pays] = on.run((row, 0, STEP)), on.runner.stats
    (gathered, few), (selected, all_rows) = found[True], found[False]
    assert selected.depths == gathered.depths and selected.costs == gathered.costs
    torch.testing.assert_close(selected.logits, gathered.logits, rtol=1e-4, atol=1e-4)
    assert all_rows.rows.tolist() == few.rows.tolist()
    if on.runner.program.jumps:  # who has left is not run, whatever pays
        return
    for ran, kept in zip(all_rows.mlp_rows.tolist(), few.rows.tolist(), strict=True):
        assert ran == (STEP if kept else 0), "what ran is counted, not what was decided"
    assert few.mlp_rows.tolist() == few.rows.tolist()


@pytest.mark.parametrize("units", [("attn",), ("mlp",), ("attn", "mlp"), ("layer",)])
def test_depths_count_layers_that_run_in_part(bench, units: tuple[str, ...]):
    on = bench("skiplayer", fields={"units": units, "first": 1, "last": 5})
    least, seen = (6 if len(units) == 1 and units != ("layer",) else 2), set()
    assert on.llm.always_on == Facts.of(on.llm.model, "tiny").always_on == least
    for offset in (0.0, -1e9, 1e9):
        row = on.row(20, offset)
        passed = on.run((row, 0, 20))
        _, depths, costs = reference(on, row)
        assert passed.depths == depths and passed.costs == pytest.approx(costs)
        keep = on.llm.model.route.keep()[:, 0].numpy()
        assert keep.all() if passed.keep is None else np.array_equal(passed.keep, keep)
        seen |= set(depths)
    assert min(seen) == least and max(seen) == 6


@pytest.mark.parametrize("method", ["flexidepth", "skiplayer", "balcony"])
def test_what_the_base_reads_is_not_asked_about(bench, monkeypatch, method: str):
    on, asked = bench(method), []
    real = type(on.runner.method).decide

    def noted(self, parts, seen, s, tokens, trace):
        asked.append((len(seen.x), tokens.count, bool(tokens.full.any())))
        return real(self, parts, seen, s, tokens, trace)

    read, written = on.row(20, math.inf), on.row(12, -1.0, seed=1)
    alone = on.run((written, 0, 12))
    monkeypatch.setattr(type(on.runner.method), "decide", noted)
    both = on.run((read, 0, 20), (written, 0, 12))
    assert asked and all(x == count <= 12 and not full for x, count, full in asked)
    assert both.costs == [1.0] * 20 + alone.costs and both.depths[20:] == alone.depths
    assert min(alone.depths) < 6 == min(both.depths[:20])
    torch.testing.assert_close(both.logits[0], reference(on, read)[0][-1], rtol=1e-4, atol=1e-4)
