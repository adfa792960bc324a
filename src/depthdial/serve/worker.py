"""The process that owns the engine: reads orders, steps while there is work, says what came of it.

Started by `engine_process`, with one end of a socket pair. A second thread reads and tokenizes, so that a long prompt
does not hold up texts that are being generated; all else happens in one thread, between two steps. It ends when the
front does, and with exit code `LOST` when its device does: the front starts another. This file is *not* about HTTP.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

from depthdial.engine.device import DeviceLost, alive
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.request import Request
from depthdial.kernels.tensors import PAGE
from depthdial.models.chat import TemplateRefused
from depthdial.serve import log_lines
from depthdial.serve.echo import Echo
from depthdial.serve.facts import facts_of
from depthdial.serve.fit import RefusedOrder, answer_length, bias_of, check_budgets, check_least
from depthdial.serve.job import GenerationJob
from depthdial.serve.map_queue import MapQueue
from depthdial.serve.prompts import order_tokens
from depthdial.serve.token_names import TokenNames
from depthdial.serve.wire import Message, Wire

log = logging.getLogger(__name__)

TELL_SECONDS = 0.25
"""How often the engine's counts are told while it works."""
LOST_DEVICE = 70
"""Exit code of a process whose device answers no more."""


class Worker:
    """Runs an `LLM` for whoever is at the other end of the wire. name, narrow: of the model and its weights, for maps.
    clock: seconds."""

    def __init__(
        self,
        llm: LLM,
        wire: Wire,
        name: str,
        max_prompt_tokens: int | None,
        narrow: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.llm, self.wire, self.name = llm, wire, name
        self._most, self._narrow = max_prompt_tokens, narrow
        self._maps = MapQueue(clock)
        self._orders: SimpleQueue[Message | None] = SimpleQueue()
        self._jobs: dict[int, GenerationJob] = {}
        self._of: dict[Request, GenerationJob] = {}
        self._names = TokenNames(llm.tokenizer)
        self._counts_time = 0.0

    def run(self) -> None:
        """Work until the front is gone. Raises DeviceLost, once all who wait for it are told."""
        Thread(target=self._read, name="orders", daemon=True).start()
        queue = self.llm.engine.scheduler
        while True:
            try:
                order = self._orders.get(block=queue.idle and not self._maps)
                if order is None:
                    return
                self.take(order)
                continue  # all that was ordered before the next step
            except Empty:
                pass
            self.turn()

    def turn(self) -> None:
        """A step where there is work, and a stage of a map where one is due."""
        queue = self.llm.engine.scheduler
        if not queue.idle:
            self._step()
        if self._maps.due(queue.idle) and (result := self._maps.run()) is not None:
            self._finish_map(*result)

    def _step(self) -> None:
        rows = self.llm.engine.step()
        self._tell({self._of[row.request] for row in rows if row.request in self._of})
        if self.llm.engine.lost is not None:
            raise DeviceLost(self.llm.engine.lost)

    def _read(self) -> None:
        while (order := self.wire.receive()) is not None:
            if self.prepare(order):
                self._orders.put(order)
        self._orders.put(None)

    def prepare(self, order: Message) -> bool:
        """Add its tokens to an order; False if it is refused, which is said."""
        try:
            if order["op"] == "map":
                order["map"] = self._map_order(order)
            elif order["op"] == "generate":
                order["ids"] = order_tokens(self.llm, order)
        except Exception as error:
            self._refuse(order["id"], error)
            return False
        return True

    def take(self, order: Message) -> None:
        """Do a prepared order, or put it where `turn` finds it; say what is wrong with it."""
        if order["op"] == "cancel":
            self._cancel(order["id"])
            return
        try:
            if order["op"] == "ping":
                self.wire.send({"alive": True})
            elif order["op"] == "map":
                from depthdial.serve.map_export import export_map

                self._maps.add(order["id"], export_map(self.llm, self.name, order["map"]))
            else:
                self._submit(order)
        except Exception as error:
            self._refuse(order["id"], error)

    def _submit(self, order: Message) -> None:
        llm, requests = self.llm, []
        params = dict(order["params"])
        length, field = params.pop("max_tokens"), "messages" if "messages" in order else "prompt"
        context = min(llm.context, llm.engine.scheduler.cache.pages * PAGE)
        check_budgets(llm, params["budget"], params["prompt_budget"])
        params["logit_bias"] = bias_of(llm, params.get("logit_bias"))
        try:
            for ids in order["ids"]:
                if not ids:
                    raise RefusedOrder("the prompt is empty; give at least one token", field)
                limit = answer_length(len(ids), length, order["most"], context, self._most, field)
                check_least(params.get("min_tokens", 0), max(1, limit))
                requests.append(llm.submit(list(ids), SamplingParams(max_tokens=max(1, limit), **params)))
        except Exception as error:
            for request in requests:
                llm.cancel(request)
            if isinstance(error, ValueError) and not isinstance(error, RefusedOrder):
                raise RefusedOrder(str(error), field) from None
            raise
        echoes = []
        if order.get("echo"):
            echoes = [Echo(llm.tokenizer, self._names, *pair) for pair in zip(requests, order["prompts"], strict=True)]
        job = GenerationJob(order["id"], requests, self._names, order["detailed"], echoes, silent=length == 0)
        self._jobs[order["id"]] = job
        self._of |= dict.fromkeys(requests, job)
        counts = [len(request.token_ids) for request in requests]
        self.wire.send({"accepted": job.id, "prompt_tokens": sum(counts), "counts": self._counts()})
        if length == 0 and params.get("prompt_logprobs") is None:  # nothing is to run, but the prompt was looked at
            for request in requests:
                llm.cancel(request)
            self._tell({job})

    def _cancel(self, id: int) -> None:
        self._maps.cancel(id)
        if (job := self._jobs.pop(id, None)) is None:
            return
        for request in job.requests:
            self.llm.cancel(request)
            del self._of[request]
        self.wire.send({"counts": self._counts()})

    def _tell(self, jobs: set[GenerationJob]) -> None:
        tokens = [news for job in jobs for news in job.news()]
        done = [job for job in jobs if job.done]
        for job in done:
            del self._jobs[job.id]
            for request in job.requests:
                del self._of[request]
        message: Message = {"tokens": tokens}
        if done:
            message["ended"] = [job.end() for job in done]
        if time.monotonic() - self._counts_time > TELL_SECONDS or self.llm.engine.scheduler.idle:
            message["counts"] = self._counts()
        if tokens or len(message) > 1:
            self.wire.send(message)

    def _counts(self) -> Message:
        self._counts_time = time.monotonic()
        scheduler, stats = self.llm.engine.scheduler, self.llm.stats
        cache = scheduler.cache
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting) + len(self._maps),
            "cache": round(1 - cache.available / cache.pages, 5),
            "preemptions": stats.preemptions,
            "passes": stats.passes,
            "tokens": stats.tokens,
            "cached_tokens": stats.cached_tokens,
            "layer_tokens": stats.rows.tolist(),
            "read_tokens": stats.read_tokens,
            "read_cost": stats.read_cost,
            "written_tokens": stats.written_tokens,
            "written_cost": stats.written_cost,
            "budget": self.llm.budget,
            "prompt_budget": self.llm.prompt_budget,
        }

    def _map_order(self, order: Message) -> Any:
        from depthdial.serve.map_export import map_order  # pyarrow and templates, for those who ask

        return map_order(self.llm, self._narrow, self._most, order)

    def _finish_map(self, id: int, result: str | Exception) -> None:
        if isinstance(result, Exception):
            self._refuse(id, result)
            if not alive(self.llm.engine.batch.cache.k.device):
                raise DeviceLost(f"after {result}")
        else:
            self.wire.send({"map": id, "data": result})

    def _refuse(self, id: int, error: Exception) -> None:
        """Say no; only what is meant for users is told, the rest goes to the log."""
        if isinstance(error, TemplateRefused):  # how a chat template says that it does not know a role or an order
            error = ValueError(f"the model's chat template refuses these messages: {error.reason}")
        if isinstance(error, ValueError):
            details = {"param": error.param, "code": error.code} if isinstance(error, RefusedOrder) else {}
            self.wire.send({"refused": id, "why": " ".join(str(error).split()), **details})
            return
        log.error("an order failed", exc_info=error)
        self.wire.send({"failed_order": id})


def _tell_loading(wire: Wire, ready: Event) -> None:
    """Say every second that loading goes on."""
    with contextlib.suppress(OSError):  # the front is gone
        while not ready.wait(1.0):
            wire.send({"loading": True})


def main() -> None:
    """The process: `python -m depthdial.serve.worker FD`; its first message says what to load."""
    log_lines.start("depthdial engine")
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)  # a terminal sends them to both; the front drains, then hangs up
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    order = wire.receive()
    if order is None:
        return
    ready = Event()
    Thread(target=_tell_loading, args=(wire, ready), name="loading", daemon=True).start()
    try:
        llm = LLM(**order["engine"])
        worker = Worker(llm, wire, order["name"], order["max_prompt_tokens"], order["engine"]["weights"] != "auto")
    except (ValueError, OSError) as error:
        wire.send({"failed": " ".join(str(error).split()) or type(error).__name__})
        return
    finally:
        ready.set()
    wire.send({"ready": facts_of(llm)})
    try:
        worker.run()
    except (BrokenPipeError, ConnectionResetError):
        return  # the front is gone, and with it all who asked
    except DeviceLost as error:
        log.error("the device answers no more, so this process ends: %s", error)
        sys.stderr.flush()
        os._exit(LOST_DEVICE)


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # there is nothing to put away, and an interpreter full of native threads takes seconds to go
