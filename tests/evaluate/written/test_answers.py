"""What is written is the engine's own text, and what the base says of it is what `Routed` says at full depth."""

from __future__ import annotations

import math

import pytest
import torch

from depthdial.core.dial import Curve
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.evaluate.store import Store
from depthdial.evaluate.written.answers import PromptRequest, Writer
from depthdial.models import attach
from depthdial.models.checkpoint import Plugin
from depthdial.models.converted import converted_of
from depthdial.models.fingerprint import fingerprint

PROMPTS = [[5, 9, 40, 41], [200, 7, 8], [30, 31, 32, 33, 34], [12, 60, 61], [99, 98, 97]]


@pytest.fixture
def llm(tiny_model, tiny_tokenizer, tiny_plugin):
    model = attach(tiny_model("llama"), tiny_plugin)
    return LLM.of(model, tiny_tokenizer, max_batch=2, prefix_cache=False)


def asked(budget):
    return [PromptRequest(ids, budget, 1.0) for ids in PROMPTS]


def test_answers_and_what_the_base_says_of_them(llm):
    answers, seconds = (writer := Writer(llm, llm, 10)).write(asked(0.75), Store())
    scored = writer.score(PROMPTS, answers, Store())
    expected = llm.generate(PROMPTS, SamplingParams(10, temperature=0.0, budget=0.75, prompt_budget=1.0))
    assert [a.token_ids for a in answers] == [output.token_ids for output in expected] and seconds > 0
    assert all(math.isnan(a.logprob) for a in answers)
    converted_of(llm.model).set(offset=math.inf)
    for ids, answer, output in zip(PROMPTS, scored, expected, strict=True):
        text = torch.tensor([[*ids, *answer.token_ids]])
        with torch.no_grad():
            logits = llm.model(text, use_cache=False).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        result = logits.gather(1, text[0, len(ids) :, None]).sum()
        assert answer.logprob == pytest.approx(float(result), abs=1e-3)
        assert answer.passes == max(1, len(answer.token_ids) - 1) and answer.ended == (output.finish_reason == "stop")
        assert answer.prompt_tokens == len(ids) and answer.text == output.text
        costs = [piece.cost for piece in output.samples[0].pieces][1:]
        assert answer.cost == pytest.approx(sum(costs)) and answer.prompt_cost == pytest.approx(
            output.prompt_cost * len(ids)
        )
    assert sum(a.cost for a in answers) < 0.99 * sum(a.passes for a in answers), "something was skipped"


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3"])
def test_any_family_is_judged_by_its_own_base(tiny_model, tiny_tokenizer, adaptive, family):
    model = adaptive(tiny_model(family), weights="hard")
    curve = Curve((-2.0, 0.0, 2.0), (0.7, 0.8, 0.95), (0.5, 0.2, 0.05))
    converted, curves = converted_of(model), {"text": curve, "generated": curve}
    converted.plugin = Plugin("tiny", converted.method, fingerprint(model), curves)
    llm = LLM.of(model, tiny_tokenizer, max_batch=2, prefix_cache=False)
    writer = Writer(llm, llm, 24)
    answers, _ = writer.write(asked(0.75), Store())
    assert sum(a.cost for a in answers) < 0.99 * sum(a.passes for a in answers)
    converted_of(model).set(offset=math.inf)
    for ids, answer in zip(PROMPTS, writer.score(PROMPTS, answers, Store()), strict=True):
        text = torch.tensor([[*ids, *answer.token_ids]])
        with torch.no_grad():
            logits = model(text, use_cache=False).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        assert answer.logprob == pytest.approx(float(logits.gather(1, text[0, len(ids) :, None]).sum()), abs=2e-3)


def test_the_base_costs_one_and_is_sure_of_its_own_choice(llm):
    writer = Writer(llm, llm, 10)
    base, _ = writer.write(asked(1.0), Store())
    other, _ = writer.write(asked(0.75), Store())
    assert all(a.cost == a.passes and a.prompt_cost == a.prompt_tokens for a in base)
    assert [a.token_ids for a in base] != [a.token_ids for a in other]
    likely, other = writer.score(PROMPTS, base, Store()), writer.score(PROMPTS, other, Store())
    mean = [sum(a.logprob for a in result) / sum(len(a.token_ids) for a in result) for result in (likely, other)]
    assert mean[0] > mean[1]


def test_a_run_that_was_ended_goes_on_where_it_was(llm, tmp_path):
    class Ended(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise Ended

    whole, _ = Writer(llm, llm, 6).write(asked(0.8), Store())
    with pytest.raises(Ended):
        Writer(llm, llm, 6, stop).write(asked(0.8), Store(tmp_path / "a.jsonl"))
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2
    calls = []
    again, _ = Writer(llm, llm, 6, lambda done, total: calls.append((done, total))).write(
        asked(0.8), Store(tmp_path / "a.jsonl")
    )
    assert again == whole or [a.token_ids for a in again] == [a.token_ids for a in whole]
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]
