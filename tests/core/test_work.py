"""What a pass must read and compute, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from depthdial.core.cost import LayerWork, Ledger, StepWork
from depthdial.core.program import END, OwnBlock, Program, Step, plain
from depthdial.core.work import Path, Sizes, work

SIZES = Sizes(weight=2, part=2, cache=4, hidden=7)
LAYER = LayerWork(kv=4, attn=6, mlp=10, attend=8, kv_width=2)


def priced(layer: LayerWork, look: int = 3, bypass: int = 5, absent: int = 4, head: int = 100) -> Ledger:
    """Two layers, the second routed."""
    works = StepWork(layer), StepWork(layer, look, bypass, absent)
    return Ledger(plain(2, (1,), absent="project" if absent else "nothing"), works, head)


LEDGER = priced(LAYER)


def tokens(keep, positions=(4, 9), texts=(0, 1), logits=2, decided=True) -> Path:
    ran, places = torch.tensor(keep, dtype=torch.bool), torch.tensor(positions)
    keys = (places + 1).expand_as(ran)
    return Path(ran, torch.ones_like(ran), keys, places, torch.tensor(texts), logits, decided)


def test_two_texts_decode_and_one_skips():
    found = work(LEDGER, tokens([[1, 1], [1, 0]]), SIZES)
    embedding, head = 2 * 7 * 2, 100 * 2
    first = 2 * (4 + 6 + 10) + (5 + 10 + 2) * 2 * 4
    second = 2 * (4 + 6 + 10) + (5 + 2) * 2 * 4 + 2 * (3 + 5)
    assert found.bytes == embedding + head + first + second == 516
    assert found.macs == 200 + (2 * 20 + 15 * 8) + (2 * 4 + 16 + 5 * 8) + (2 * 3 + 5) == 435


def test_a_layer_that_all_skip_is_not_read():
    found = work(LEDGER, tokens([[1, 1], [0, 0]]), SIZES)
    assert found.bytes == 28 + 200 + (40 + 136) + (2 * 4 + 2 * 2 * 4 + 2 * (3 + 5))
    assert found.macs == 200 + (40 + 120) + 2 * 4 + 2 * (3 + 5)


def test_the_base_has_no_router_and_a_layer_that_all_keep_reads_no_adapter():
    kept = work(LEDGER, tokens([[1, 1], [1, 1]]), SIZES)
    base = work(LEDGER, tokens([[1, 1], [1, 1]]).dense(), SIZES)
    assert kept.bytes - base.bytes == 2 * 3 and kept.macs - base.macs == 2 * 3


def test_nobody_asks_for_k_and_v_where_the_method_says_so():
    found = work(priced(LAYER, 0, 0, absent=0), tokens([[1, 1], [0, 0]]), SIZES)
    assert found == work(Ledger(plain(1), (StepWork(LAYER),), 100), tokens([[1, 1]]), SIZES)


def test_the_tokens_of_a_prompt_share_the_cache_and_one_gets_logits():
    found = work(LEDGER, tokens([[1, 1, 1]] * 2, (0, 1, 2), (0, 0, 0), logits=1, decided=False), SIZES)
    assert found.bytes == 3 * 14 + 200 + 2 * (40 + (3 + 3) * 8)
    assert found.macs == 100 + 2 * (3 * 20 + (1 + 2 + 3) * 8)


def test_a_window_limits_what_is_seen():
    layer = LayerWork(kv=4, attn=6, mlp=10, attend=8, kv_width=2, window=3)
    found = work(Ledger(plain(1), (StepWork(layer),), 0), tokens([[1, 1]], decided=False), SIZES)
    assert found.macs == 2 * 20 + 6 * 8 and found.bytes == 28 + 40 + (6 + 2) * 8


def exiting(shows: frozenset[str] = frozenset()) -> Ledger:
    """Two layers; before the second a token may go to an exit's own block, and is done there."""
    steps = (Step(0), Step(1, routed="skip", then=END, otherwise=2, absent="nothing", shows=shows),
             Step(-1, base=False, absent="nothing"))  # fmt: skip
    look = 100 if shows else 3
    return Ledger(Program(steps, (OwnBlock(1, 1),)), (StepWork(LAYER), StepWork(LAYER, look), StepWork(LAYER)), 100)


def test_an_exit_is_not_part_of_the_base_and_reads_only_what_runs():
    ledger = exiting()
    left = Path(torch.tensor([[1], [0], [1]], dtype=torch.bool), torch.tensor([[1], [1], [1]], dtype=torch.bool),
                torch.tensor([[5], [1], [1]]), torch.tensor([4]), torch.tensor([0]), 1)  # fmt: skip
    assert work(ledger, left, SIZES).macs == 100 + (20 + 5 * 8) + 3 + (20 + 8)
    assert work(ledger, left.dense(), SIZES).macs == 100 + 2 * (20 + 5 * 8)
    assert left.visits(ledger.program) == 2 == left.dense().visits(ledger.program)


def test_a_head_that_is_looked_at_is_read_as_weights_are():
    ledger = exiting(frozenset({"logits"}))
    stayed = tokens([[1], [1], [0]], (4,), (0,), 1)
    stayed = replace(stayed, here=torch.tensor([[1], [1], [0]], dtype=torch.bool))
    plain_ = work(Ledger(plain(2), (StepWork(LAYER), StepWork(LAYER)), 100), tokens([[1], [1]], (4,), (0,), 1), SIZES)
    assert work(ledger, stayed, SIZES).bytes - plain_.bytes == 100 * 2


def test_the_untouched_base_leaves_k_and_v_where_others_ask_it_for_them():
    again = Program((Step(0), Step(0, routed="skip", base=False), Step(1)))
    ledger = Ledger(again, (StepWork(LAYER), StepWork(LAYER, 3, 0, 4), StepWork(LAYER)), 100)
    found = work(ledger, tokens([[1]] * 3, (4,), (0,), 1, decided=False), SIZES)
    assert found.macs == 100 + 2 * (20 + 5 * 8) + 4 and found.left == 3 * 2 * 4
    assert found.weights == 14 + 200 + 2 * (2 * 20) + 2 * 4
