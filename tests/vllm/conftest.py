"""Exported tiny models, vLLM in a process of its own, and the dense reference that it must agree with.

These tests run in an environment of their own (`make test-vllm`); pytest's usual run does not look in here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import depthdial  # noqa: F401 - makes our model types known
from depthdial.core.decision import Decision
from depthdial.core.dial import Curve
from depthdial.methods import method_named
from depthdial.models.checkpoint import Plugin
from depthdial.models.converted import converted_of
from depthdial.models.dial import set_budget
from depthdial.models.export import export
from depthdial.models.fingerprint import fingerprint

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # vLLM's CPU attention knows no smaller ones
    "max_position_embeddings": 256,
}
CURVE = Curve((-2.0, 0.0, 2.0), (0.6, 0.8, 0.95), (0.5, 0.2, 0.05))
Prompts = list[list[list[int]]]


@pytest.fixture(scope="session")
def exported(tiny_model: Callable, tiny_tokenizer: Any, adapted: Callable, tmp_path_factory) -> Callable[..., Path]:
    """`exported(family, method, budget, fields, **config)`: a folder with a tiny random model and random routers."""

    def make(
        family: str, method: str = "flexidepth", budget: float | None = None, fields: Any = None, **config: Any
    ) -> Path:
        fields = {"first": 2, "router_ratio": 4, "adapter_ratio": 4, "start": 0.0} if fields is None else fields
        model = adapted(tiny_model(family, **{**SIZES, **config}), method_named(method, fields))
        curves = {"text": CURVE, "generated": CURVE}
        converted = converted_of(model)
        converted.plugin = Plugin("tiny", converted.method, fingerprint(model), curves, recommended=0.8)
        set_budget(model, budget)
        return export(model, tiny_tokenizer, tmp_path_factory.mktemp("exported") / family, budget)

    return make


@pytest.fixture(scope="session")
def vllm(tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """`vllm(folder, batches, ranks=1, env=None, **options)`: what `worker` says of it."""

    def run(
        folder: Path,
        batches: Prompts,
        ranks: int = 1,
        tokens: int = 16,
        overrides: dict | None = None,
        env: dict | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        place = tmp_path_factory.mktemp("job")
        given = {"max_model_len": 256, "max_num_batched_tokens": 48, "max_num_seqs": 4, "block_size": 32, **options}
        job = {"folder": str(folder), "ranks": ranks, "batches": batches, "tokens": tokens}
        job |= {"overrides": overrides or {}, "options": given}
        (place / "job.json").write_text(json.dumps(job))
        here = Path(__file__).parent
        around = {
            **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},  # set for our kernels
            "PYTHONPATH": os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "|".join(str(rank % (os.cpu_count() or 1)) for rank in range(ranks)),
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if ranks == 1 else "1",  # a process less to start
            **(env or {}),
        }
        command = [sys.executable, str(here / "worker.py"), str(place / "job.json"), str(place / "result.json")]
        done = subprocess.run(command, env=around, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
        return json.loads((place / "result.json").read_text())

    return run


@pytest.fixture(scope="session")
def agrees() -> Callable[..., tuple[int, int]]:
    """`agrees(folder, batches, found, offset, read=inf)`: tokens, decisions and rows are those of dense passes of the
    reference, with the dial at `read` for prompts and at `offset` for what is written. Gives how many decisions there
    were for tokens that were not read in full, and how many of them were to skip."""

    def check(
        folder: Path, batches: Prompts, found: dict[str, Any], offset: float, read: float = math.inf
    ) -> tuple[int, int]:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        program = converted_of(model).program
        for dials in found["offsets"]:
            assert dials == [pytest.approx(read), pytest.approx(offset)], "every rank has them where they were set"
        routed = set() if offset == float("inf") else {program.steps[s].block for s in program.routed}
        adapters = any(".adapter." in name for name in model.state_dict())
        total = skips = ties = made = 0
        for prompts, batch in zip(batches, found["batches"], strict=True):
            assert all(one == batch["decisions"][0] for one in batch["decisions"]), "all ranks decide alike"
            ran = torch.zeros(model.config.num_hidden_layers, dtype=torch.long)
            passed = 0
            for prompt, (request, steps, cached) in zip(prompts, batch["outputs"], strict=True):
                tokens = [token for token, _ in steps]
                mine = [one for one in batch["decisions"][0] if one["request"].rpartition("-")[0] == request]
                places = [place for one in mine for place in one["positions"]]
                assert places == list(range(cached, len(prompt) + len(tokens) - 1)), "each token once, in chunks"
                told = torch.tensor([row for one in mine for row in one["ran"]])
                unread = len(told) if read < math.inf else len(tokens) - 1
                assert told[: len(told) - unread].all(), "what is read in full runs every layer"
                converted_of(model).set(offset=torch.tensor([[read] * len(prompt) + [offset] * (len(tokens) - 1)]))
                ties += _ties(model, prompt, steps, told)
                total += unread * len(routed)
                ran += told.sum(0)
                made += len(tokens)
                passed += len(told)
            skips += int((passed - ran).sum())
            for rank in batch["rows"]:
                _check_rows(rank, ran.tolist(), passed, routed if adapters else set())
        assert ties <= 1 + made // 100, "what rounding decides is rare"
        return total, skips

    return check


ROUNDING = 2e-2
"""How far log-probabilities and routers' logits may lie apart: here they do by 3e-5; in a run of the CI by 6e-3, which
looks like cosines of 11 bits (`core.vml`). One token on the wrong way through one layer moves log-probabilities by 1.8
or more, keys and values in bf16 by 0.1: those are still found (`test_a_wrong_way_shows`)."""
Steps = list[tuple[int, dict[str, float]]]


def _ties(model: Any, prompt: list[int], steps: Steps, told: Tensor) -> int:
    """Compare log-probabilities, greedy tokens and decisions, bool [T, L] of the last T places, with one dense pass.

    Tokens and decisions must be the reference's own, but where its best two stand within rounding of each other: other
    processors add up in another order. Gives how many such ties fell differently. The pass goes on by what was told, so
    that a tie does not hide what comes after it.
    """
    converted, ties = converted_of(model), 0
    decide = type(converted.method).decide

    def follow(method: Any, parts: Any, seen: Any, s: int, of: Any, trace: Any) -> Decision:
        nonlocal ties
        decision, step = decide(method, parts, seen, s, of, trace), converted.program.steps[s]
        if step.unit == "mlp":
            return decision  # follows the one of its layer's attention
        keep = decision.keep.clone()
        keep[-len(told) :] = told[:, step.block]
        other = keep != decision.keep
        if not other.any():
            return decision
        assert decision.score is not None
        near = (decision.score.logit()[other]).abs() < ROUNDING
        assert near.all(), f"layer {step.block}: decided otherwise, and not by rounding"
        ties += int(other.sum())
        run = keep.to(decision.run.dtype)
        return dataclasses.replace(decision, keep=keep, run=run, skip=1 - run)

    tokens = torch.tensor([token for token, _ in steps])
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(converted.method), "decide", follow)
        text = torch.cat([torch.tensor(prompt), tokens[:-1]])
        logits = model(text[None], use_cache=False).logits[0, len(prompt) - 1 :].log_softmax(-1)
    assert torch.equal(model.route.keep()[:, 0, -len(told) :].T, told), "a layer that is not routed runs for all"
    apart = [max(abs(logits[i, int(k)].item() - p) for k, p in likely.items()) for i, (_, likely) in enumerate(steps)]
    assert max(apart) < ROUNDING, f"log-probabilities are not the reference's: {apart}"
    behind = logits.amax(-1) - logits.gather(-1, tokens[:, None]).squeeze(-1)
    assert (behind < 2 * ROUNDING).all(), f"another token is likelier, by {behind.tolist()}"
    return ties + int((behind > 0).sum())


def _check_rows(rows: dict[str, int], ran: list[int], passed: int, adapted: set[int]) -> None:
    """Every matrix was given the rows that the decisions ask for, and no others. adapted: layers with an adapter."""
    for layer, count in enumerate(ran):
        assert rows[f"{layer} self_attn.kv_proj"] == passed, "K and V are written for every token"
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
            assert rows.get(f"{layer} {name}", 0) == count, f"layer {layer} {name}"
        assert rows.get(f"{layer} adapter", 0) == (passed - count if layer in adapted else 0)
