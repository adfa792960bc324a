"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    max_batch: int = 16
    """Texts generated at a time; others wait."""
    cache_tokens: int | None = None
    weights: str = "auto"
    prompt_budget: float | str | None = None
    """True cost that prompts are read at where a request does not say: a number, "same" (as the answer), or None: 1.0,
    the untouched base, where there is one."""


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may ask for. Raises ValueError for limits nobody could meet."""

    max_queue: int = 256
    """Texts that may wait beyond those being generated; one more is answered 429."""
    max_body: int = 2**20
    """Bytes of a request."""
    max_prompt_tokens: int | None = None
    """None: what the model's context holds."""
    max_tokens: int = 2048
    """Most tokens of one answer, and how long a chat's answer may be where the request does not say."""
    timeout: float = 600.0
    """Seconds from a request's arrival to the end of its answer."""
    body_timeout: float = 30.0
    """Seconds a client may take to send its request's body, once its headers are there."""
    header_timeout: float = 10.0
    """Seconds a client may take from connecting, or from a request's first byte, to the end of its headers."""
    max_connections: int = 1024
    """Connections at a time, as far as the process may open files. One more ends the oldest whose request is not there
    yet, or is itself ended."""
    watchdog: float = 60.0
    """Seconds of silence after which the engine's process is taken for hung, and replaced. A single pass must not take
    longer."""

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
class Settings:
    """A whole server. name: how the model is called in requests."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    limits: Limits = field(default_factory=Limits)
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
