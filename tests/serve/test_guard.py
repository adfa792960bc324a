"""What is refused before anything is parsed, over real sockets: too large, too slow, half closed, without a key."""

from __future__ import annotations

import json
import socket

import httpx
import openai
import pytest
from tests.serve.conftest import KEY

CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


def exchange(url: str, data: bytes, close: bool = False) -> bytes:
    """Send bytes as they are, and read all that is answered."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(data)
        if close:
            line.shutdown(socket.SHUT_WR)
        answer = b""
        while part := line.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer", f"Bearer {KEY}x", "Basic " + KEY, "Bearer ä"])
def test_without_the_key_nothing_is_done(served, given):
    headers = [] if given is None else [(b"Authorization", given.encode())]
    for path in ("/v1/models", "/v1/chat/completions", "/v1/nothing"):
        response = httpx.post(served.strict + path, headers=headers, content=b"{", timeout=60)
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"


def test_with_the_key_all_is_open_and_figures_need_none(served):
    good = openai.OpenAI(base_url=f"{served.strict}/v1", api_key=KEY, max_retries=0)
    assert good.models.list().data[0].id == served.name
    for path in ("/health", "/metrics", "/"):
        assert httpx.get(served.strict + path, timeout=60).status_code == 200


def test_a_body_that_is_too_large_is_not_read(served):
    huge = json.dumps({"model": served.name, "prompt": "x" * 30_000}).encode()
    for content in (huge, iter([huge[:15_000], huge[15_000:]])):  # with its length told, and in chunks without
        response = httpx.post(f"{served.url}/v1/completions", content=content, timeout=60)
        assert response.status_code == 413 and response.json()["error"]["type"] == "invalid_request_error"
    promised = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n"
    assert exchange(served.url, promised).startswith(b"HTTP/1.1 413")


def test_a_client_that_is_too_slow_is_told_so(served):
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100\r\n\r\n{{"
    assert exchange(served.strict, head.encode()).startswith(b"HTTP/1.1 408")


def test_a_half_closed_socket_ends_its_request(served):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    assert exchange(served.url, head, close=True) in (b"",) or b"500" not in exchange(served.url, head, close=True)[:16]
    assert httpx.get(f"{served.url}/health", timeout=60).status_code == 200


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9\r\n\r\n", b"\r\n\r\n\x00", b"A" * 100_000]
)
def test_what_is_no_http_gets_no_500(served, junk):
    answer = exchange(served.url, junk + b"\r\n\r\n", close=True)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{served.url}/health", timeout=60).status_code == 200


def test_other_origins_may_ask_only_where_they_are_named(served):
    ask = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{served.url}/v1/models", headers=ask).headers
    facts = httpx.options(f"{served.strict}/v1/models", headers=ask)
    assert facts.headers["access-control-allow-origin"] == "https://example.org"
    other = httpx.options(f"{served.strict}/v1/models", headers={**ask, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_browsers_are_told_to_trust_nothing_else(served):
    for path in ("/", "/v1/models", "/page/app.js", "/nothing"):
        headers = httpx.get(served.url + path, timeout=60).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
