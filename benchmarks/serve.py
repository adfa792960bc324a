"""Load on a running `depthdial serve`: throughput and latency by the number of clients, dense and adaptive by turns;
many streams at once; hang-ups; memory over many requests. Writes one JSON file.

    depthdial serve --port 8000 &
    python benchmarks/serve.py --url http://127.0.0.1:8000 --output serve.json --what load,streams,hangups,memory

Other servers of the same protocol take part in the load, by turns with ours: --other "vLLM, adaptive=http://..:8001".
The clients run in this process, on the cores that the server wants: figures are a lower bound.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from depthdial.core.whole import write_json
from depthdial.evaluate.speed.machine import facts

QUESTIONS = ("Why is the sky blue?", "What is 17 plus 25?", "Tell me a story about a fox.", "Name three rivers.")


@dataclass
class Timed:
    """One streamed answer: seconds from the request to its first token, to its end, and its tokens."""

    first: float
    whole: float
    tokens: int
    cost: float


class Load:
    """Asks a server. tokens: of each answer, exactly."""

    def __init__(self, client: httpx.AsyncClient, model: str, tokens: int, name: str = "depthdial"):
        self.client, self.model, self.tokens, self.name = client, model, tokens, name

    async def one(self, i: int, budget: float | None, hang_up: bool = False) -> Timed:
        """One streamed answer; with `hang_up` the client leaves after its first token. budget: None asks for none, nor
        for depths."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": f"{QUESTIONS[i % len(QUESTIONS)]} ({i})"}],
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if budget is not None:
            body |= {"budget": budget, "return_depth": True}
        begun, first, costs, tokens = time.perf_counter(), math.nan, [], 0
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                begins = False
                for choice in event["choices"]:
                    costs += choice.get("depth", {}).get("costs", [])
                    begins = begins or bool(costs or choice.get("delta", {}).get("content"))
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                if begins and math.isnan(first):
                    first = time.perf_counter() - begun
                    if hang_up:
                        break
        return Timed(first, time.perf_counter() - begun, tokens, sum(costs) / len(costs) if costs else math.nan)

    async def at_once(self, clients: int, budget: float | None, rounds: int, start: int = 0) -> dict[str, Any]:
        """So many clients, each asking `rounds` times, one answer after the other."""

        async def ask(client: int) -> list[Timed]:
            return [await self.one(start + client + r * clients, budget) for r in range(rounds)]

        begun = time.perf_counter()
        answers = [a for of in await asyncio.gather(*(ask(c) for c in range(clients))) for a in of]
        seconds, tokens = time.perf_counter() - begun, sum(a.tokens for a in answers)
        firsts, wholes = ([getattr(a, name) for a in answers] for name in ("first", "whole"))
        told = sum(a.cost * a.tokens for a in answers) / max(1, tokens)
        return {
            "server": self.name,
            "clients": clients,
            "budget": budget,
            "answers": len(answers),
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 2),
            "mean_cost": None if math.isnan(told) else round(told, 4),
            "first_token_p50": quantile(firsts, 0.5),
            "first_token_p99": quantile(firsts, 0.99),
            "answer_p50": quantile(wholes, 0.5),
            "answer_p99": quantile(wholes, 0.99),
        }


def quantile(values: list[float], q: float) -> float:
    """The q-quantile of some seconds, nearest rank."""
    return round(sorted(values)[min(len(values) - 1, math.ceil(q * len(values)) - 1)], 4)


def resident(pids: list[int]) -> list[float]:
    """Resident megabytes of processes on this machine."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return [round(count * os.sysconf("SC_PAGE_SIZE") / 1e6, 1) for count in pages]


async def busy(client: httpx.AsyncClient) -> dict[str, float]:
    """Texts that run and wait."""
    lines = (await client.get("/metrics")).text.splitlines()
    return {line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests")}


async def load(told: Load, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Dense and adaptive by turns, and other servers, for each number of clients."""
    rows = []
    async with contextlib.AsyncExitStack() as stack:
        others = [await reached(stack, name, url, args.tokens) for name, _, url in map(apart, args.other)]
        for clients in args.clients:
            for _ in range(args.repeats):
                for server, budget in [(told, 1.0), (told, args.budget), *((other, None) for other in others)]:
                    rows.append(await server.at_once(clients, budget, 1, start=len(rows) * 1000))
                    print(json.dumps(rows[-1]), flush=True)
    return rows


def apart(named: str) -> tuple[str, str, str]:
    """NAME=URL"""
    return named.partition("=")


async def reached(stack: contextlib.AsyncExitStack, name: str, url: str, tokens: int) -> Load:
    """A server that has answered once: what it makes for its first request is made."""
    client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=600, limits=LIMITS))
    (model,) = (await client.get("/v1/models")).json()["data"]
    found = Load(client, model["id"], tokens, name)
    await found.one(0, None)
    return found


async def streams(told: Load, args: argparse.Namespace) -> dict[str, Any]:
    """Many streams at once; an error would be raised."""
    return await told.at_once(args.streams, args.budget, 1, start=10**6)


async def hangups(told: Load, args: argparse.Namespace) -> dict[str, Any]:
    """Clients that leave after their first token; then nothing may run or wait."""
    gate = asyncio.Semaphore(50)

    async def leave(i: int) -> None:
        async with gate:
            await told.one(i, args.budget, hang_up=True)

    begun = time.perf_counter()
    await asyncio.gather(*(leave(i) for i in range(args.hangups)))
    left, freed = time.perf_counter(), None
    while time.perf_counter() - left < 60:
        if not any((await busy(told.client)).values()):
            freed = round(time.perf_counter() - left, 3)
            break
    return {"hangups": args.hangups, "seconds": round(left - begun, 1), "freed_after_seconds": freed}


async def memory(told: Load, args: argparse.Namespace) -> dict[str, Any]:
    """Resident memory of the front and the engine over many short requests."""
    gate, short, sizes = asyncio.Semaphore(16), Load(told.client, told.model, 4), []

    async def ask(i: int) -> None:
        async with gate:
            await short.one(i, args.budget)

    parts = 10
    for part in range(parts + 1):
        sizes.append(resident(args.pids))
        if part < parts:
            count = args.requests // parts
            await asyncio.gather(*(ask(part * count + i) for i in range(count)))
    return {"requests": args.requests, "resident_mb": sizes}


LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=0)
WHAT = {"load": load, "streams": streams, "hangups": hangups, "memory": memory}


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    async with contextlib.AsyncExitStack() as stack:
        told = await reached(stack, "depthdial", args.url, args.tokens)
        found: dict[str, Any] = {
            "what": "serve",
            **facts(torch.device("cpu")),
            "model": told.model,
            "tokens": args.tokens,
        }
        found["load_average"] = [os.getloadavg()[0]]
        for name in args.what:
            run: Coroutine[Any, Any, Any] = WHAT[name](told, args)
            found[name] = await run
            print(name, json.dumps(found[name]), flush=True)
        found["load_average"].append(os.getloadavg()[0])
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=URL", help="repeatable; for load")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--what", type=lambda text: text.split(","), default=list(WHAT))
    parser.add_argument("--budget", type=float, default=0.85)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 16, 64])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--hangups", type=int, default=500)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--pids", type=lambda text: [int(n) for n in text.split(",")], default=[], help="for memory")
    args = parser.parse_args()
    if unknown := set(args.what) - set(WHAT):
        parser.error(f"--what knows {', '.join(WHAT)}, not {', '.join(sorted(unknown))}")
    write_json(args.output, asyncio.run(measure(args)))


if __name__ == "__main__":
    main()
