"""Random cases of the engine: a model, an engine around it, and requests that come and go, all from one seed.

What a case gives is compared with the reference in `fuzz_check`. Pages that nobody may read hold nan.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tests.engine.poison import poison
from tests.laws.cover import MIXTURES
from tests.laws.test_laws import made, variants
from tests.laws.toys import TOYS

from depthdial.core.dial import Dials
from depthdial.core.hold import Hold
from depthdial.engine.acceptance import Prices
from depthdial.engine.batch import Batch, Passed
from depthdial.engine.breakeven import BreakEven, Point
from depthdial.engine.cache import pages_for
from depthdial.engine.llm import LLM
from depthdial.engine.native import NativeRunner
from depthdial.engine.prefix import first_key
from depthdial.engine.request import Request, Row
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.speculate import Speculator
from depthdial.kernels.tensors import PAGE
from depthdial.methods import METHODS
from depthdial.models.families import FAMILIES

SHAPES: list[dict[str, Any]] = [
    {},
    {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 40},
    {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5, "intermediate_size": 72},
    {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32, "intermediate_size": 128, "vocab_size": 317},
    {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 7},
]
"""Beside the tiny model's own sizes."""
WINDOWS = [1, 3, 8, 40, 64, 65, 100]
LENGTHS = [1, 2, 3, 9, 15, 16, 17, 18, 33, 50, 55, 58, 60, 62, 63, 64, 65, 66, 90, 118, 124, 127, 128, 129, 150]
"""Many end shortly before a page does, so that rows grow into the next one while they decode."""
OFFSETS = [0.0, 0.0, 0.0, -0.6, 0.5, -1.5, 1.5, 0.0, -1e9, 1e9, math.inf]
CONTEXT = 256
ENDS = frozenset(range(2, 12))
"""Tokens that end a text: enough of them for some to come up."""


def slides(family: str, window: int) -> dict[str, Any]:
    """The fields that make layers of a family slide."""
    if not hasattr(FAMILIES[family].example, "sliding_window"):
        return {}
    asked = {"sliding_window": window}
    return asked | ({"use_sliding_window": True, "max_window_layers": 2} if family.startswith("qwen") else {})


@dataclass
class Plan:
    """One request of a case. arrives: before which step it is submitted; leaves: before which it is cancelled."""

    ids: list[int]
    dials: Dials
    draft: float
    params: SamplingParams
    arrives: int
    leaves: int | None


@dataclass
class Case:
    """Everything that a seed says."""

    seed: int
    family: str
    method: str
    fields: dict[str, Any]
    sizes: dict[str, Any]
    dtype: torch.dtype
    engine: dict[str, Any]
    chunk: int
    native: bool
    select: bool
    """Are all rows run and the skipping ones selected away, as where gathering does not pay?"""
    plans: list[Plan] = field(default_factory=list)

    @property
    def apart(self) -> bool:
        """Are halves of layers decided apart? A runner tells of layers, not of their halves."""
        return self.fields.get("units", ("layer",)) != ("layer",)

    def __str__(self) -> str:
        lines = [
            f"case {self.seed}: FUZZ_SEED={self.seed} python -m pytest tests/laws/test_fuzz.py -k alone",
            f"  {self.family} {self.sizes}, {self.dtype}; {self.method} {self.fields}",
            f"  {self.engine}, chunk {self.chunk}, native {self.native}, select {self.select}",
        ]
        lines += [
            f"  {len(plan.ids)} tokens at {plan.dials} (drafts {plan.draft}), steps {plan.arrives} to {plan.leaves}: "
            f"{plan.params}"
            for plan in self.plans
        ]
        return "\n".join(lines)


def drawn_case(seed: int) -> Case:
    """The case of a seed, the same on every machine."""
    rng = random.Random(seed)
    family = rng.choice(list(FAMILIES))
    method, fields = rng.choice([
        (name, fields) for name in [*METHODS, *TOYS] for fields in variants(name).values()
    ])  # fmt: skip
    sizes = {**rng.choice(SHAPES), **slides(family, rng.choice(WINDOWS)), "max_position_embeddings": CONTEXT}
    if family in ("olmoe", "helium"):  # whose heads are together as wide as the model
        sizes["head_dim"] = sizes.get("hidden_size", 32) // sizes.get("num_attention_heads", 4)
    if rng.random() < 0.3:
        sizes["tie_word_embeddings"] = True
    # in bf16 a token may run other experts for a rounding
    narrow = rng.random() < 0.25 and family not in MIXTURES
    case = Case(
        seed, family, method, fields, sizes, torch.float32, {}, rng.choice([1, 5, 16, 17, 40, 64, 100, 512]),
        native=rng.random() < 0.7, select=rng.random() < 0.15,
    )  # fmt: skip
    if narrow and not case.apart:
        case.dtype = torch.bfloat16
    tight = rng.random() < 0.25  # several rows grow into a page that is not there
    for _ in range(rng.choice([3, 4] if tight else [1, 2, 3, 3, 4, 5])):
        case.plans.append(_plan(rng, case, tight))
    least = max(pages_for(len(plan.ids) + plan.params.max_tokens) for plan in case.plans)
    case.engine = {
        "max_batch": rng.choice([3, 4] if tight else [1, 2, 3, 4, 6]),
        "cache_tokens": PAGE * (least + rng.choice([1, 2] if tight else [0, 0, 0, 1, 1, 2, 3, 12])),
        "prefix_cache": rng.random() < 0.7,
    }
    return case


def _plan(rng: random.Random, case: Case, tight: bool) -> Plan:
    vocabulary = case.sizes.get("vocab_size", 300)
    length = rng.choice([50, 55, 60, 118] if tight else LENGTHS)
    ids = [rng.randrange(3, vocabulary) for _ in range(length)]
    if case.plans and rng.random() < 0.5:  # begins as an earlier one does
        ids = [*rng.choice(case.plans).ids[: rng.choice([1, 20, 64, 65, 128, 150])], *ids][: max(length, 110)]
    if rng.random() < 0.2:  # something to copy
        ids = (ids[: rng.choice([1, 2, 5])] * length)[:length]
    lossless = rng.random() < 0.2
    drawn = rng.random() < 0.4
    params = SamplingParams(
        max_tokens=rng.choice([13, 24, 40] if tight else [1, 2, 5, 8, 13, 24, 40]),
        temperature=rng.choice([0.5, 1.0, 1.4]) if drawn else 0.0,
        top_k=rng.choice([0, 0, 1, 5, 40]) if drawn else 0,
        top_p=rng.choice([1.0, 1.0, 0.9, 0.3]) if drawn else 1.0,
        n=rng.choice([1, 1, 1, 2, 3]),
        seed=rng.randrange(1 << 40),
        logprobs=rng.choice([None, None, 0, 3]),
        ignore_eos=rng.random() < 0.7,
        lossless=lossless,
    )
    method = made(case.method, case.fields)
    program = method.program(case.sizes.get("num_hidden_layers", 6))
    routed = bool(program.routed)
    offset = math.inf if lossless or not routed else rng.choice(OFFSETS)
    read = rng.choice([None, None, math.inf, math.inf, rng.choice(OFFSETS)])
    if not math.isfinite(offset) or (method.by_row and (program.own or (read is not None and read < offset))):
        read = None  # the base reads in full, and nobody asks for K and V that a prompt left out
    hold = Hold(rng.choice([0.6, 0.8, 0.95]), offset, rng.choice([0.01, 0.1, 0.3])) if math.isfinite(offset) else None
    dials = Dials(offset, read, hold if not program.gaps and rng.random() < 0.6 else None)
    arrives = rng.choice([0, 1] if tight else [0, 0, 0, 1, 3, 9])
    leaves = arrives + rng.randrange(1, 12) if rng.random() < 0.15 else None
    return Plan(ids, dials, rng.choice(OFFSETS) if routed else math.inf, params, arrives, leaves)


@dataclass
class Ran:
    """What came of a case. keeps: bool [tokens run, L] of each row, the layers that ran each of its tokens."""

    case: Case
    llm: LLM
    requests: list[Request]
    keeps: dict[Row, np.ndarray]
    changed: set[Row]
    """Rows whose tokens ran other layers when they were computed again."""
    kept: int
    """Layers run for tokens, summed over all passes."""
    counts: Counter[str]


def run(case: Case, tiny_model: Callable, tokenizer: Any, adapted: Callable) -> Ran:
    """Build the case and step until all is done."""
    base = tiny_model(case.family, seed=case.seed % 1009, **case.sizes).to(case.dtype)
    method = made(case.method, case.fields)
    llm = LLM.of(adapted(base, method, seed=case.seed % 1013), tokenizer, **case.engine)
    engine = llm.engine
    engine.scheduler.chunk, engine.ends = case.chunk, ENDS
    if not case.native and isinstance(engine.runner, NativeRunner):
        engine.runner = engine.runner.plain
    if case.select:
        engine.runner.break_even = BreakEven({}, 0.5, 1.0, (Point(1, 0.5, 2.0), Point(1, 0.9, 2.2)))
    ticks = random.Random(case.seed)
    passed = [0.0]

    def clock() -> float:  # which drafts pay must not depend on the machine
        passed[0] += ticks.random()
        return passed[0]

    engine.speculator = Speculator(engine.scheduler.stats.speculation, Prices(clock))
    poison(engine.scheduler.cache)
    watch = Watch(llm)
    requests = [
        Request(
            None, plan.ids, plan.params, plan.params.seed or 0, plan.dials,
            min(plan.params.max_tokens, CONTEXT - len(plan.ids)), first_key("fuzz"), plan.draft,
        )
        for plan in case.plans
    ]  # fmt: skip
    for step in range(5000):
        for plan, request in zip(case.plans, requests, strict=True):
            if plan.arrives == step:
                engine.submit(request, tokenizer)
            if plan.leaves == step:
                engine.cancel(request)
        if all(request.rows and request.done for request in requests):
            break
        engine.step()
    else:
        raise AssertionError("the engine does not come to an end")
    cache = engine.scheduler.cache
    assert engine.scheduler.idle and cache.available == cache.pages and not cache._held, "something is held"
    assert cache.free_slots == llm.max_batch
    return Ran(case, llm, requests, watch.keeps, watch.changed, watch.kept, _counts(case, llm, requests))


class Watch:
    """Notes which layers ran for the token at every place of the cache, as pages are written, copied and shared."""

    def __init__(self, llm: LLM):
        self.cache, runner = llm.engine.scheduler.cache, llm.engine.runner
        self.keeps: dict[Row, np.ndarray] = {}
        self.changed: set[Row] = set()
        self.kept = 0
        self._layers = llm.layers
        self._ran: dict[int, np.ndarray] = defaultdict(lambda: np.zeros((PAGE, llm.layers), dtype=bool))
        """By page, of its places."""
        inner, own = runner.run, self.cache._own

        def run(batch: Batch) -> Passed:
            passed = inner(batch)
            self._note(batch, passed.keep)
            return passed

        def owned(slot: int, index: int) -> None:
            before = self.cache._held[slot][index]
            own(slot, index)
            self._ran[self.cache._held[slot][index]] = self._ran[before].copy()

        vars(runner).update(run=run)
        vars(self.cache).update(_own=owned)

    def _note(self, batch: Batch, keep: np.ndarray | None) -> None:
        ran = np.ones((batch.size, self._layers), dtype=bool) if keep is None else keep.T.astype(bool)
        for slot, place, mine in zip(batch.slots.tolist(), batch.positions.tolist(), ran, strict=True):
            self._ran[self.cache._held[slot][place // PAGE]][place % PAGE] = mine
        self.kept += int(ran.sum())
        for part in batch.slices:
            if part.drafting:
                continue
            assert part.row.slot is not None
            end = part.start + part.count
            pages = self.cache._held[part.row.slot][: pages_for(end)]
            now, before = np.concatenate([self._ran[page] for page in pages])[:end], self.keeps.get(part.row)
            if before is not None:
                both = min(len(before), end)
                if (now[:both] != before[:both]).any():
                    self.changed.add(part.row)
                now = np.concatenate((now, before[both:]))
            self.keeps[part.row] = now


def _counts(case: Case, llm: LLM, requests: list[Request]) -> Counter[str]:
    stats, rows = llm.stats, [row for request in requests for row in request.rows]
    begun = sum(request.cached_tokens > 0 for request in requests if request.params.n == 1)
    spoken = stats.speculation
    return Counter({
        "cases": 1,
        f"family {case.family}": 1,
        f"method {case.method}": 1,
        "bfloat16": int(case.dtype == torch.bfloat16),
        "preempted": stats.preemptions,
        "shared tokens": stats.cached_tokens,
        "beginnings of others": 0 if stats.preemptions else begun,
        "native tokens": stats.native_tokens,
        "torch tokens": stats.tokens - stats.native_tokens,
        "skipped": stats.tokens * llm.layers - int(stats.rows.sum()),
        "read in full, then skipped": sum(
            row.request.dials.read == math.inf and min(row.depths[1:], default=llm.layers) < llm.layers for row in rows
        ),
        "dials that moved": sum(
            len({at for *_, at in row.runs(len(row.request.token_ids), len(row.ran_depths))}) > 1 for row in rows
        ),
        "forks": sum(len(request.rows) - 1 for request in requests),
        "cancelled": sum(row.finish_reason == "cancelled" for row in rows),
        "stopped": sum(row.finish_reason == "stop" for row in rows),
        "drafts right": sum(spoken.accepted.values()),
        "drafts wrong": sum(spoken.drafted.values()) - sum(spoken.accepted.values()),
        "drawn": sum(len(row.token_ids) for row in rows if row.request.params.temperature),
        "greedy": sum(len(row.token_ids) for row in rows if not row.request.params.temperature),
    })  # fmt: skip
