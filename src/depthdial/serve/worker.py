"""The process that owns the engine: reads orders, steps while there is work, says what came of it.

Started by `engine_process`, with one end of a socket pair. A second thread reads and tokenizes, so that a long prompt
does not hold up texts that are being generated; all else happens in one thread, between two steps. It ends when the
front does. This file is *not* about HTTP.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.request import Request, Row
from depthdial.kernels.tensors import PAGE
from depthdial.models.chat import TemplateRefused
from depthdial.serve.token_names import TokenNames
from depthdial.serve.wire import Message, Wire

log = logging.getLogger(__name__)

TELL_SECONDS = 0.25
"""How often the engine's counts are told while it works."""


class Job:
    """One order to generate: its prompts, and how much of each text has been told."""

    def __init__(self, id: int, requests: list[Request], names: TokenNames, detailed: bool):
        self.id, self.requests, self._names, self._detailed = id, requests, names, detailed
        self.rows: list[Row] = [row for request in requests for row in request.rows]
        """In the order of the choices they become."""
        self._told = [0] * len(self.rows)
        self._ended = [False] * len(self.rows)

    @property
    def done(self) -> bool:
        return all(request.done for request in self.requests)

    def news(self) -> list[list[Any]]:
        """What is new: [job, choice, tokens, log-probabilities or null, finish reason or null]."""
        found = []
        for choice, row in enumerate(self.rows):
            first, finish = self._told[choice], row.finish_reason
            pieces = row.pieces(first)
            if not pieces and (finish is None or self._ended[choice]):
                continue
            self._told[choice] += len(pieces)
            self._ended[choice] = finish is not None
            tokens = [[p.text, p.token_id, p.depth, round(p.cost, 5), p.layers.hex()] for p in pieces]
            logprobs = None
            if row.request.params.logprobs is not None:
                logprobs = [
                    self._named(p.token_id, of)
                    for p, of in zip(pieces, row.logprobs[first : self._told[choice]], strict=True)
                ]
            found.append([self.id, choice, tokens, logprobs, finish])
        return found

    def _named(self, token: int, logprobs: dict[int, float]) -> list[Any]:
        """[text, bytes, log-probability, [the likeliest, each as text, bytes, log-probability]]."""
        likeliest = sorted(logprobs.items(), key=lambda told: -told[1])[: self.requests[0].params.logprobs]
        return [
            *self._names.of(token),
            _number(logprobs[token]),
            [[*self._names.of(i), _number(value)] for i, value in likeliest],
        ]

    def end(self) -> Message:
        """What is known of the prompts once all is done."""
        message: Message = {"done": self.id, "cached": sum(request.cached_tokens for request in self.requests)}
        if self._detailed:
            outputs = [request.output() for request in self.requests]
            message["prompts"] = [
                {"depths": out.prompt_depths, "cost": _number(out.prompt_cost)} for out in outputs if out.prompt_depths
            ]
        return message


class Worker:
    """Runs an `LLM` for whoever is at the other end of the wire. name, int8: of the model and its weights, for maps."""

    def __init__(self, llm: LLM, wire: Wire, name: str, max_prompt_tokens: int | None, int8: bool = False):
        self.llm, self.wire, self.name = llm, wire, name
        self._most, self._int8 = max_prompt_tokens, int8
        self._orders: SimpleQueue[Message | None] = SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._of: dict[Request, Job] = {}
        self._names = TokenNames(llm.tokenizer)
        self._told_at = 0.0

    def facts(self) -> Message:
        """What the front must know of the model."""
        llm = self.llm
        curve = None if llm.plugin is None else llm.plugin.curves.get("generated") or llm.plugin.curves.get("text")
        return {
            "layers": llm.layers,
            "always_on": llm.always_on,
            "context": llm.context,
            "budget": llm.budget,
            "floor": None if curve is None else round(math.ceil(curve.floor * 1000) / 1000, 3),
            "plugin": None if llm.plugin is None else llm.plugin.name,
            "chat": bool(llm.tokenizer.chat_template),
            "pid": os.getpid(),
        }

    def run(self) -> None:
        """Work until the front is gone."""
        Thread(target=self._read, name="orders", daemon=True).start()
        while True:
            try:
                order = self._orders.get(block=self.llm.engine.scheduler.idle)
                if order is None:
                    return
                self._take(order)
                continue  # all that was ordered before the next step
            except Empty:
                pass
            touched = self.llm.engine.step()
            self._tell({self._of[row.request] for row in touched if row.request in self._of})

    def _read(self) -> None:
        while (order := self.wire.receive()) is not None:
            try:
                if "prompts" in order or "messages" in order:
                    order["ids"] = self._tokenized(order)
            except Exception as error:
                self._refuse(order["id"], error)
                continue
            self._orders.put(order)
        self._orders.put(None)

    def _tokenized(self, order: Message) -> list[Sequence[int]]:
        llm = self.llm
        if "messages" in order:
            many: list[Sequence[int]] = [llm.chat_tokens(order["messages"])]
        else:
            many = [
                llm.tokenizer(prompt, verbose=False)["input_ids"] if isinstance(prompt, str) else prompt
                for prompt in order["prompts"]
            ]
        for ids in many:
            if self._most is not None and len(ids) > self._most:
                raise ValueError(f"the prompt has {len(ids)} tokens; this server takes {self._most} at most")
        return many

    def _take(self, order: Message) -> None:
        if order["op"] == "cancel":
            self._cancel(order["id"])
            return
        try:
            if order["op"] == "map":
                self.wire.send({"map": order["id"], "data": self._map(order)})
            else:
                self._submit(order)
        except Exception as error:
            self._refuse(order["id"], error)

    def _submit(self, order: Message) -> None:
        llm, requests = self.llm, []
        params = dict(order["params"])
        asked = params.pop("max_tokens")
        try:
            for ids in order["ids"]:
                # where the request names no length, the room that is left is long enough
                room = min(llm.context, llm.engine.scheduler.cache.pages * PAGE) - len(ids)
                limit = asked if asked is not None else max(1, min(order["most"], room))
                requests.append(llm.submit(list(ids), SamplingParams(max_tokens=limit, **params)))
        except Exception:
            for request in requests:
                llm.cancel(request)
            raise
        job = self._jobs[order["id"]] = Job(order["id"], requests, self._names, order["detailed"])
        self._of |= dict.fromkeys(requests, job)
        counts = [len(request.token_ids) for request in requests]
        self.wire.send({"accepted": job.id, "prompt_tokens": sum(counts), "counts": self._counts()})

    def _cancel(self, id: int) -> None:
        if (job := self._jobs.pop(id, None)) is None:
            return
        for request in job.requests:
            self.llm.cancel(request)
            del self._of[request]
        self.wire.send({"counts": self._counts()})

    def _tell(self, jobs: set[Job]) -> None:
        tokens = [news for job in jobs for news in job.news()]
        ended = [job for job in jobs if job.done]
        for job in ended:
            del self._jobs[job.id]
            for request in job.requests:
                del self._of[request]
        message: Message = {"tokens": tokens}
        if ended:
            message["ended"] = [job.end() for job in ended]
        if time.monotonic() - self._told_at > TELL_SECONDS or self.llm.engine.scheduler.idle:
            message["counts"] = self._counts()
        if tokens or len(message) > 1:
            self.wire.send(message)

    def _counts(self) -> Message:
        self._told_at = time.monotonic()
        scheduler, stats = self.llm.engine.scheduler, self.llm.stats
        cache = scheduler.cache
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "cache": round(1 - cache.available / cache.pages, 5),
            "preemptions": stats.preemptions,
            "passes": stats.passes,
            "tokens": stats.tokens,
            "cached_tokens": stats.cached_tokens,
            "layer_tokens": stats.rows.tolist(),
            "budget": self.llm.budget,
        }

    def _map(self, order: Message) -> str:
        from depthdial.serve.map_export import export  # pyarrow and templates, for those who ask

        return export(self.llm, self.name, self._int8, order)

    def _refuse(self, id: int, error: Exception) -> None:
        """Say no; only what is meant for users is told, the rest goes to the log."""
        if isinstance(error, TemplateRefused):  # how a chat template says that it does not know a role or an order
            error = ValueError(f"the model's chat template refuses these messages: {error.reason}")
        if isinstance(error, ValueError):
            self.wire.send({"refused": id, "why": " ".join(str(error).split())})
            return
        log.error("an order failed", exc_info=error)
        self.wire.send({"failed_order": id})


def _number(value: float) -> float | None:
    """JSON has neither nan nor inf; the OpenAI API writes -9999.0 for what is impossible."""
    return None if math.isnan(value) else max(value, -9999.0)


def main() -> None:
    """The process: `python -m depthdial.serve.worker FD`; its first message says what to load."""
    logging.basicConfig(level=logging.WARNING, format="depthdial engine: %(levelname)s %(message)s")
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)  # a terminal sends them to both; the front drains, then hangs up
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    order = wire.receive()
    if order is None:
        return
    try:
        llm = LLM(**order["engine"])
        worker = Worker(llm, wire, order["name"], order["max_prompt_tokens"], order["engine"]["weights"] == "int8")
    except (ValueError, OSError) as error:
        wire.send({"failed": " ".join(str(error).split()) or type(error).__name__})
        return
    wire.send({"ready": worker.facts()})
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the front is gone, and with it all who asked
        worker.run()


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # there is nothing to put away, and an interpreter full of native threads takes seconds to go
