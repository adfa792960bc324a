"""What a server is told when it starts; a text in an annotation makes an option of `depthdial serve`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated


@dataclass(frozen=True)
class EngineSettings:
    """What the engine's process loads; see `depthdial.LLM`."""

    model: str = "smollm2-135m-instruct"
    plugin: str | None = "default"
    budget: float | str | None = None
    """Of requests that name none: a number, None (what the plug-in recommends), or "auto" (it moves with the load)."""
    dtype: str = "bfloat16"
    device: str = "auto"
    allow_other_weights: bool = False
    max_batch: Annotated[int, "Texts generated at a time; others wait."] = 16
    cache_tokens: Annotated[int | None, "Room of the KV cache. [default: up to a gigabyte]"] = None
    weights: Annotated[
        str,
        "auto; or, on a CPU, less exact: int8, int4, int4-head (the LM head, too), file (a GGUF file's own blocks).",
    ] = "auto"
    prompt_budget: float | str | None = None
    """True cost that prompts are read at where a request does not say: a number, "same" (as the answer), or None: 1.0,
    the untouched base, where there is one."""


@dataclass(frozen=True)
class RequestLimits:
    """What one request, and all of them together, may ask for. Raises ValueError for limits nobody could meet."""

    max_queue: Annotated[int, "Texts that may wait beyond those being generated; one more is answered 429."] = 256
    max_body: Annotated[int, "Most bytes of a request."] = 2**20
    max_prompt_tokens: Annotated[int | None, "[default: what the context holds]"] = None
    max_tokens: Annotated[int, "Most tokens of an answer; a chat's may be so long where the request says none."] = 2048
    timeout: Annotated[float, "Seconds from a request's arrival to the end of its answer."] = 600.0
    body_timeout: float = 30.0
    """Seconds a client may take to send its request's body, once its headers are there."""
    header_timeout: float = 10.0
    """Seconds a client may take from connecting, or from a request's first byte, to the end of its headers."""
    max_connections: Annotated[int, "Connections at a time, as far as files may be open."] = 1024
    """One more ends the oldest whose request is not there yet, or is itself ended."""
    watchdog: Annotated[float, "Seconds of silence before the engine is restarted; more than a pass takes."] = 60.0

    def __post_init__(self):
        for name, least in (("max_queue", 0), ("max_body", 1), ("max_tokens", 1), ("max_prompt_tokens", 1),
                            ("max_connections", 1)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        for name in ("timeout", "body_timeout", "header_timeout", "watchdog"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be a positive number of seconds, not {getattr(self, name)}")


@dataclass(frozen=True)
class ServerSettings:
    """A whole server. name: how the model is called in requests."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    limits: RequestLimits = field(default_factory=RequestLimits)
    api_key: str | None = None
    """None: everybody who reaches the port may ask."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may ask; none by default."""

    def __post_init__(self):
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip() == self.api_key != ""):
            raise ValueError("the API key must be plain ASCII without spaces around it; an empty one protects nothing")

    @property
    def name(self) -> str:
        """The model's name in requests and answers: of a path, the last part alone."""
        return self.engine.model.rstrip("/").rsplit("/", 1)[-1] if _is_path(self.engine.model) else self.engine.model


def _is_path(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~")) or model.endswith(".gguf")
