"""Engines over tiny converted models, and the dense reference every text must agree with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.laws.toys import TOYS

from depthdial.core.dial import Dials
from depthdial.engine.llm import LLM
from depthdial.engine.output import RequestOutput
from depthdial.engine.prefix import first_key
from depthdial.engine.request import Request
from depthdial.engine.sampling import SamplingParams
from depthdial.methods import METHODS


@pytest.fixture(scope="session")
def made(tiny_model: Callable, tiny_tokenizer: Any, adapted: Callable) -> Callable[..., LLM]:
    """`made(method, family, **engine)`: an LLM over a tiny random model with random parts, whose prompts skip, too,
    unless `prompt_budget` says otherwise."""

    def make(method: str = "flexidepth", family: str = "llama", fields: dict | None = None, **engine: Any) -> LLM:
        kind = TOYS[method] if method in TOYS else METHODS[method]
        chosen = kind(**{**kind.example, **(fields or {})})
        options: dict[str, Any] = {"prompt_budget": "same", **engine}
        return LLM.of(adapted(tiny_model(family), chosen), tiny_tokenizer, **options)

    return make


@pytest.fixture(scope="session")
def asked() -> Callable[..., Request]:
    """`asked(llm, ids, dials, **params)`: a request at logit offsets, not submitted; greedy and 12 tokens long."""

    def ask(llm: LLM, ids: list[int], dials: float | Dials = 0.0, **params: Any) -> Request:
        at = dials if isinstance(dials, Dials) else Dials(dials)
        given = SamplingParams(**{"max_tokens": 12, "ignore_eos": True, "seed": 1, **params})
        limit = min(given.max_tokens, llm.context - len(ids))
        return Request(None, ids, given, given.seed or 0, at, limit, first_key("test"))

    return ask


@pytest.fixture(scope="session")
def finish() -> Callable[..., list[RequestOutput]]:
    """`finish(llm, requests)`: step until all are done."""

    def run(llm: LLM, requests: list[Request], most: int = 10_000) -> list[RequestOutput]:
        for _ in range(most):
            if all(request.done for request in requests):
                return [request.output() for request in requests]
            llm.engine.step()
        raise AssertionError("the engine does not come to an end")

    return run


@pytest.fixture(scope="session")
def agrees() -> Callable[..., None]:
    """`agrees(llm, request, output)`: greedy tokens, depths and costs are those of one dense pass of `Routed` over the
    whole text; with `sampled`, depths and costs alone."""

    def check(llm: LLM, request: Request, output: RequestOutput, sampled: bool = False) -> None:
        model, start = llm.model, len(request.token_ids)
        for sample in output.samples:
            ids = torch.tensor([request.token_ids + sample.token_ids])
            read = torch.arange(ids.shape[1])[None] < start
            with model.converted.using(offset=request.dials.written, read=read, read_offset=None):
                with torch.no_grad():
                    logits = model(ids, use_cache=False).logits[0]
                depths, costs = model.route.layers_used[0].tolist(), model.route.token_cost()[0].tolist()
                assert output.prompt_depths == depths[:start]
                assert sample.depths == depths[start - 1 : -1]
                assert output.prompt_cost == pytest.approx(math.fsum(costs[:start]) / start)
                assert [piece.cost for piece in sample.pieces] == pytest.approx(costs[start - 1 : -1])
                if not sampled:
                    assert sample.token_ids == logits[start - 1 : -1].argmax(-1).tolist()

    return check
