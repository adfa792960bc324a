"""Both Ray examples on a real one-machine cluster and a tiny model: `make test-ray`, which installs Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import httpx
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {
    **os.environ,
    "RAY_USAGE_STATS_ENABLED": "0",
    # a shared machine's cores may be busy: Ray's own 5 seconds are for one that has nothing else to do
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}


def command(example: str, *words: object) -> list[str]:
    return [sys.executable, str(EXAMPLES / example), *map(str, words)]


@pytest.fixture(scope="module")
def url(tiny_folder, tiny_plugin) -> Iterator[str]:
    """Two replicas behind Ray's proxy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = command("serve_on_ray.py", "--model", tiny_folder, "--plugin", tiny_plugin, "--budget", 0.8)
    words += ["--replicas", "2", "--most", "2", "--port", str(port), "--cpus", "0.5"]
    with subprocess.Popen(words, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.PIPE, text=True) as cluster:
        try:
            assert cluster.stdout is not None
            ready = next((line for line in cluster.stdout if "depthdial serves" in line), None)
            assert ready is not None, "the cluster ended before it served"
            yield ready.split()[-1]
        finally:
            cluster.send_signal(signal.SIGINT)
            try:
                cluster.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(cluster.pid, signal.SIGKILL)


def test_answers_stream_from_both_replicas(url, tiny_folder):
    body = {"model": tiny_folder.name, "prompt": "the fox", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    texts = set()
    with httpx.Client(base_url=url, timeout=120) as client:
        for _ in range(40):
            with client.stream("POST", "/v1/completions", json={**body, "stream": True, "return_depth": True}) as got:
                events = [line.removeprefix("data: ") for line in got.iter_lines() if line]
            assert got.status_code == 200 and events[-1] == "[DONE]"
            parts = [json.loads(event) for event in events[:-1]]
            texts.add("".join(choice["text"] for part in parts for choice in part["choices"]))
        assert len(parts) > 4, "the answer comes in parts"
        pages = [client.get("/metrics").text.splitlines() for _ in range(40)]
        assert client.get("/").status_code == 200
        assert client.post("/v1/completions", content=b"{").status_code == 400
    made = {line.split()[-1] for page in pages for line in page if line.startswith("vllm:generation_tokens_total")}
    assert len(texts) == 1 and len(made) == 2 and sum(map(float, made)) == 40 * 8, "two replicas, one answer"


def test_a_map_is_made_on_a_cluster(tiny_folder, tiny_plugin, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"the fox {i}"}) + "\n" for i in range(10)))
    words = command("map_on_ray.py", prompts, tmp_path / "map", "--model", tiny_folder, "--plugin", tiny_plugin)
    words += ["--budget", "0.9", "--batch", "4", "--cores", "0.5"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    made = datasets.load_dataset("parquet", data_files=str(tmp_path / "map" / "*.parquet"), cache_dir=str(tmp_path))
    assert sorted(made["train"]["id"]) == [f"p{i}" for i in range(10)]
    assert all(layers for layers in made["train"]["layers_used"])
