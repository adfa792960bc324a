"""The dial of generated text, and its prompts, taken from records as a user would write them."""

import dataclasses
from typing import Any

import pytest

from depthdial.core.dial import Curve
from depthdial.engine.budgets import Budgets
from depthdial.engine.llm import LLM
from depthdial.engine.sampling import SamplingParams
from depthdial.models.checkpoint import attach
from depthdial.train.data import Record
from depthdial.train.generated import TOKENS, _prompts, generated_curve
from depthdial.train.messages import Message, turn

SYSTEM: Message = {"role": "system", "content": "be brief"}


def test_the_curve_is_what_written_tokens_cost_after_prompts_that_were_read(tiny_model, tiny_plugin, tiny_tokenizer):
    model: Any = attach(tiny_model(), tiny_plugin)
    records = [Record("a", text="the quick fox jumps over the lazy dog"), Record("b", text="dogs and foxes")]
    text = Curve((-2.0, 0.0, 2.0), (0.7, 0.8, 0.95), (0.5, 0.2, 0.05))
    curve = generated_curve(model, tiny_tokenizer, records, 2 * TOKENS)
    assert curve.offsets == text.offsets and model.converted.plugin.curves["text"] == text
    model.converted.plugin = dataclasses.replace(model.converted.plugin, curves={"text": text})
    llm = LLM.of(model, tiny_tokenizer, budget=1.0)
    llm.budgets = Budgets(model, 1.0, None, hold=False)
    prompts = _prompts(llm, records, 2)
    for cost, budget in zip(curve.costs, text.costs, strict=True):
        outputs = llm.generate(prompts, SamplingParams(TOKENS, seed=0, budget=budget))
        assert all(out.prompt_cost == 1.0 for out in outputs)
        costs = [piece.cost for out in outputs for piece in out.samples[0].pieces[1:]]
        assert cost == pytest.approx(sum(costs) / len(costs), rel=1e-5)
    assert curve.floor < 0.9 and all(kl > 0.01 for kl in curve.kls)


def test_a_prompt_is_the_first_question_after_what_stands_before_it(tiny_model, tiny_tokenizer, adaptive):
    llm = LLM.of(adaptive(tiny_model()), tiny_tokenizer)
    records = [
        Record("a", (SYSTEM, *turn("the fox", "x"), *turn("and", "y"))),
        Record("b", tuple(turn("x", "no question")[1:])),
        Record("c", text="the quick fox"),
        Record("d", tuple(turn("the fox <|im_end|>", "x"))),
    ]
    request = [[SYSTEM, *turn("the fox", "")[:1]], turn("the fox <|im_end|>", "")[:1]]
    one, two, three = _prompts(llm, records, 4)
    assert [one, three] == [llm.chat_tokens(messages) for messages in request]
    assert two == tiny_tokenizer("the quick fox")["input_ids"]
    with pytest.raises(ValueError, match="short enough"):
        _prompts(llm, records[1:2], 4)
