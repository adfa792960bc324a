"""Whatever is sent: an error in OpenAI's shape, never a 500, never a hang, never a trace or a path."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

SLOW = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example)
LEAK = re.compile(r"Traceback|File \"|\.py\b|site-packages|/home/|/usr/|/tmp/|0x[0-9a-f]{8}")


def refused(response: httpx.Response, *statuses: int) -> str:
    """The message of an error that keeps to the rules."""
    assert response.status_code in (statuses or (400,)), response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert not LEAK.search(response.text) and "\n" not in error["message"] and len(error["message"]) < 500
    return error["message"]


WRONG = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": 1e400}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": float("nan")}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": 10**30}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 101}, "max_tokens"),
    ({"max_tokens": 2**40}, "max_tokens"),
    ({"max_tokens": "12"}, "max_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": 1000}, "logprobs"),
    ({"budget": 0}, "budget"),
    ({"budget": 1.01}, "budget"),
    ({"budget": 0.5}, "budget"),
    ({"budget": float("nan")}, "budget"),
    ({"budget": "0.9"}, "budget"),
    ({"budget": 0.9, "lossless": True}, "budget: lossless"),
    ({"prompt_budget": 0}, "prompt_budget: give a number"),
    ({"prompt_budget": 1.01}, "prompt_budget: give a number"),
    ({"prompt_budget": "full"}, "prompt_budget: give a number"),
    ({"prompt_budget": True}, "prompt_budget: give a number"),
    ({"prompt_budget": float("nan")}, "prompt_budget: give a number"),
    ({"prompt_budget": 0.5}, "prompt_budget: budget 0.5 is outside"),
    ({"prompt_budget": 0.9, "lossless": True}, "prompt_budget: lossless"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream"),
    ({"echo": 1}, "echo"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"min_p": 1.1}, "min_p"),
    ({"min_tokens": 17}, "min_tokens: 17 are more than the 16"),
    ({"logit_bias": {"3": 101}}, "logit_bias"),
    ({"logit_bias": {"-3": 1.0}}, "no token"),
    ({"logit_bias": {"999999": 1.0}}, "logit_bias: 999999 is no token"),
    ({"best_of": 3}, "best_of"),
    ({"bugdet": 0.9}, "bugdet"),
    ({"a" * 5000: 1}, "a"),
    ({"\ud800": 1}, "Unicode"),
    ({"prompt": ""}, "empty"),
    ({"prompt": []}, "empty"),
    ({"prompt": [[]]}, "empty"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**9]}, "prompt"),
    ({"prompt": [2**70]}, "token"),
    ({"prompt": "x" * 5000}, "context"),
    ({"prompt": ["x"] * 13}, "texts"),
    ({"prompt": "\ud800"}, "Unicode"),
    ({"model": 3}, "model"),
]


@pytest.mark.parametrize(("fields", "word"), WRONG)
def test_a_wrong_field_is_named(served, fields, word):
    body = {"model": served.name, "prompt": "x", **fields}
    response = httpx.post(f"{served.url}/v1/completions", content=json.dumps(body), headers=JSON, timeout=60)
    assert word in refused(response)


JSON = {"Content-Type": "application/json"}
CHATS: list[tuple[Any, str]] = [
    ([], "messages"),
    ([{"role": "user"}], "content"),
    ([{"role": "king", "content": "x"}], "role"),
    ([{"role": "user", "content": 3}], "content"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "content"),
    ([{"role": "user", "content": "x", "tools": []}], "tools"),
    ([{"role": "user", "content": "x " * 5000}], "context"),
    ("x", "messages"),
]


@pytest.mark.parametrize(("messages", "word"), CHATS)
def test_a_wrong_message_is_named(served, messages, word):
    body = {"model": served.name, "messages": messages}
    assert word in refused(httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe{}", b'{"model": "\xff"}', b"{" * 9000, b"[" * 9000, b"\x00",
     b'{"model": NaN}', b'{"prompt":' + b"9" * 9000 + b"}"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data", ""])
def test_a_body_that_is_no_request(served, body, kind):
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/depth/map"):
        headers = {"Content-Type": kind} if kind else {}
        response = httpx.post(served.url + path, content=body, headers=headers, timeout=60)
        refused(response, 400 if kind in ("application/json", "") else 415)


def test_other_models_paths_and_methods(served, ask):
    assert served.name in refused(ask(model="gpt-7"), 404)
    for method, path, status in (
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/nothing", 404),
        ("GET", "/page/..%2f..%2fapp.py", 404),
        ("GET", "/page/../settings.py", 404),
        ("GET", "/docs", 404),
    ):
        refused(httpx.request(method, served.url + path, timeout=60), status)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "n",
    "seed",
    "stop",
    "budget",
    "lossless",
    "max_tokens",
    "logprobs",
    "prompt",
)


@given(st.dictionaries(st.sampled_from(FIELDS), ANY, max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_answered_or_refused(served, fields):
    body = json.dumps({"model": served.name, "prompt": "x", "max_tokens": 2, **fields})
    response = httpx.post(f"{served.url}/v1/completions", content=body.encode(), headers=JSON, timeout=60)
    if response.status_code != 200:
        refused(response)


@pytest.fixture(scope="module")
def schema(served):
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def test_requests_made_from_the_schema_keep_to_it(served, schema):
    """Every operation, valid and invalid requests; answers must be those that the schema names."""
    choice = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    calls = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        calls.add(operation.path)

        @given(case=operation.as_strategy())
        @settings(max_examples=8, derandomize=True, suppress_health_check=SLOW)
        def run(case):
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = served.name  # or it would be 404 and nothing else
            response = case.call(timeout=60)
            case.validate_response(response, checks=choice)
            if "json" in str(response.headers.get("content-type")):  # others are a page and a Parquet file
                assert not LEAK.search(response.text)

        run()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/depth/map", "/health"} <= calls
