"""Native passes against the torch runner: the same logits, decisions, cache and counts, for every method and family."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import pytest
import torch
from tests.laws.cover import NATIVE, product
from tests.laws.toys import TOYS

from depthdial.core.dial import Dials
from depthdial.engine import assemble
from depthdial.engine.batch import Batch
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.model_tensors import tensors_of
from depthdial.engine.native import NativeRunner
from depthdial.engine.request import Row
from depthdial.engine.runner import TorchRunner
from depthdial.engine.scheduler import Slice
from depthdial.kernels.cpu.build import Unavailable, all_isas
from depthdial.methods import METHODS

TILED = [*METHODS, *TOYS]
"""Methods for passes in tiles, which ask for the fields' own widths."""
FIXED = [name for name in METHODS if "fixed_input" in vars(METHODS[name])]
EACH = pytest.mark.parametrize(
    ("method", "fields"),
    [
        *(pytest.param(name, {}, id=name) for name in TILED),
        *(pytest.param(name, {"fixed_input": True}, id=f"{name}-fixed") for name in FIXED),
    ],
)
NARROW = ("adapter_ratio", "router_ratio")


def native(llm: LLM) -> NativeRunner:
    runner = llm.engine.runner
    assert isinstance(runner, NativeRunner), "there is no compiler here"
    return runner


def fused(llm: LLM) -> bool:
    """Can the kernels run the method? Not a whole layer that something stands in for."""
    runner = llm.engine.runner
    plain = runner.plain if isinstance(runner, NativeRunner) else runner
    assert isinstance(plain, TorchRunner)
    return all(plain.program.steps[s].unit == "mlp" for s in plain.bypassed)


def rows(llm: LLM, asked: Callable, method: str) -> list[Row]:
    """Three texts with slots; each at a dial of its own."""
    offsets = [math.inf] * 3 if method == "dense" else [0.0, -0.8, math.inf]
    made = []
    for seed, (offset, length) in enumerate(zip(offsets, (90, 12, 7), strict=True)):
        ids = torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        prompt = 5 if llm.engine.runner.by_prompt else length
        row = Row(asked(llm, ids[:prompt], offset, temperature=1.0), 0, llm.tokenizer)
        row.tokens = ids
        row.slot = llm.engine.scheduler.cache.open()
        assert llm.engine.scheduler.cache.grow(row.slot, 0, length)
        made.append(row)
    return made


@product([*TILED, *(f"{name}-fixed" for name in FIXED)], NATIVE)
def test_a_native_pass_is_the_torch_runners(made, asked, method: str, family: str):
    method, fixed, _ = method.partition("-fixed")
    llms = [made(method, family, {"fixed_input": True} if fixed else {}) for _ in range(2)]
    if not fused(llms[0]):
        assert isinstance(llms[0].engine.runner, TorchRunner)
        return
    found = []
    for llm, runner in zip(llms, (native(llms[0]), native(llms[1]).plain), strict=True):
        long, short, third = rows(llm, asked, method)
        batch = Batch(llm.engine.scheduler.cache, 256, torch.device("cpu"))
        passes = []
        for part in ([(long, 0, 80)], [(third, 0, 1), (long, 80, 9), (short, 0, 6)], [(long, 89, 1), (short, 6, 6)]):
            batch.fill([Slice(*each) for each in part])
            passes.append(runner.run(batch))
        found.append(passes)
    for mine, plain in zip(*found, strict=True):
        assert mine.depths == plain.depths and mine.costs == pytest.approx(plain.costs)
        assert (mine.logits is None) == (plain.logits is None)
        if plain.logits is not None:
            torch.testing.assert_close(mine.logits, plain.logits.float(), rtol=1e-4, atol=1e-4)
    a, b = (llm.stats for llm in llms)
    assert a.native_tokens == 80 + 16 + 7 and b.native_tokens == 0
    assert (a.passes, a.tokens, a.layers_run) == (b.passes, b.tokens, b.layers_run)
    for name in ("attn_rows", "mlp_rows", "adapter_rows", "kv_rows"):
        assert getattr(a, name).tolist() == getattr(b, name).tolist(), name
    if not llms[0].model.converted.program.gaps:
        caches = [llm.engine.scheduler.cache for llm in llms]
        torch.testing.assert_close(caches[0].k, caches[1].k, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(caches[0].v, caches[1].v, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", all_isas())
@EACH
def test_large_passes_run_natively(tiny_model, tiny_tokenizer, adapted, asked, method: str, fields: dict, isa: str):
    """The same decisions where a method looks at places; a router's may differ where its logit is close to the cut."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    base = tiny_model("llama", **sizes).bfloat16()
    kind = TOYS[method] if method in TOYS else METHODS[method]
    fields = {**{name: value for name, value in kind.example.items() if name not in NARROW}, **fields}
    llm = LLM.of(adapted(base, kind(**fields)), tiny_tokenizer)
    if not fused(llm):
        return
    plain, found = native(llm).plain, []
    runner = NativeRunner(plain, tensors_of(plain.spine, plain), isa)
    for run in (runner.run, runner.plain.run):
        long, short, third = rows(llm, asked, method)
        batch, before = Batch(llm.engine.scheduler.cache, 256, torch.device("cpu")), runner.stats.attn_rows.copy()
        batch.fill([Slice(third, 0, 1), Slice(long, 0, 90), Slice(short, 0, 6)])
        found.append((run(batch), runner.stats.attn_rows - before))
    (mine, ran), (plain, plain_ran) = found
    assert runner.tiles == isa.startswith("amx") and llm.stats.native_tokens == 97
    assert sum(mine.depths) == ran.sum() and sum(plain.depths) == plain_ran.sum()
    differ = sum(a != b for a, b in zip(mine.depths, plain.depths, strict=True))
    assert differ <= (10 if not llm.model.converted.method.ahead and not llm.model.converted.method.fixed_input else 0)
    assert (ran < 97).any() == llm.model.converted.program.skips
    (logits,) = mine.logits
    # where keys are left out, one token that goes another way is one key more for all that follow
    far = 0.6 if differ and llm.model.converted.program.gaps else 0.12
    assert (logits - plain.logits[0].float()).norm() < far * logits.norm()


def test_decoding_reads_no_weight_of_a_skipped_layer(made):
    read = {}
    for offset in (math.inf, -1e9):
        llm = made()
        vars(llm.budgets).update(dials=lambda *_, offset=offset: Dials(offset))
        llm.generate([[5, 6, 7]], SamplingParams(max_tokens=20, ignore_eos=True))
        assert llm.stats.native_tokens == llm.stats.tokens == 22
        assert llm.stats.rows_run == 22 * (6 if offset == math.inf else 2)
        read[offset] = llm.stats.weight_bytes
    ledger = llm.model.converted.ledger
    layers = sum(ledger.layers[i].attn + ledger.layers[i].mlp for i in range(2, 6))
    parts = sum(p.numel() for name, p in llm.model.named_parameters() if "adapter" in name or "enc" in name)
    assert read[math.inf] - read[-1e9] == pytest.approx(20 * 4 * (layers - parts), rel=0.01)


def test_greedy_and_drawn_rows_go_together(made):
    llm = made()
    greedy = SamplingParams(max_tokens=8, ignore_eos=True)
    drawn = SamplingParams(max_tokens=8, ignore_eos=True, temperature=1.0, seed=3)
    alone = [llm.generate([[5, 6]], params)[0].token_ids for params in (greedy, drawn)]
    assert [out.token_ids for out in llm.generate([[5, 6]] * 2, [greedy, drawn])] == alone
    (scored,) = llm.generate([[5, 6]], SamplingParams(max_tokens=8, ignore_eos=True, logprobs=1))
    assert scored.token_ids == alone[0] and scored.logprobs is not None
    assert [max(row, key=row.__getitem__) for row in scored.logprobs] == alone[0]


def test_without_a_compiler_torch_decodes_and_one_line_says_so(made, monkeypatch, caplog):
    def none(*_args, **_more):
        raise Unavailable("no C++ compiler was found")

    monkeypatch.setattr(assemble, "NativeRunner", none)
    with caplog.at_level(logging.INFO, "depthdial"):
        llm = made()
    assert isinstance(llm.engine.runner, TorchRunner)
    assert [r.message for r in caplog.records] == [
        "decoding in PyTorch, without native kernels: no C++ compiler was found"
    ]
    assert caplog.records[0].levelno == logging.WARNING and made().stats.in_torch in caplog.records[0].message
    assert llm.generate([[5, 6]], SamplingParams(max_tokens=8, ignore_eos=True))[0].finish_reason == "length"
    with pytest.raises(ValueError, match=r"int8 weights need the native kernels \(no C\+\+ compiler was found\)"):
        made(weights="int8")
