"""Rows against the passes they come from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from depthdial.core.dial import Dials
from depthdial.engine.llm import LLM
from depthdial.engine.sampling import SamplingParams
from depthdial.maps.base_reading import BaseReading
from depthdial.maps.record import Recorder
from depthdial.maps.texts import MapText, conversation_text
from depthdial.methods import Dense
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of
from depthdial.models.head import Shaping

WORDS = ("the quick brown fox", "the lazy dog jumps over the other lazy dog", "fox", "12 dogs")


def rows_of(recorder: Recorder, texts: list[MapText]) -> list[Any]:
    """The rows, with every column taken as recorded."""
    return list(recorder.rows(texts))


@pytest.fixture(scope="module")
def texts(tiny_tokenizer):
    ids = [tiny_tokenizer.encode(words, add_special_tokens=False) for words in WORDS]
    return [MapText(tokens, [t > 1 for t in range(len(tokens))], str(i), "t") for i, tokens in enumerate(ids)]


def test_rows_are_those_of_the_reference(tiny_converted, tiny_tokenizer, texts):
    recorder = Recorder(tiny_converted, tiny_tokenizer, 0.3, scores=True, alternatives=2)
    converted = converted_of(tiny_converted)
    route = converted.route
    for text, row in zip(texts, rows_of(recorder, texts), strict=True):
        ids = torch.tensor([list(text.ids)])
        with torch.no_grad():
            converted.set(offset=0.3)
            tiny_converted(ids, use_cache=False)
            cost = route.token_cost()[0].numpy()
            ran, scores = route.keep()[:, 0].T.numpy(), route.last.trace.stack("score", "attn").T
            converted.set(offset=math.inf)
            logits = tiny_converted(ids, use_cache=False).logits[0].log_softmax(-1)
            converted.set(offset=0.0)
        assert np.array_equal(row.ran, ran) and np.array_equal(row.layers_used, ran.sum(1))
        assert row.layers_used.min() >= 2 and np.allclose(row.cost, cost) and row.cost.min() < 1
        assert torch.allclose(torch.from_numpy(row.scores).float(), scores, atol=2e-3)
        entropy = -(logits.exp() * logits).sum(-1)
        assert np.allclose(row.entropy, entropy, atol=1e-4)
        assert np.isnan(row.surprisal[0])
        assert np.allclose(row.surprisal[1:], -logits[:-1].gather(-1, ids[0, 1:, None])[:, 0], atol=1e-4)
        assert row.alternatives[0] == []
        top = logits[:-1].exp().topk(2).values
        assert np.allclose([[p for _, p in choices] for choices in row.alternatives[1:]], top, atol=1e-4)


def test_depths_vary_and_the_dial_moves_them(tiny_converted, tiny_tokenizer, texts):
    shallow, deep = (
        np.concatenate([row.layers_used for row in rows_of(Recorder(tiny_converted, tiny_tokenizer, offset), texts)])
        for offset in (-1.0, 1.0)
    )
    assert shallow.mean() < deep.mean() < 6 and shallow.std() > 0


def test_a_text_does_not_depend_on_its_batch(tiny_converted, tiny_tokenizer, texts):
    together = rows_of(Recorder(tiny_converted, tiny_tokenizer, 0.0), texts)
    alone = rows_of(Recorder(tiny_converted, tiny_tokenizer, 0.0, batch_tokens=1), texts)
    for a, b in zip(together, alone, strict=True):
        assert a.id == b.id and np.array_equal(a.ran, b.ran)
        assert np.allclose(a.entropy, b.entropy, atol=1e-5)


def test_the_base_alone_runs_every_layer(tiny_converted, tiny_tokenizer, texts):
    rows = rows_of(Recorder(tiny_converted, tiny_tokenizer, math.inf, scores=True), texts)
    assert all((row.layers_used == 6).all() and row.scores is None and row.entropy is not None for row in rows)


def test_without_the_base_there_is_no_entropy(tiny_converted, tiny_tokenizer, texts):
    full = rows_of(Recorder(tiny_converted, tiny_tokenizer, 0.0), texts)
    rows = rows_of(Recorder(tiny_converted, tiny_tokenizer, 0.0, base=False), texts)
    assert all(row.entropy is None and row.surprisal is None for row in rows)
    assert all(np.array_equal(a.ran, b.ran) for a, b in zip(full, rows, strict=True))


def test_a_dense_model_can_be_mapped(tiny_model, tiny_tokenizer, texts):
    rows = Recorder(convert(tiny_model("llama"), Dense()), tiny_tokenizer).rows(texts)
    assert all((row.layers_used == 6).all() for row in rows)


def test_the_model_is_left_as_it_was(tiny_converted, tiny_tokenizer, texts):
    tiny_converted.train()
    converted_of(tiny_converted).set(offset=0.125)
    try:
        rows_of(Recorder(tiny_converted, tiny_tokenizer, 1.0), texts)
        assert tiny_converted.training and converted_of(tiny_converted).settings.offset == 0.125
    finally:
        tiny_converted.eval()
        converted_of(tiny_converted).set(offset=0.0)


def test_conversations_mark_their_answers(tiny_tokenizer):
    talk = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "brown dogs"}]
    text = conversation_text(tiny_tokenizer, talk, "chat")
    answer = tiny_tokenizer.decode([i for i, mark in zip(text.ids, text.generated, strict=True) if mark])
    assert answer == "brown dogs<|im_end|>" and text.forced


def test_each_answer_is_written_after_all_before_it_was_read(tiny_converted, tiny_tokenizer):
    """Of a text with two answers each is what it would be as the last one; what is read is read in full."""
    ids = list(range(4, 44))
    marks = [8 <= t < 16 or 20 <= t < 32 for t in range(40)]
    dials = Dials(-0.5, math.inf)
    (row,) = Recorder(tiny_converted, tiny_tokenizer, dials, prompt_budget=1.0, scores=True).rows(
        [MapText(ids, marks, "a")]
    )
    converted = converted_of(tiny_converted)
    route = converted.route
    assert row.ran is not None and row.cost is not None and row.scores is not None
    for start, end in ((8, 16), (20, 32)):
        offsets = torch.full((1, end), math.inf)
        offsets[:, start:] = -0.5
        converted.set(offset=offsets)
        with torch.no_grad():
            tiny_converted(torch.tensor([ids[:end]]), use_cache=False)
        assert np.array_equal(row.ran[start:end], route.keep()[:, 0, start:].T)
        assert np.allclose(row.cost[start:end], route.token_cost()[0, start:])
        scores = route.last.trace.stack("score", "attn")[:, start:].T
        assert torch.allclose(torch.from_numpy(row.scores[start:end]).float(), scores, atol=2e-3)
        assert row.cost[start:end].mean() < 0.97
    converted.set(offset=0.0)
    read = ~np.array(marks)
    assert row.ran[read].all() and (row.cost[read] == 1).all() and not row.ran[~read].all()
    whole = Recorder(tiny_converted, tiny_tokenizer, dials, prompt_budget=1.0)
    assert whole.facts.prompt_offset == math.inf and whole.facts.offset == -0.5
    (again,) = whole.rows([MapText(ids, marks, "a")])
    assert again.entropy is not None and row.entropy is not None and np.allclose(again.entropy, row.entropy, atol=1e-5)


def test_depths_are_those_that_an_engine_tells(tiny_converted, tiny_tokenizer):
    llm = LLM.of(tiny_converted, tiny_tokenizer)
    (output,) = llm.generate("the quick brown", SamplingParams(6, ignore_eos=True, prompt_budget="same"))
    ids = [*output.prompt_token_ids, *output.token_ids]
    text = MapText(ids, [place >= len(output.prompt_token_ids) for place in range(len(ids))], "one")
    (row,) = Recorder(tiny_converted, tiny_tokenizer, llm.dials(None, "same")).rows([text])
    assert row.layers_used[:-1].tolist() == [*output.prompt_depths, *output.depths[1:]]


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_reading_of_a_head(softcap):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    hidden, target = torch.randn(70, 8) * 3, torch.randint(50, (70,))
    read = BaseReading(head, Shaping(2.0, softcap), 3)(hidden, target)
    logits = head(hidden) * 2
    logits = logits if softcap is None else (logits / softcap).tanh() * softcap
    p = logits.softmax(-1)
    assert torch.allclose(read.entropy, torch.distributions.Categorical(p).entropy(), atol=1e-5)
    assert torch.allclose(read.surprisal, -p.gather(-1, target[:, None]).log()[:, 0], atol=1e-5)
    assert torch.allclose(read.probabilities, p.topk(3).values, atol=1e-6)


def test_what_does_not_fit_is_refused(tiny_converted, tiny_tokenizer, tiny_model):
    with pytest.raises(ValueError, match="not converted"):
        Recorder(tiny_model("llama"), tiny_tokenizer)
    with pytest.raises(ValueError, match="alternatives are the base's"):
        Recorder(tiny_converted, tiny_tokenizer, base=False, alternatives=2)
    with pytest.raises(ValueError, match="has no tokens"):
        MapText([], [], "x")
    with pytest.raises(ValueError, match="2 tokens but 1 marks"):
        MapText([1, 2], [True], "x")
