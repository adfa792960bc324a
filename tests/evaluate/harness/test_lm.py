"""Our engine as the harness's model: against its own `hf` on the same weights, and against `Routed` at a budget."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from depthdial.core.dial import Dials
from depthdial.evaluate.harness.lm import DepthLM
from depthdial.evaluate.harness.setting import Setting, TaskDials
from depthdial.evaluate.store import Store
from depthdial.models.converted import converted_of

CHOICES = (" jumps over", " the lazy dog", " fox", " jumps over the lazy dog and the other foxes")


def at(scored: float, generated: float, read: float | None = None) -> Setting:
    """By offsets; read: None is the form of the papers."""
    return Setting.alike(TaskDials(Dials(scored, read), Dials(generated, read), Dials(scored)))


def instance(kind: Any, doc: int, *args: Any) -> Instance:
    return Instance(kind, {}, args, 0, ("task", doc, 1))


def scored() -> list[Instance]:
    contexts = ["the quick brown", "The lazy dog and the other ", "", "x" * 2000, "the quick brown fox"]
    return [instance("loglikelihood", i, c, choice) for i, c in enumerate(contexts) for choice in CHOICES]


def generated() -> list[Instance]:
    until = {"until": ["\n\n", "fox"], "max_gen_toks": 12, "do_sample": False}
    other = {"until": ["zzz"], "max_gen_toks": 20}
    contexts = ["the quick brown", "dog", "the lazy dog and the other foxes jump " * 30]
    return [instance("generate_until", i, c, g) for i, c in enumerate(contexts) for g in (until, other)]


def rolling() -> list[Instance]:
    texts = ["the quick brown fox jumps over the lazy dog", "foxes and dogs " * 150]
    return [instance("loglikelihood_rolling", i, text) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def hf(tiny_model, tiny_tokenizer):
    model = tiny_model("llama", max_position_embeddings=1024)
    return HFLM(pretrained=model, tokenizer=tiny_tokenizer, backend="causal", batch_size=2, device="cpu")  # pyright: ignore[reportCallIssue]


@pytest.fixture
def dense(tiny_llm):
    return DepthLM(tiny_llm(plugged=False))


def test_likelihoods_are_those_of_the_harness_own_model(dense, hf):
    ours, theirs = dense.loglikelihood(scored()), hf.loglikelihood(scored(), disable_tqdm=True)
    assert [x for x, _ in ours] == pytest.approx([x for x, _ in theirs], abs=2e-3)
    assert [x for _, x in ours] == [x for _, x in theirs]


def test_rolling_likelihoods_are_those_of_the_harness_own_model(dense, hf):
    assert dense.loglikelihood_rolling(rolling()) == pytest.approx(
        hf.loglikelihood_rolling(rolling(), disable_tqdm=True), rel=1e-4
    )


def test_generated_texts_are_those_of_the_harness_own_model(dense, hf):
    ours, theirs = dense.generate_until(generated()), hf.generate_until(generated(), disable_tqdm=True)
    assert ours == theirs and any(ours)


def test_a_budget_is_scored_by_its_own_decisions(tiny_llm):
    llm = tiny_llm()
    lm = DepthLM(llm)
    tally = lm.begin(at(0.3, 9.0), Store())
    context, continuation = "the quick brown fox", " jumps over the lazy dog"
    ((logprob, greedy),) = lm.loglikelihood([instance("loglikelihood", 0, context, continuation)])
    model, first = llm.model, len(lm.tok_encode(context))
    tokens = torch.tensor([lm.tok_encode(context + continuation)])
    converted_of(model).set(offset=0.3)
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits[0, first - 1 : -1]
    result = logits.log_softmax(-1).gather(1, tokens[0, first:, None])
    assert logprob == pytest.approx(float(result.sum()), abs=1e-4)
    assert greedy == bool((logits.argmax(-1) == tokens[0, first:]).all())
    layers, costs = model.route.layers_used[0, :-1], model.route.token_cost()[0, :-1]
    assert (tally.prompt.tokens, tally.answer.tokens) == (first, len(layers) - first)
    assert (tally.prompt.layers, tally.answer.layers) == (int(layers[:first].sum()), int(layers[first:].sum()))
    assert tally.prompt.cost + tally.answer.cost == pytest.approx(float(costs.sum()))
    assert layers.min() < llm.layers, "something was skipped"


def test_a_context_is_read_and_what_follows_is_written(tiny_llm):
    llm = tiny_llm()
    lm = DepthLM(llm)
    tally = lm.begin(at(-0.3, -0.3, read=math.inf), Store())
    context, continuations = "the quick brown fox", (" jumps over the lazy dog", " and", " jumps over foxes")
    result = lm.loglikelihood([instance("loglikelihood", 0, context, each) for each in continuations])
    first, model = len(lm.tok_encode(context)), llm.model
    ran = 0.0
    for (logprob, _), continuation in zip(result, continuations, strict=True):
        tokens = torch.tensor([lm.tok_encode(context + continuation)])
        offsets = torch.full((1, tokens.shape[1]), -0.3)
        offsets[:, :first] = math.inf
        converted_of(model).set(offset=offsets)
        with torch.no_grad():
            logits = model(tokens, use_cache=False).logits[0, first - 1 : -1]
        assert logprob == pytest.approx(
            float(logits.log_softmax(-1).gather(1, tokens[0, first:, None]).sum()), abs=1e-4
        )
        ran += float(model.route.token_cost()[0, first:-1].sum())
    assert tally.prompt == (first, 6 * first, first), "read once, by the untouched base"
    assert tally.answer.cost == pytest.approx(ran) and tally.answer.cost < 0.99 * tally.answer.tokens
    assert tally.dense == 3 and tally.tokens == sum(len(lm.tok_encode(context + c)) - first for c in continuations)


def test_texts_take_turns_between_two_dials(tiny_llm):
    requests = [
        instance("loglikelihood", i, "the quick", f" {word}") for i, word in enumerate(("fox", "dog", "foxes", "over"))
    ]
    alone = []
    for offset in (0.5, -0.5):
        lm = DepthLM(tiny_llm())
        lm.begin(at(offset, offset), Store())
        alone.append(lm.loglikelihood(requests))
    lm = DepthLM(tiny_llm())
    high, low = (TaskDials(*[Dials(offset)] * 3) for offset in (0.5, -0.5))
    lm.begin(Setting(high, low, 0.5), Store())
    assert lm.loglikelihood(requests) == [alone[i % 2 == 0][i] for i in range(4)] and alone[0] != alone[1]


def test_texts_are_generated_at_the_dial_of_generated_tokens(tiny_llm):
    llm = tiny_llm()
    lm = DepthLM(llm)
    tally = lm.begin(at(math.inf, -0.2), Store())
    request = instance("generate_until", 0, "the quick brown", {"until": [], "max_gen_toks": 9})
    (text,) = lm.generate_until([request])
    model = llm.model
    converted_of(model).set(offset=-0.2)
    ids = lm.tok_encode("the quick brown")
    count = len(ids)
    with torch.no_grad():
        for _ in range(9):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in llm.ends:
                break
        model(torch.tensor([ids]), use_cache=False)
    assert text == llm.tokenizer.decode(ids[count:], skip_special_tokens=True)
    layers = model.route.layers_used[0, :-1]
    assert tally.prompt.layers == int(layers[:count].sum()) and tally.answer.layers == int(layers[count:].sum())
    assert tally.answer.tokens == len(ids) - count - 1 and (tally.tokens, tally.dense) == (len(ids) - count, 0)


def test_of_an_answer_to_a_prompt_that_is_read_in_full_the_first_token_is_the_bases(tiny_llm):
    lm = DepthLM(tiny_llm())
    tally = lm.begin(at(-0.2, -0.2, read=math.inf), Store())
    request = instance("generate_until", 0, "the quick brown", {"until": [], "max_gen_toks": 9})
    (text,) = lm.generate_until([request])
    assert tally.prompt.cost == tally.prompt.tokens and tally.dense == 1 < tally.tokens
    assert tally.answer.cost < 0.99 * tally.answer.tokens
    lm.begin(Setting.alike(TaskDials()), Store())
    (base,) = lm.generate_until([request])
    assert base[:1] == text[:1]


@pytest.mark.parametrize(
    "ask", [("loglikelihood", scored), ("loglikelihood_rolling", rolling), ("generate_until", generated)]
)
def test_interrupted_anywhere_it_gives_the_same(tiny_llm, tmp_path, ask):
    name, requests = ask[0], ask[1]()
    whole = DepthLM(tiny_llm(max_batch=2))
    wanted_tally = whole.begin(at(0.3, 0.3), Store())
    expected = getattr(whole, name)(requests)

    class Ended(Exception):
        pass

    for after in range(3):
        lm = DepthLM(tiny_llm(max_batch=2))
        file = tmp_path / f"{name}-{after}.jsonl"

        def stop(done: int, total: int, after: int = after) -> None:
            if done == after + 1 < total:
                raise Ended

        lm.report = stop
        lm.begin(at(0.3, 0.3), Store(file))
        try:
            getattr(lm, name)(requests)
        except Ended:
            lm = DepthLM(tiny_llm(max_batch=2))  # a new process knows nothing but the file
            lm.report = lambda done, total: None
            tally = lm.begin(at(0.3, 0.3), Store(file))
            assert getattr(lm, name)(requests) == expected
            assert (tally.prompt, tally.answer) == (wanted_tally.prompt, wanted_tally.answer)


def test_what_is_known_is_not_run_again(tiny_llm, tmp_path):
    llm = tiny_llm()
    lm = DepthLM(llm)
    for _ in range(2):
        lm.begin(at(0.3, 0.3), Store(tmp_path / "a.jsonl"))
        lm.loglikelihood(scored())
        lm.generate_until(generated())
        ran = llm.stats.tokens
    lm.begin(at(0.4, 0.3), Store(tmp_path / "a.jsonl"))
    lm.generate_until(generated())
    assert llm.stats.tokens == ran
    lm.loglikelihood(scored())
    assert llm.stats.tokens > ran, "another dial is another question"


@pytest.mark.parametrize(
    ("told", "says"),
    [({"num_beams": 4}, "num_beams"), ({"max_gen_toks": 1024}, "asks for 1024 tokens")],
)
def test_generation_that_the_engine_does_not_know(dense, told, says):
    with pytest.raises(ValueError, match=says):
        dense.generate_until([instance("generate_until", 0, "the", {"until": ["x"], **told})])


def test_drawn_texts_differ_within_a_task_and_not_between_runs(tiny_llm):
    facts = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5}
    request = [instance("generate_until", i, "the quick", facts) for i in range(4)]
    first, second = (DepthLM(tiny_llm()).generate_until(request) for _ in range(2))
    assert first == second and len(set(first)) > 1
