"""What clients send, and what is right: `tests/cases/server/requests.jsonl`, and what one answer says of another."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import httpx
import openai
import pytest

CASES = [json.loads(line) for line in (Path(__file__).parents[1] / "cases/server/requests.jsonl").open()]
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_request_is_answered_or_refused_by_its_own_field(served, case):
    response = httpx.post(served.url + case["path"], json={"model": served.name, **case["body"]}, timeout=60)
    want = case["want"]
    assert response.status_code == want["status"], response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert error["param"] == want["param"] and error["code"] == want.get("code")
        assert want.get("says", "") in error["message"]
        assert want["param"] in error["message"] or "code" in want or "stop" in want["param"]


def post(served, path: str, **body) -> dict:
    response = httpx.post(served.url + path, json={"model": served.name, **body}, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_length_that_is_left_out_is_what_the_server_and_the_context_leave(served):
    few = post(served, "/v1/completions", prompt=[5] * 118, ignore_eos=True)
    many = post(served, "/v1/chat/completions", messages=CHAT["messages"], ignore_eos=True)
    some = post(served, "/v1/completions", prompt="hi", ignore_eos=True)
    assert few["usage"]["completion_tokens"] == 10 and some["usage"]["completion_tokens"] == 16
    assert many["usage"]["total_tokens"] == min(128, many["usage"]["prompt_tokens"] + 100)


def test_a_length_of_zero_gives_an_empty_text_and_says_length(served):
    body = post(served, "/v1/completions", prompt=["hi", "the fox"], max_tokens=0, n=2, logprobs=1, return_depth=True)
    assert [choice["text"] for choice in body["choices"]] == [""] * 4
    assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}
    assert body["usage"]["completion_tokens"] == 0 and body["usage"]["prompt_tokens"] > 1
    assert served.becomes(lambda: served.counts() == (0, 0))


def test_a_top_p_of_zero_is_the_likeliest_token(served):
    fields = {"prompt": "the quick", "max_tokens": 12, "ignore_eos": True}
    greedy = post(served, "/v1/completions", **fields, temperature=0)
    assert post(served, "/v1/completions", **fields, temperature=2, top_p=0)["choices"] == greedy["choices"]


def test_a_text_without_a_prompt_starts_with_the_models_own_token(served):
    fields = {"max_tokens": 8, "temperature": 0}
    message = [
        post(served, "/v1/completions", **fields, **more)["choices"] for more in ({}, {"prompt": None}, {"prompt": [0]})
    ]
    assert message[0] == message[1] == message[2]  # 0 begins the tiny model's texts


@pytest.mark.parametrize("seed", range(4))
def test_a_token_has_one_name_everywhere(served, seed):
    fields = {"temperature": 2.0, "seed": seed, "max_tokens": 24, "ignore_eos": True}
    one = post(served, "/v1/completions", **fields, prompt="漢", logprobs=2)["choices"][0]["logprobs"]
    assert any(token.startswith("bytes:") for token in one["tokens"])
    for token, logprob, top in zip(one["tokens"], one["token_logprobs"], one["top_logprobs"], strict=True):
        assert top[token] == logprob
    chat = post(served, "/v1/chat/completions", **fields, messages=CHAT["messages"], logprobs=True, top_logprobs=20)
    for token in chat["choices"][0]["logprobs"]["content"]:
        names = {tuple(top["bytes"]): top["token"] for top in token["top_logprobs"]}
        assert names.get(tuple(token["bytes"]), token["token"]) == token["token"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("more", [{}, {"return_depth": True}, {"n": 2}])
def test_usage_stands_in_every_chunk_and_is_null_but_in_the_last(served, path, more):
    body = {"model": served.name, "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}, **more}
    body |= {"prompt": "hi"} if path == "/v1/completions" else {"messages": CHAT["messages"]}
    events = httpx.post(served.url + path, json=body, timeout=60).text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert all("usage" in chunk for chunk in chunks)
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1) and chunks[-1]["usage"][
        "total_tokens"
    ]


BODY = json.dumps({"prompt": "hi", "max_tokens": 2}).encode()


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "br"},
        {"Content-Encoding": "identity, deflate"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/jsonl"},
        {"Content-Type": "application/json; charset=utf-16"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/depth/map"])
def test_what_is_no_plain_json_is_415(served, headers, path):
    content = gzip.compress(BODY) if headers.get("Content-Encoding") == "gzip" else BODY
    headers = {"Content-Type": "application/json", **headers}
    response = httpx.post(served.url + path, content=content, headers=headers, timeout=60)
    assert response.status_code == 415 and "send" in response.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=UTF-8", "application/vnd.api+json"])
def test_json_by_other_names_is_read(served, kind):
    content = json.dumps({"model": served.name, "prompt": "hi", "max_tokens": 2}).encode()
    headers = {"Content-Type": kind, "Content-Encoding": "identity"}
    assert httpx.post(f"{served.url}/v1/completions", content=content, headers=headers, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("HEAD", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/depth/map", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("PATCH", "/", "GET, HEAD"),
        ("OPTIONS", "/metrics", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(served, method, path, allowed):
    response = httpx.request(method, served.url + path, timeout=60)
    assert response.status_code == 405 and response.headers["Allow"] == allowed


@pytest.mark.parametrize(
    "path", ["/health", "/metrics", "/v1/models", "/v1/models/gpt-7", "/", "/page/app.js", "/openapi.json"]
)
def test_head_is_get_without_its_body(served, path):
    head, get = httpx.head(served.url + path, timeout=60), httpx.get(served.url + path, timeout=60)
    assert head.status_code == get.status_code and head.content == b"" and get.content
    assert head.headers["content-type"] == get.headers["content-type"]


def test_the_official_client_knows_its_errors(client, served):
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=served.name, prompt="x " * 500)
    assert long.value.code == "context_length_exceeded" and "maximum context length" in str(long.value)
    with pytest.raises(openai.NotFoundError) as other:
        client.chat.completions.create(model="gpt-7", messages=CHAT["messages"])
    assert other.value.code == "model_not_found" and other.value.param == "model"


def test_a_conversation_goes_on_with_the_message_that_was_answered(client, served):
    first = client.chat.completions.create(model=served.name, **CHAT).choices[0].message
    again = [*CHAT["messages"], first.model_dump(), {"role": "user", "content": "go on"}]
    message = client.chat.completions.create(model=served.name, messages=again, max_tokens=2)
    assert message.choices[0].finish_reason in ("stop", "length")


def test_the_model_says_its_limits_and_how_it_draws(served):
    (model,) = httpx.get(f"{served.url}/v1/models", timeout=60).json()["data"]
    assert model["max_tokens"] == 100 and model["sampling"] == {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
