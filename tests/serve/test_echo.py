"""Prompts given back with log-probabilities: as the engine reads them, and as lm-evaluation-harness asks for them."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

from depthdial.engine.llm import LLM, SamplingParams
from depthdial.evaluate.harness.lm import DepthLM
from depthdial.evaluate.harness.setting import Setting, TaskDials
from depthdial.evaluate.store import Store

PROMPT = "the quick brown 漢 fox"


@pytest.fixture(scope="module")
def llm(tiny_folder, tiny_plugin):
    return LLM(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu")


class Client(LocalCompletionsAPI):
    """The harness's own, with fields of ours in each request."""

    fields: dict[str, Any]

    def _create_payload(self, *args: Any, **kwargs: Any) -> dict:
        return super()._create_payload(*args, **kwargs) | self.fields  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("fields", [{}, {"budget": 1.0}, {"budget": 0.9, "prompt_budget": "same"}])
def test_the_harness_finds_what_evaluate_finds(served, tiny_folder, llm, fields):
    pytest.importorskip("tenacity")  # lm-eval's client is not there without
    contexts = ["the quick brown", "The lazy dog and the other ", "the quick brown fox"]
    pairs = [(context, choice) for context in contexts for choice in (" jumps over", " the lazy dog", " fox")]
    asked = [Instance("loglikelihood", {}, pair, 0, ("task", i, 1)) for i, pair in enumerate(pairs)]
    client: Any = Client  # its decorator hides what it takes
    theirs = client(
        base_url=f"{served.url}/v1/completions", model=served.name, tokenizer=str(tiny_folder),
        tokenizer_backend="huggingface", max_length=127,
    )  # fmt: skip
    theirs.fields = fields
    ours: Any = DepthLM(llm)
    budget, reading = fields.get("budget", 1.0), fields.get("prompt_budget")  # left out: prompts are read in full
    ours.begin(Setting.alike(TaskDials.of(llm, budget, reading)), Store())
    dense: Any = DepthLM(llm)
    dense.begin(Setting.alike(TaskDials.of(llm, 1.0, None)), Store())
    got, want, base = (lm.loglikelihood(asked, disable_tqdm=True) for lm in (theirs, ours, dense))
    assert [pair[0] for pair in got] == pytest.approx([pair[0] for pair in want], abs=1e-3)
    assert [pair[1] for pair in got] == [pair[1] for pair in want]
    skips = max(abs(one[0] - other[0]) for one, other in zip(want, base, strict=True)) > 0.01
    assert skips == ("prompt_budget" in fields), "layers are skipped where prompts are read at a budget"


@pytest.mark.parametrize("length", [0, 5])
def test_the_prompt_comes_first_streamed_or_not(client, served, llm, length):
    fields: dict[str, Any] = {"model": served.name, "prompt": PROMPT, "max_tokens": length, "echo": True, "logprobs": 2}
    fields |= {"temperature": 0, "extra_body": {"ignore_eos": True}}
    (out,) = llm.generate(PROMPT, SamplingParams(max_tokens=max(1, length), ignore_eos=True, prompt_logprobs=2))
    answer = client.completions.create(**fields)
    (choice,), count = answer.choices, len(out.prompt_token_ids)
    logprobs = choice.logprobs
    assert choice.text == PROMPT + (out.text if length else "") and choice.finish_reason == "length"
    assert answer.usage.prompt_tokens == count and answer.usage.completion_tokens == length
    assert len(logprobs.tokens) == len(logprobs.text_offset) == count + length
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    own = [likely[token] for likely, token in zip(out.prompt_logprobs, out.prompt_token_ids[1:], strict=True)]
    assert logprobs.token_logprobs[1:count] == pytest.approx(own, abs=1e-4)
    assert logprobs.text_offset[count:] == sorted(logprobs.text_offset[count:])
    assert all(offset >= len(PROMPT) for offset in logprobs.text_offset[count:])
    chunks = [chunk.choices[0] for chunk in client.completions.create(**fields, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == choice.text and chunks[0].text == PROMPT
    streamed = [value for chunk in chunks if chunk.logprobs for value in chunk.logprobs.token_logprobs]
    assert streamed == pytest.approx(logprobs.token_logprobs, abs=1e-4)


def test_each_choice_of_each_prompt_begins_with_its_own(client, served):
    answer = client.completions.create(
        model=served.name, prompt=["the quick", "a dog"], n=2, max_tokens=3, echo=True, temperature=1.0, seed=3
    )
    assert [choice.text.startswith(["the quick", "a dog"][i // 2]) for i, choice in enumerate(answer.choices)] == [
        True
    ] * 4
    assert all(choice.logprobs is None for choice in answer.choices)


def test_prompts_that_are_cached_or_read_in_chunks_have_all_their_log_probabilities(tiny_folder, tiny_plugin, llm):
    prompt = llm.tokenizer("the quick brown fox jumps over the lazy dog and all the other foxes")["input_ids"][:60]
    small = LLM(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu", max_batch=2)
    small.engine.scheduler.chunk = 7
    small.generate([prompt], SamplingParams(max_tokens=1))  # what it leaves in the prefix cache is not taken
    plain, params = SamplingParams(max_tokens=4, n=2), SamplingParams(max_tokens=4, n=2, prompt_logprobs=0)
    (out,), (want,) = small.generate([prompt], params), llm.generate([prompt], params)
    assert out.prompt_logprobs is not None and want.prompt_logprobs is not None
    assert len(out.prompt_logprobs) == len(prompt) - 1
    for one, other, token in zip(out.prompt_logprobs, want.prompt_logprobs, prompt[1:], strict=True):
        assert one[token] == pytest.approx(other[token], abs=1e-4)
    (again,) = small.generate([prompt], plain)
    assert [sample.token_ids for sample in out.samples] == [sample.token_ids for sample in again.samples]
    assert again.prompt_logprobs is None
