"""What a request may say. Types are strict, unknown fields are refused, and so is what the engine cannot do.

A field that is null is one that is left out. Where a field may have several types its own check comes first, so that
what is wrong is said of the client's own field, and not of a type that was tried. Messages are in `schema_messages`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from depthdial.serve.schema_base import Body, ReadAt, Strict, UnusedField, no_tools, refuse_unsupported, wrong
from depthdial.serve.schema_messages import ChatMessage

TokenId = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]
MOST_CHOICES = 128
MOST_STOPS, LONGEST_STOP = 16, 1000
DEFAULT_LENGTH = 16
"""Tokens of a completion that names no length, if the server gives so many."""


READ_AT = 'True cost that the prompt is read at: 1.0 is the untouched base, "same" as budget. Left out: the server\'s.'


class StreamOptions(Strict):
    include_usage: bool | None = None
    """Send a last chunk with the number of tokens."""
    include_obfuscation: bool | None = None
    """Known, and without meaning here."""


class GenerationRequest(Body):
    """What both kinds of request have in common. Fields in the last group are OpenAI's: known, and refused where they
    would have to change the answer."""

    model: str = Field(max_length=1000)
    temperature: float | None = Field(None, ge=0, le=2, description="Left out: the model's own; 0 is greedy.")
    top_p: float | None = Field(None, ge=0, le=1, description="Left out: the model's own; 0 is greedy.")
    top_k: int | None = Field(None, ge=-1, description="Draw from this many likeliest tokens; 0 and -1 are all.")
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Equal seeds give equal answers.")
    stop: str | list[str] | None = Field(None, description="Up to 16 texts of up to 1000 characters.")
    ignore_eos: bool | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="Against tokens, by how often written.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Against tokens that were written.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Against tokens of prompt and text.")
    logit_bias: dict[str, Bias] | None = Field(None, description="Added to the logits of tokens, named by number.")
    min_p: float | None = Field(None, ge=0, le=1, description="Least probability, as a share of the likeliest's.")
    min_tokens: int | None = Field(None, ge=0, le=2**31, description="No end token before so many.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    budget: float | None = Field(
        None, gt=0, le=1, description="True cost of what is written, relative to dense; 1.0 is the base."
    )
    prompt_budget: ReadAt | None = Field(None, description=READ_AT)
    lossless: bool | None = Field(None, description="The untouched base's own text, with drafts to speed it up.")
    return_depth: bool | None = Field(None, description="Add depth, cost and layers of each token to the answer.")

    user: UnusedField = None
    metadata: UnusedField = None
    service_tier: UnusedField = None
    store: UnusedField = None
    safety_identifier: UnusedField = None
    prompt_cache_key: UnusedField = None
    prompt_cache_retention: UnusedField = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> Any:
        many = [value] if isinstance(value, str) else value
        if not isinstance(many, list) or any(not isinstance(stop, str) for stop in many):
            raise ValueError("give a text, or a list of texts")
        if len(many) > MOST_STOPS:
            raise ValueError(f"up to {MOST_STOPS} stop strings are taken, not {len(many)}")
        if "" in many:
            raise ValueError("a stop string is empty; leave it out")
        if any(len(stop) > LONGEST_STOP for stop in many):
            raise ValueError(f"a stop string may have up to {LONGEST_STOP} characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _tokens(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if bad := [token for token in value or () if not (token.isascii() and token.isdigit() and len(token) < 10)]:
            raise ValueError(f"{bad[0][:20]!r} is no token; tokens are whole numbers from 0")
        return value

    @model_validator(mode="after")
    def _agree(self) -> GenerationRequest:
        if self.lossless and self.budget not in (None, 1.0):
            raise wrong("budget", "lossless text is the untouched base's; leave budget out")
        if self.lossless and self.prompt_budget not in (None, 1.0, "same"):
            raise wrong("prompt_budget", "lossless text is the untouched base's, prompt and all; leave it out")
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "they need stream: true")
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions"""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] | None = Field(
        None, description="Text or tokens, one or many. Left out: a text from its beginning."
    )
    max_tokens: int | None = Field(None, ge=0, le=2**31, description="Left out: 16, or what the server gives.")
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = None
    echo: bool | None = Field(None, description="Begin with the prompt; with logprobs, those of its tokens, too.")
    suffix: str | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        if isinstance(value, list):
            if not value:
                raise ValueError("it is empty; give at least one token")
            inner = [token for one in value for token in (one if isinstance(one, list) else [one])]
            if all(isinstance(token, int) and not isinstance(token, bool) for token in inner):
                if bad := [token for token in inner if token < 0]:
                    raise ValueError(f"{bad[0]} is no token; tokens are whole numbers from 0")
                if len({isinstance(one, list) for one in value}) == 1:
                    return value
            if all(isinstance(one, str) for one in value):
                return value
        elif isinstance(value, str):
            return value
        raise ValueError("give a text, a list of texts, a list of tokens (whole numbers), or a list of such lists")

    @field_validator("suffix")
    @classmethod
    def _absent(cls, value: Any) -> Any:
        return refuse_unsupported(value, value)

    @model_validator(mode="after")
    def _all_are_given_out(self) -> CompletionRequest:
        if self.best_of not in (None, 1) and self.best_of != (self.n or 1):
            raise wrong("best_of", "this server gives out every text it generates; leave it out")
        return self

    @property
    def prompts(self) -> list[Any]:
        """One entry per prompt: a text, tokens, or None for a text from its beginning."""
        prompt: Any = self.prompt
        return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


class PlainFormat(Strict):
    type: Literal["text"]


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    max_tokens: int | None = Field(None, ge=0, le=2**31, description="Left out: until the answer ends.")
    max_completion_tokens: int | None = Field(None, ge=0, le=2**31, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: PlainFormat | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any | None = None
    function_call: Any | None = None
    parallel_tool_calls: UnusedField = None
    modalities: list[Literal["text"]] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @field_validator("tools", "functions")
    @classmethod
    def _no_tools(cls, value: list[Any] | None) -> list[Any] | None:
        return no_tools(value)

    @field_validator("tool_choice", "function_call")
    @classmethod
    def _no_choice(cls, value: Any) -> Any:
        return None if value in ("none", "auto") else no_tools(value)

    @field_validator("continue_final_message")
    @classmethod
    def _absent(cls, value: bool | None) -> bool | None:
        return refuse_unsupported(value, value)

    @field_validator("add_generation_prompt")
    @classmethod
    def _always(cls, value: bool | None) -> bool | None:
        return refuse_unsupported(value is False, value)

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", "they need logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise wrong("max_tokens", "it and max_completion_tokens are two names of one thing; give one")
        return self


class MapRequest(Body):
    """POST /v1/depth/map"""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    model: str | None = Field(None, max_length=1000)
    format: Literal["html", "parquet"] = "html"
    budget: float | None = Field(None, gt=0, le=1)
    prompt_budget: ReadAt | None = Field(None, description=READ_AT)
    title: str | None = Field(None, max_length=200)
