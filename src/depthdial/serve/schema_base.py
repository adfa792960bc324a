"""What all parts of a request have in common: strict types, nulls that say nothing, and words for what is refused."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from depthdial.core.dial import prompt_budget


def read_at(value: Any) -> Any:
    """The value, if it is a prompt budget."""
    try:
        return prompt_budget(value)
    except ValueError:
        raise ValueError('give a number above 0 and up to 1.0, or "same"') from None


ReadAt = Annotated[Annotated[float, Field(gt=0, le=1)] | Literal["same"], BeforeValidator(read_at)]
UnusedField = Annotated[Any, Field(description="Known, and without meaning here.")]


class Strict(BaseModel):
    """No silent conversion, no unknown field; a null is a field that is left out, unless it must be given."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):  # its refusal is pydantic's
            return data
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in data.items() if value is not None or name in required}


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


def wrong(field: str, why: str) -> PydanticCustomError:
    """What is wrong with one field, where it shows only beside another."""
    return PydanticCustomError("field", "{why}", {"param": field, "why": why})


def refuse_unsupported(present: Any, value: Any) -> Any:
    """The value, unless it asks for what this server does not do."""
    if present:
        raise ValueError("this server does not support it; leave it out")
    return value


def no_tools(value: Any) -> Any:
    """The value, unless it asks for tools or tells of them."""
    if value:
        raise ValueError("this server has no tools; leave out what names or calls them")
    return value
