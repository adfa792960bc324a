"""What may be given as a prompt or as a conversation, and the plain form of it: text, or token ids.

What is neither is refused with a ValueError that says what a prompt is; nothing is guessed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from torch import Tensor

Plain = str | list[int]
Prompt = str | Sequence[int] | np.ndarray | Tensor | Mapping[str, Any]
"""Text; token ids as a sequence, or as an array or tensor of whole numbers; or what a tokenizer returns: its
`input_ids`, less the places that its `attention_mask` leaves out."""
Message = Mapping[str, Any]
"""{"role": ..., "content": text}; the content may be a list of parts {"type": "text", "text": ...}."""

REMEDY = "a prompt is a text, or token ids: a list of whole numbers, an array, a tensor, or what the tokenizer returns"
_BESIDE = frozenset(("attention_mask", "token_type_ids"))
_CONVERSATION = 'a conversation is a list of {"role": ..., "content": text}'


def many(prompts: Any) -> list[Plain]:
    """One prompt, or several in order, each in its plain form. ValueError names the prompt that is none."""
    if isinstance(prompts, str):
        return [_text(prompts, "the prompt")]
    if isinstance(prompts, Mapping | np.ndarray | Tensor):
        return list(_rows(prompts, "the prompt"))
    items = _items(prompts, "the prompt")
    if not items:
        return []
    if _is_number(items[0]):
        return [_ids(items, "the prompt")]
    names = (f"prompt {i}" if len(items) > 1 else "the prompt" for i in range(len(items)))
    return [one(item, name) for item, name in zip(items, names, strict=True)]


def one(prompt: Any, name: str = "the prompt") -> Plain:
    """Exactly one prompt in its plain form; an array may have one row. ValueError where it is none, or several."""
    if isinstance(prompt, str):
        return _text(prompt, name)
    if isinstance(prompt, Mapping | np.ndarray | Tensor):
        rows = _rows(prompt, name)
        if len(rows) != 1:
            raise ValueError(f"{name} has {len(rows)} rows where one prompt is wanted; give them one by one")
        return rows[0]
    items = _items(prompt, name)
    if items and not _is_number(items[0]):
        raise ValueError(f"{name} is {_kind(prompt)} of {_kind(items[0])}: {REMEDY}")
    return _ids(items, name)


def conversation(messages: Any, name: str = "the conversation") -> list[dict[str, Any]]:
    """Messages as chat templates take them: a role, and the content as one text. ValueError says which is none."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise ValueError(f"{name} is {_kind(messages)}: {_CONVERSATION}")
    turns = [_message(message, f"message {i} of {name}") for i, message in enumerate(messages)]
    if not turns:
        raise ValueError(f"{name} has no message: {_CONVERSATION}")
    return turns


def conversations(messages: Any) -> list[list[dict[str, Any]]]:
    """One conversation, or several in order. ValueError as `conversation`."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise ValueError(f"the conversation is {_kind(messages)}: {_CONVERSATION}")
    items = list(messages)
    if items and all(isinstance(item, Iterable) and not isinstance(item, str | bytes | Mapping) for item in items):
        return [conversation(item, f"conversation {i}") for i, item in enumerate(items)]
    return [conversation(items)] if items else []


def _message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"{name} is {_kind(message)}: {_CONVERSATION}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise ValueError(f'{name} has the role {role!r}; give one, such as "user"')
    if isinstance(content, list | tuple):
        content = "".join(_part(part, f"part {i} of {name}") for i, part in enumerate(content))
    elif not isinstance(content, str):
        raise ValueError(f"{name} has {_kind(content)} as its content; give a text, or a list of text parts")
    return {**message, "role": role, "content": _text(content, name)}


def _part(part: Any, name: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        what = f"of type {part.get('type')!r}" if isinstance(part, Mapping) else _kind(part)
        raise ValueError(f'{name} is {what}; this model reads {{"type": "text", "text": ...}} alone')
    return part["text"]


def _text(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds {text[error.start]!r}, half a character, at place {error.start}: it was not UTF-8 where it "
            "was read"
        ) from None
    return str(text)


def _rows(prompt: Any, name: str) -> list[list[int]]:
    """The token ids of an array [T] or [B, T], or of a tokenizer's answer, row by row."""
    mask = None
    if isinstance(prompt, Mapping):
        keys = set(prompt)
        if "input_ids" not in keys or keys - _BESIDE - {"input_ids"}:
            raise ValueError(f"{name} is a mapping of {', '.join(map(str, prompt)) or 'nothing'}: {REMEDY}")
        prompt, mask = prompt["input_ids"], prompt.get("attention_mask")
    rows = _lists(prompt, name)
    if mask is None:
        return rows
    if isinstance(mask, np.ndarray | Tensor):
        mask = mask != 0
    masks = _lists(mask, f"the attention_mask of {name}", _flags)
    if [len(row) for row in rows] != [len(row) for row in masks]:
        raise ValueError(f"{name} has an attention_mask of another shape than its input_ids")
    return [[i for i, seen in zip(*pair, strict=True) if seen] for pair in zip(rows, masks, strict=True)]


def _lists(values: Any, name: str, read: Callable[[Sequence[Any], str], list[int]] | None = None) -> list[list[int]]:
    """The rows of an array or a list of one or two dimensions. read: what is in a row; None: token ids."""
    read = read or _ids
    if isinstance(values, np.ndarray | Tensor):
        if values.ndim not in (1, 2):
            raise ValueError(
                f"{name} is an array of {values.ndim} dimensions: token ids are [T], or [B, T] for several"
            )
        try:
            items = values.tolist()
        except (TypeError, RuntimeError) as error:  # no values, or in a form of their own: meta, sparse
            raise ValueError(f"{name} is {_kind(values)} that cannot be read ({error}): {REMEDY}") from None
        if values.ndim == 1:
            return [read(items, name)]
    else:
        items = _items(values, name)
        if not items or _is_number(items[0]):
            return [read(items, name)]
    return [read(_items(row, name), f"row {i} of {name}") for i, row in enumerate(items)]


def _items(values: Any, name: str) -> list[Any]:
    """What is in a sequence, or what an iterator gives. Bytes hold no text, and a set has no order."""
    if isinstance(values, bytes | bytearray | memoryview):
        raise ValueError(f"{name} is {_kind(values)}; decode it to text first: {REMEDY}")
    if isinstance(values, Tensor | np.ndarray):
        return _lists(values, name)[0] if values.ndim == 1 else list(values)
    if isinstance(values, str | Set | Mapping) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is {_kind(values)}: {REMEDY}")
    return list(values)


def _ids(items: Sequence[Any], name: str) -> list[int]:
    return [_whole(item, name) for item in items]


def _flags(items: Sequence[Any], name: str) -> list[int]:
    if bad := [item for item in items if item not in (0, 1)]:
        raise ValueError(f"{name} has {bad[0]!r}; it tells by 0 and 1 which places are padding")
    return [int(item) for item in items]


def _whole(value: Any, name: str) -> int:
    """A whole number, of Python, numpy or torch."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    try:
        if not isinstance(value, bool | np.bool_ | Tensor | np.ndarray):
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"{name} has token {value!r}; tokens are whole numbers")


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0
    return isinstance(value, int | float | complex | np.generic) and not isinstance(value, str | bytes)


def _kind(value: Any) -> str:
    return "None" if value is None else f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
