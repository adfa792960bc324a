"""Penalties, bias and least lengths: equal to definitions written slowly, in texts with and without drafts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from depthdial.engine import step
from depthdial.engine.adjust import adjusted
from depthdial.engine.sampling import SamplingParams, choose, draw_key

CASES: list[dict[str, Any]] = [
    {"frequency_penalty": 1.5},
    {"presence_penalty": 2.0},
    {"repetition_penalty": 1.7},
    {"logit_bias": {7: 100, 9: 99.5}, "frequency_penalty": 2.0},
    {"temperature": 1.3, "min_p": 0.7},
    {"temperature": 0.8, "top_k": 40, "presence_penalty": -2.0, "repetition_penalty": 0.8, "logit_bias": {3: -100}},
]


def slowly(
    logits: list[float], p: SamplingParams, prompt: list[int], written: list[int], ends: set[int]
) -> list[float]:
    """One entry of the vocabulary after the other."""
    scores = []
    for token, value in enumerate(logits):
        if token in ends and len(written) < p.min_tokens:
            value = -math.inf
        value += (p.logit_bias or {}).get(token, 0.0)
        if token in prompt or token in written:
            value = value / p.repetition_penalty if value > 0 else value * p.repetition_penalty
        value -= p.frequency_penalty * written.count(token)
        value -= p.presence_penalty if token in written else 0.0
        scores.append(value)
    if p.min_p and p.temperature:
        weights = [math.exp((score - max(scores)) / p.temperature) for score in scores]
        return [s if w >= p.min_p * (1 - 1e-6) else -math.inf for s, w in zip(scores, weights, strict=True)]
    return scores


TEXT = st.lists(st.integers(0, 29), max_size=20)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32), TEXT, TEXT, st.sampled_from((0.0, 0.7, -2.0)), st.sampled_from((0.0, 1.1)),
    st.sampled_from((1.0, 1.3, 0.6)), st.sampled_from((None, {3: 5.0, 8: -100.0})), st.integers(0, 12),
    st.sampled_from((0.0, 0.9, 1.5)), st.sampled_from((0.0, 0.05, 0.5, 1.0)),
)  # fmt: skip
def test_equal_to_the_slow_definition(
    seed, prompt, written, frequency, presence, repetition, bias, least, temperature, min_p
):
    logits = torch.randn(30, generator=torch.Generator().manual_seed(seed)) * 3
    before = logits.clone()
    p = SamplingParams(
        frequency_penalty=frequency, presence_penalty=presence, repetition_penalty=repetition, logit_bias=bias,
        min_tokens=least, temperature=temperature, min_p=min_p,
    )  # fmt: skip
    want = slowly(logits.tolist(), p, prompt, written, {0, 5})
    torch.testing.assert_close(adjusted(logits, p, prompt, written, {0, 5}), torch.tensor(want), atol=1e-4, rtol=1e-5)
    assert torch.equal(logits, before), "log-probabilities are told of the model's own logits"


def test_repetition_and_least_probability_are_those_of_hugging_face():
    logits, text = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 2, [1, 5, 5, 9]
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([text]), logits[None].clone())  # pyright: ignore
    assert torch.equal(adjusted(logits, SamplingParams(repetition_penalty=1.3), text[:2], text[2:], ()), theirs[0])
    kept = MinPLogitsWarper(0.1)(torch.tensor([text]), logits[None] / 0.7)[0].isfinite()  # pyright: ignore
    ours = adjusted(logits, SamplingParams(temperature=0.7, min_p=0.1), [], text, ()).isfinite()
    assert torch.equal(ours, kept) and 1 < kept.sum() < 40


def test_nothing_is_drawn_below_the_least_probability():
    p = SamplingParams(temperature=2.0, min_p=0.3)
    logits = torch.tensor([0.0, 3.0, 2.5, -1.0])
    scores = adjusted(logits, p, [], [], ())
    assert {choose(scores[None], [p], [draw_key(0, 0, i)]).item() for i in range(200)} == {1, 2}


@pytest.mark.parametrize("fields", CASES)
def test_texts_follow_the_definition_step_by_step(made, asked, finish, fields, monkeypatch):
    """Each token is what the definition chooses from the logits that the model gave there."""
    llm, prompt, seen = made(), [5, 6, 7, 5, 6], []
    monkeypatch.setattr(step, "adjusted", lambda logits, *rest: seen.append(logits.tolist()) or adjusted(logits, *rest))
    request = submitted(llm, asked(llm, prompt, **fields))
    (out,) = finish(llm, [request])
    own = {name: fields[name] for name in ("temperature", "top_k") if name in fields}
    (plain,) = finish(llm, [submitted(llm, asked(llm, prompt, **own))])
    assert out.token_ids != plain.token_ids, "it changes this text"
    assert len(seen) == len(out.token_ids) == 12
    for i, token in enumerate(out.token_ids):
        scores = torch.tensor(slowly(seen[i], request.params, prompt, out.token_ids[:i], set()))
        assert choose(scores[None], [request.params], [request.rows[0].draw(len(prompt) + i)]).item() == token


@pytest.mark.parametrize("fields", CASES)
def test_lossless_text_is_the_bases_with_the_same_adjustments(made, asked, finish, fields):
    llm, prompt, length = made(), [5, 6, 7, 5, 6, 7, 5], 40
    request = asked(llm, prompt, math.inf, lossless=True, max_tokens=length, **fields)
    request.draft_offset, request.draft_cost = 0.0, 0.0
    (out,) = finish(llm, [submitted(llm, request)])
    (base,) = finish(llm, [submitted(llm, asked(llm, prompt, math.inf, max_tokens=length, **fields))])
    assert out.token_ids == base.token_ids
    assert sum(llm.stats.speculation.drafted.values()) > 0, "something was drafted"


def test_no_end_before_the_least_length(made, asked, finish):
    llm = made()
    (free,) = finish(llm, [submitted(llm, asked(llm, [5, 6, 7], max_tokens=20))])
    llm.ends = frozenset({free.token_ids[3]})
    (short,) = finish(llm, [submitted(llm, asked(llm, [5, 6, 7], max_tokens=20, ignore_eos=False))])
    (long,) = finish(llm, [submitted(llm, asked(llm, [5, 6, 7], max_tokens=20, ignore_eos=False, min_tokens=9))])
    assert len(short.token_ids) <= 4 and len(long.token_ids) >= 9
    assert not llm.ends.intersection(long.token_ids[:9])


def test_a_bias_of_no_token_is_refused(made):
    with pytest.raises(ValueError, match="logit_bias has token 999999"):
        made().generate([[5]], SamplingParams(logit_bias={999999: 1.0}))


def submitted(llm: Any, request: Any) -> Any:
    llm.engine.submit(request, llm.tokenizer)
    return request
