"""The turns of a conversation. What an answer's message carries beside its content is taken back and not used."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from depthdial.serve.schema_base import Strict, UnusedField, no_tools

ROLES = ("system", "developer", "user", "assistant")
_PART = {"type", "text", "cache_control", "annotations"}
"""Fields of a part of a message; the last two are of other servers, and do not change what it says."""


class TextPart(Strict):
    type: Literal["text"]
    text: str
    cache_control: UnusedField = None
    annotations: UnusedField = None


class ChatMessage(Strict):
    """One turn. Fields that tell of tools stand before the content: where there are any, the content may be missing for
    their sake, and they are what the client has to know of."""

    role: Literal["system", "developer", "user", "assistant"]
    tool_calls: list[Any] | None = None
    function_call: Any | None = None
    tool_call_id: str | None = None
    audio: Any | None = None
    content: str | list[TextPart] = Field(description="A text, or parts of it.")

    name: UnusedField = None
    refusal: UnusedField = None
    annotations: UnusedField = None
    reasoning: UnusedField = None
    reasoning_content: UnusedField = None
    reasoning_details: UnusedField = None
    thinking_blocks: UnusedField = None
    provider_specific_fields: UnusedField = None
    cache_control: UnusedField = None
    id: UnusedField = None

    @field_validator("role", mode="before")
    @classmethod
    def _role(cls, value: Any) -> Any:
        if value in ("tool", "function"):
            return no_tools(value)
        if value not in ROLES:
            raise ValueError(f"the role must be one of {', '.join(ROLES)}")
        return value

    @field_validator("tool_calls", "function_call", "tool_call_id")
    @classmethod
    def _no_tools(cls, value: Any) -> Any:
        return no_tools(value)

    @field_validator("audio")
    @classmethod
    def _no_sound(cls, value: Any) -> Any:
        if value:
            raise ValueError("this server hears nothing; give the text")
        return value

    @field_validator("content", mode="before")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        if value is None or value == []:
            raise ValueError("it is null or empty; give a text")
        if not isinstance(value, str | list):
            raise ValueError("give a text, or a list of text parts")
        for part in value if isinstance(value, list) else []:
            _check(part)
        return value

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


def _check(part: Any) -> None:
    if not isinstance(part, dict):
        raise ValueError("each part must be an object with type and text")
    kind = part.get("type")
    if kind != "text":
        what = f"a part of type {kind[:50]!r}" if isinstance(kind, str) else "a part without a type"
        raise ValueError(f"{what} cannot be read; only parts of type 'text' can")
    if not isinstance(part.get("text"), str):
        raise ValueError("a part of type 'text' has no text")
    if unknown := [name for name, value in part.items() if name not in _PART and value is not None]:
        raise ValueError(f"a part has the field {unknown[0][:100]!r}; this server knows no such thing")
