"""What a request may say. Types are strict, unknown fields are refused, and so is what the engine cannot do."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Text = Annotated[str, Field(min_length=1, max_length=1000)]
TokenId = Annotated[int, Field(ge=0)]
MOST_CHOICES = 64


class Strict(BaseModel):
    """No silent conversion, no unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Body(Strict):
    """A whole request."""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, data: Any) -> Any:
        if not isinstance(data, dict):  # no JSON object: another type of content, whose refusal is pydantic's
            return data
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):  # JSON can write half a surrogate pair, and no end of brackets
            raise ValueError("the body has text that is no Unicode, or is nested too deeply") from None
        return data


class StreamOptions(Strict):
    include_usage: bool | None = None
    """Send a last chunk with the number of tokens."""
    include_obfuscation: bool | None = None
    """Known, and without meaning here."""


class Generating(Body):
    """What both kinds of request have in common. Fields in the last group are OpenAI's: known, and refused where they
    would have to change the answer."""

    model: str = Field(max_length=1000)
    temperature: float | None = Field(None, ge=0, le=2, description="1 where it is not given; 0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="Draw from this many likeliest tokens; 0 and -1 are all.")
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Equal seeds give equal answers.")
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    budget: float | None = Field(None, gt=0, le=1, description="True cost relative to dense; 1.0 is the base.")
    lossless: bool | None = Field(None, description="The untouched base's own text, with drafts to speed it up.")
    return_depth: bool | None = Field(None, description="Add depth, cost and layers of each token to the answer.")

    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("frequency_penalty", "presence_penalty", "logit_bias")
    @classmethod
    def _neutral(cls, value: Any) -> Any:
        if value:
            raise ValueError("this server does not support it; leave it out")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Generating:
        if self.lossless and self.budget not in (None, 1.0):
            raise ValueError("lossless text is the untouched base's; leave budget out")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream")
        return self


class CompletionRequest(Generating):
    """POST /v1/completions"""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(description="Text or tokens, one or many.")
    max_tokens: int | None = Field(None, ge=1, le=2**31, description="16 where it is not given.")
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None

    @field_validator("echo", "suffix")
    @classmethod
    def _unsupported(cls, value: Any) -> Any:
        if value:
            raise ValueError("this server does not support it; leave it out")
        return value

    @model_validator(mode="after")
    def _all_are_given_out(self) -> CompletionRequest:
        if self.best_of not in (None, 1) and self.best_of != (self.n or 1):
            raise ValueError("best_of: this server gives out every text it generates; leave it out")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One entry per prompt."""
        prompt: Any = self.prompt
        return prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """One turn. What an answer's message carries beside its content is taken back as long as it says nothing."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class PlainFormat(Strict):
    type: Literal["text"]


class ChatRequest(Generating):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    max_tokens: int | None = Field(None, ge=1, le=2**31, description="Until the answer ends where it is not given.")
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: PlainFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs need logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are two names of one thing; give one")
        return self


class MapTurn(Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class MapRequest(Body):
    """POST /v1/depth/map"""

    messages: Annotated[list[MapTurn], Field(min_length=1, max_length=2048)]
    format: Literal["html", "parquet"] = "html"
    budget: float | None = Field(None, gt=0, le=1)
    title: str | None = Field(None, max_length=200)
