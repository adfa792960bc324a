"""The official client's own flows, against what the engine says when it is asked directly."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest

from depthdial.engine.llm import LLM, SamplingParams

CHAT = [{"role": "user", "content": "the fox"}]
METERS = ("depthdial:read_tokens_total", "depthdial:read_cost_total")


@pytest.fixture(scope="module")
def llm(tiny_folder, tiny_plugin):
    return LLM(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu")


def test_a_completion_is_what_the_engine_generates(client, served, llm):
    (out,) = llm.generate("the quick", SamplingParams(max_tokens=12))
    message = client.completions.create(
        model=served.name, prompt="the quick", max_tokens=12, temperature=0, extra_body={"return_depth": True}
    )
    (choice,) = message.choices
    assert choice.text == out.text and choice.finish_reason == out.finish_reason
    assert choice.depth["token_ids"] == out.token_ids and choice.depth["depths"] == out.depths
    assert "".join(choice.depth["tokens"]) == out.text
    assert choice.depth["cost"] == pytest.approx(out.cost, abs=1e-4) and out.cost < 1
    assert [prompt["depths"] for prompt in message.depth["prompts"]] == [out.prompt_depths]
    assert message.usage.prompt_tokens == len(out.prompt_token_ids)
    assert message.usage.completion_tokens == len(out.token_ids)
    assert message.usage.cost == pytest.approx(out.cost, abs=1e-4)
    assert message.usage.prompt_cost == 1.0 == out.prompt_cost
    assert choice.depth["mean_depth"] == pytest.approx(sum(out.depths[1:]) / 11, abs=1e-3)


def test_a_chat_uses_the_template_and_its_parts(client, served, llm):
    (out,) = llm.chat(CHAT, SamplingParams(max_tokens=10, budget=1.0))
    parts = [{"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "fox"}]}]
    for messages in (CHAT, parts):
        message = client.chat.completions.create(
            model=served.name, messages=messages, max_completion_tokens=10, temperature=0, extra_body={"budget": 1.0}
        )
        assert message.choices[0].message.content == out.text and message.choices[0].message.role == "assistant"


def test_what_a_user_writes_is_never_a_control_token(client, served, llm):
    def asked(text: str) -> int:
        talk = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": text},
            {"role": "user", "content": text},
        ]
        message = client.chat.completions.create(model=served.name, messages=talk, max_tokens=1)
        return message.usage.prompt_tokens

    mark = "<|im_end|>"
    pieces = len(llm.tokenizer(f"x{mark}", split_special_tokens=True)["input_ids"])
    assert asked(f"x{mark}") == asked("x") + 3 * (pieces - 1)


def test_a_stream_is_the_whole_in_pieces_and_ends_with_its_usage(client, served):
    fields = {"model": served.name, "messages": CHAT, "max_tokens": 20, "temperature": 1.0, "seed": 5, "n": 2}
    whole = client.chat.completions.create(**fields, extra_body={"return_depth": True, "ignore_eos": True})
    texts, depths, finishes, usages = ["", ""], [[], []], {}, []
    for chunk in client.chat.completions.create(
        **fields,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"return_depth": True, "ignore_eos": True},
    ):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            depths[choice.index] += getattr(choice, "depth", {"depths": []})["depths"]
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices] and texts[0] != texts[1]
    assert depths == [choice.depth["depths"] for choice in whole.choices]
    assert finishes == {0: "length", 1: "length"}
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1].completion_tokens == 40 and usages[-1].prompt_tokens == whole.usage.prompt_tokens


def test_a_raw_stream_ends_with_done_and_gives_no_usage_unasked(served, ask):
    response = ask(max_tokens=3, stream=True)
    events = response.text.split("\n\n")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events[-2:] == ["data: [DONE]", ""] and '"usage"' not in response.text


@pytest.mark.parametrize("seed", range(6))
def test_characters_that_split_over_tokens_stay_whole(client, served, llm, seed):
    """The tiny model writes bytes at random: nearly every character is of several tokens, or broken."""
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=seed, ignore_eos=True)
    (out,) = llm.generate("漢字", params)
    assert any(not piece.text for piece in out.samples[0].pieces)
    chunks = client.completions.create(
        model=served.name,
        prompt="漢字",
        max_tokens=40,
        temperature=1.0,
        seed=seed,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == out.text


def test_stop_strings_are_cut_off_streamed_or_not(client, served, llm):
    (out,) = llm.generate("the quick", SamplingParams(max_tokens=30, temperature=1.0, seed=3, ignore_eos=True))
    stop = out.text[9:12]
    fields = {"model": served.name, "prompt": "the quick", "max_tokens": 30, "temperature": 1.0, "seed": 3}
    fields |= {"stop": ["never", stop]}
    message = client.completions.create(**fields, extra_body={"ignore_eos": True})
    assert message.choices[0].text == out.text[: out.text.index(stop)] and message.choices[0].finish_reason == "stop"
    streamed = client.completions.create(**fields, stream=True, extra_body={"ignore_eos": True})
    assert "".join(chunk.choices[0].text for chunk in streamed) == message.choices[0].text


def test_penalties_and_bias_are_the_engines(client, served, llm):
    fields: dict[str, Any] = {"frequency_penalty": 1.5, "presence_penalty": 0.5}
    own: dict[str, Any] = {"repetition_penalty": 1.2, "min_p": 0.01, "min_tokens": 8}
    (out,) = llm.generate("the quick", SamplingParams(max_tokens=12, logit_bias={9: -100.0}, **fields, **own))
    (plain,) = llm.generate("the quick", SamplingParams(max_tokens=12))
    for lossless in (False, True):
        message = client.completions.create(
            model=served.name, prompt="the quick", max_tokens=12, logit_bias={"9": -100}, **fields,
            extra_body={**own, "return_depth": True, **({"lossless": True} if lossless else {})},
        )  # fmt: skip
        if lossless:
            wanted = SamplingParams(max_tokens=12, logit_bias={9: -100.0}, budget=1.0, **fields, **own)
            (out,) = llm.generate("the quick", wanted)
        assert message.choices[0].depth["token_ids"] == out.token_ids != plain.token_ids


def test_equal_seeds_give_equal_texts_and_others_do_not(client, served):
    def text(seed: int) -> str:
        fields = {"model": served.name, "prompt": "the", "seed": seed, "max_tokens": 16, "temperature": 1.0}
        return client.completions.create(**fields).choices[0].text

    assert text(1) == text(1) and text(-5) == text(-5) and len({text(seed) for seed in range(4)}) == 4


def named(data: list[int]) -> str:
    """How OpenAI names a token that is half a character."""
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def test_logprobs_of_both_apis(client, served, llm):
    (out,) = llm.generate("the quick", SamplingParams(max_tokens=6, logprobs=3))
    assert out.logprobs is not None
    choice = [row[token] for row, token in zip(out.logprobs, out.token_ids, strict=True)]
    message = client.completions.create(model=served.name, prompt="the quick", max_tokens=6, temperature=0, logprobs=3)
    result = message.choices[0].logprobs
    assert result.token_logprobs == pytest.approx(choice, abs=1e-4)
    assert all(len(top) >= 3 for top in result.top_logprobs) and result.text_offset[0] == 0
    messages = [{"role": "user", "content": "x"}]
    chat = client.chat.completions.create(
        model=served.name, messages=messages, max_tokens=5, temperature=0, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert len(content) == 5 == chat.usage.completion_tokens or chat.choices[0].finish_reason == "stop"
    for token in content:
        assert [top.logprob for top in token.top_logprobs] == sorted(t.logprob for t in token.top_logprobs)[::-1]
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
        assert token.token in (bytes(token.bytes).decode(errors="replace"), named(token.bytes))
    streamed = client.chat.completions.create(
        model=served.name, messages=messages, max_tokens=5, temperature=0, logprobs=True, stream=True
    )
    facts = [one for c in streamed if c.choices and c.choices[0].logprobs for one in c.choices[0].logprobs.content]
    assert [one.logprob for one in facts] == [one.logprob for one in content]


def test_several_prompts_and_samples_come_back_in_order(client, served, llm):
    prompts = ["the quick", "lazy dog", "fox"]
    outs = llm.generate(prompts, SamplingParams(max_tokens=8))
    message = client.completions.create(model=served.name, prompt=prompts, max_tokens=8, temperature=0, n=2)
    assert [choice.index for choice in message.choices] == list(range(6))
    assert [choice.text for choice in message.choices] == [out.text for out in outs for _ in range(2)]
    assert message.usage.prompt_tokens == sum(len(out.prompt_token_ids) for out in outs)
    ids = [out.prompt_token_ids for out in outs]
    same = client.completions.create(model=served.name, prompt=ids, max_tokens=8, temperature=0)
    assert [choice.text for choice in same.choices] == [out.text for out in outs]


def test_the_dial_is_a_field_of_the_request(client, served):
    costs = {}
    for name, fields in {"low": {"budget": 0.7}, "base": {"budget": 1.0}, "lossless": {"lossless": True}}.items():
        message = client.completions.create(
            model=served.name, prompt="the", max_tokens=16, temperature=0, extra_body={"return_depth": True, **fields}
        )
        costs[name] = message.choices[0].depth["cost"], message.choices[0].text
    assert costs["low"][0] < 1 == costs["base"][0] and costs["lossless"][1] == costs["base"][1]


def test_how_a_prompt_is_read_is_a_field_of_the_request(client, served, llm):
    (model,) = client.models.list().data
    assert (model.depth["prompt_budget"], model.depth["prompt_floor"]) == (1.0, pytest.approx(0.7))
    prompt, costs = "the quick brown fox jumps", {}
    for asked in (1.0, 0.9, "same"):
        (out,) = llm.generate(prompt, SamplingParams(max_tokens=9, budget=0.75, prompt_budget=asked))
        fields = {"model": served.name, "max_tokens": 9, "temperature": 0}
        more = {"extra_body": {"budget": 0.75, "prompt_budget": asked}}
        message = client.completions.create(prompt=prompt, **fields, **more)
        assert message.choices[0].text == out.text
        assert message.usage.prompt_cost == pytest.approx(out.prompt_cost, abs=1e-4)
        messages = [{"role": "user", "content": prompt}]
        talk = client.chat.completions.create(messages=messages, **fields, **more)
        (out,) = llm.chat(messages, SamplingParams(max_tokens=9, budget=0.75, prompt_budget=asked))
        assert talk.choices[0].message.content == out.text
        costs[asked] = message.usage.prompt_cost
    assert 1.0 == costs[1.0] > costs[0.9] > costs["same"]


def test_a_stream_tells_both_costs_last(client, served):
    fields = {"model": served.name, "prompt": "the quick", "max_tokens": 9, "temperature": 0}
    whole = client.completions.create(**fields, extra_body={"prompt_budget": "same"})
    *_, last = client.completions.create(
        **fields, stream=True, stream_options={"include_usage": True}, extra_body={"prompt_budget": "same"}
    )
    assert (last.usage.cost, last.usage.prompt_cost) == (whole.usage.cost, whole.usage.prompt_cost)
    assert last.usage.cost < 1 > last.usage.prompt_cost


def test_layers_run_are_as_many_as_the_depth(client, served):
    message = client.completions.create(
        model=served.name, prompt="the", max_tokens=30, extra_body={"return_depth": True, "ignore_eos": True}
    )
    depth = message.choices[0].depth
    masks = [int(mask, 16) if mask else 0b11111100 for mask in depth["layers_run"]]
    assert [mask.bit_count() for mask in masks] == depth["depths"]
    assert all(mask & 0b11 == 0 and mask >> 6 == 0b11 for mask in masks)  # six layers, the first two always on
    assert len(set(depth["layers_run"])) > 1


def test_models_health_and_metrics(client, served, ask):
    (model,) = client.models.list().data
    assert model.id == served.name == client.models.retrieve(served.name).id and "/" not in model.id
    assert model.max_model_len == 128 and model.depth["layers"] == 6 and model.depth["floor"] == pytest.approx(0.7)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-7")
    with served.client() as web:
        before = web.get("/metrics").text
        assert web.get("/health").json() == {"status": "ok"}
        ask(max_tokens=7, ignore_eos=True)
        after = web.get("/metrics").text
        ask("lazy dogs the quick", max_tokens=7, ignore_eos=True, prompt_budget="same", budget=0.7)
        skipped = web.get("/metrics").text

    def value(text: str, name: str) -> float:
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))

    def risen(name: str) -> float:
        return value(after, name) - value(before, name)

    assert risen("vllm:generation_tokens_total") == 7
    assert risen("depthdial:token_depth_count") == risen("depthdial:token_cost_count") == 6
    assert risen("depthdial:written_tokens_total") == 6 > risen("depthdial:written_cost_total") > 3
    assert risen("depthdial:read_tokens_total") == risen("depthdial:read_cost_total")  # in full
    content = {name: value(skipped, name) - value(after, name) for name in METERS}
    assert content["depthdial:read_tokens_total"] > content["depthdial:read_cost_total"] > 1
    assert value(after, "depthdial:prompt_budget") == 1.0 == value(skipped, "depthdial:prompt_budget")
    assert 0 < value(skipped, "depthdial:prompt_relative_cost") < 1
    assert risen("vllm:request_success_total") == risen("vllm:time_to_first_token_seconds_count") == 1
    assert risen("vllm:inter_token_latency_seconds_count") == 6
    assert 0 < value(after, "depthdial:relative_cost") <= 1.1
    ratios = [value(after, f'depthdial:layer_skip_ratio{{layer="{i}",model_name="{served.name}"}}') for i in range(6)]
    assert not math.isnan(sum(ratios))


def test_what_is_not_asked_for_is_not_computed(ask, served):
    message = ask(max_tokens=3).json()
    assert "depth" not in message and "depth" not in message["choices"][0] and message["choices"][0]["logprobs"] is None
