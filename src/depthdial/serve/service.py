"""What the routes share: the settings, the engine's process, and how a request for text is answered."""

from __future__ import annotations

import asyncio
from time import time
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from depthdial.serve import errors
from depthdial.serve.answers import Completion, Kind
from depthdial.serve.engine_process import EngineProcess
from depthdial.serve.generation import EngineDown, Generation
from depthdial.serve.metrics import Metrics
from depthdial.serve.schema import GenerationRequest
from depthdial.serve.settings import ServerSettings
from depthdial.serve.stream import EventStream, while_listening, whole_answer


class Service:
    """See the file's first line."""

    def __init__(self, settings: ServerSettings, engine: EngineProcess | None = None):
        self.settings = settings
        self.engine = engine or EngineProcess(settings, Metrics(settings.name))
        self.metrics = self.engine.metrics
        self.since = int(time())

    def facts(self) -> dict[str, Any]:
        """What the engine said of itself. EngineDown while there is none."""
        if self.engine.facts is None:
            raise EngineDown
        return self.engine.facts

    def model(self) -> dict[str, Any]:
        """The model as /v1/models lists it."""
        facts = self.facts()
        own = ("sampling", "context", "pid")
        return {
            "id": self.settings.name,
            "object": "model",
            "created": self.since,
            "owned_by": "depthdial",
            "max_model_len": facts["context"],
            "max_tokens": self.settings.limits.max_tokens,
            "sampling": facts["sampling"],
            "depth": {name: fact for name, fact in facts.items() if name not in own},
        }

    def other(self, model: str | None) -> Response | None:
        """The answer to a request for another model than this server's."""
        if model in (None, self.settings.name):
            return None
        reason = f"there is no such model here; this server has {self.settings.name!r}"
        return errors.answer(404, reason, "model", "model_not_found")

    async def generate(self, kind: Kind, body: GenerationRequest, order: dict[str, Any], request: Request) -> Response:
        """Answer one request, whole or streamed. order: what the worker needs; "most" is the default
        length, "length" the client's name of it."""
        facts, limits = self.facts(), self.settings.limits
        if (other := self.other(body.model)) is not None:
            return other
        if kind == "chat" and not facts["chat"]:
            return errors.answer(400, "this model has no chat template; use /v1/completions", "messages")
        length = order["params"]["max_tokens"]
        if length is not None and length > limits.max_tokens:
            most = f"this server gives at most {limits.max_tokens}"
            return errors.answer(400, f"{order['length']}: {length} is too many; {most}", order["length"])
        choices = (body.n or 1) * len(order.get("prompts", [None]))
        if choices > self.settings.engine.max_batch + limits.max_queue:
            name = "n" if (body.n or 1) > 1 else "prompt"
            return errors.answer(400, f"{name}: {choices} texts in one request are more than this server queues", name)
        depth = bool(body.return_depth)
        most = min(order["most"], limits.max_tokens)
        generation: Generation = self.engine.generate({**order, "most": most, "detailed": depth}, choices)
        until = asyncio.get_running_loop().time() + limits.timeout
        try:
            async with asyncio.timeout_at(until):
                listening = await while_listening(request.receive, generation.wait_accepted())
        except BaseException:
            generation.close()
            raise
        if not listening:
            generation.close()
            return Response(status_code=499)  # nobody reads it
        logprobs = order["params"]["logprobs"] is not None
        budget = 1.0 if body.lossless else facts["budget"] if body.budget is None else body.budget
        answer = Completion(kind, self.settings.name, generation, logprobs, depth, facts, budget)
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage) or depth
            return EventStream(generation, answer, usage, until)
        return await whole_answer(request, generation, answer, until)


def params_of(
    body: GenerationRequest, length: int | None, logprobs: int | None, prompt_logprobs: int | None = None
) -> dict[str, Any]:
    """As `SamplingParams` takes them, where None is the model's own."""
    none = body.top_p == 0  # the smallest set of likeliest tokens there is: the likeliest
    return {
        "max_tokens": length,
        "temperature": 0.0 if none else body.temperature,
        "top_p": 1.0 if none else body.top_p,
        "top_k": body.top_k,
        "seed": body.seed,
        "stop": body.stop or None,
        "ignore_eos": bool(body.ignore_eos),
        "frequency_penalty": body.frequency_penalty or 0.0,
        "presence_penalty": body.presence_penalty or 0.0,
        "repetition_penalty": 1.0 if body.repetition_penalty is None else body.repetition_penalty,
        "logit_bias": body.logit_bias or None,
        "min_p": body.min_p or 0.0,
        "min_tokens": body.min_tokens or 0,
        "n": body.n or 1,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "budget": None if body.lossless else body.budget,
        "prompt_budget": None if body.lossless else body.prompt_budget,
        "lossless": bool(body.lossless),
    }
