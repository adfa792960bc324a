"""Conversations as data files spell them: names of roles, contents in parts, weights, calls of tools. Where one stands:
`shapes`."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]

# Who speaks, in any case, as chat templates call them.
ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "system": "system",
    "developer": "system",
}
# Turns that call a tool, and that a tool answers with.
CALLS = {"tool_call", "tool_calls", "function_call", "function-call"}
REPLIES = {
    "tool", "tools", "tool_response", "tool_result", "function", "function_response", "function-response",
    "observation", "ipython",
}  # fmt: skip
CALL_FIELDS, REPLY_FIELDS = ("tool_calls", "function_call"), ("tool_call_id",)
WHO, WHAT = ("role", "from"), ("content", "value")
# Fields of a message that say whether it is to be learnt: 0 and false are no, 1 and true are yes.
WEIGHTS = ("weight", "train", "training", "loss")
TEXT_PARTS = ("text", "input_text", "output_text")


def turn(user: str, assistant: str) -> list[Message]:
    """One question and one answer as a conversation."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


class Exclusion(Exception):
    """Of a row that is understood, and not to be learnt from; the text is the reason."""


@dataclass
class Talk:
    """A conversation. context: numbers of messages that are no target, whoever says them; unused: fields of messages
    that nothing is made of."""

    messages: list[Message] = field(default_factory=list)
    context: set[int] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)

    def __add__(self, later: "Talk") -> "Talk":
        context = self.context | {len(self.messages) + i for i in later.context}
        return Talk([*self.messages, *later.messages], context, self.unused | later.unused)

    def tidy(self) -> "Talk":
        """Tidied contents, up to the last answer before the first empty message (an empty system message is only
        dropped)."""
        kept = Talk(unused=set(self.unused))
        for number, message in enumerate(self.messages):
            content = tidy(message["content"])
            if not content and message["role"] != "system":
                if any(tidy(later["content"]) for later in self.messages[number + 1 :]):
                    kept.unused.add("messages after an empty one")
                break
            if content:
                if number in self.context:
                    kept.context.add(len(kept.messages))
                kept.messages.append({"role": message["role"], "content": content})
        while kept.messages and kept.messages[-1]["role"] != "assistant":
            kept.messages.pop()
            kept.context.discard(len(kept.messages))
        return kept


def conversation(value: list[Any], name: str) -> Talk:
    """The messages of a list that the field `name` holds. Calls of tools and what tools reply are kept as text, which
    every chat template can write: an assistant's `<tool_call>`, a user's `<tool_response>`.

    Raises ValueError, naming the field, for what is no message.
    """
    talk, tool_before = Talk(), False
    for number, message in enumerate(value):
        where = f"{name}[{number}]"
        if not isinstance(message, dict):
            raise ValueError(f"{where} is {kind(message)}; each message is an object with role and content")
        fields = {key: what for key, what in message.items() if what is not None}
        who, what = (next((key for key in keys if key in fields), None) for keys in (WHO, WHAT))
        if who is None:
            has = ", ".join(map(shown, fields)) or "nothing"
            raise ValueError(f"{where} has no role (it has {has}); give role and content")
        role, mark = _role(fields[who], f"{where}.{who}")
        calls = [key for key in CALL_FIELDS if fields.get(key)]
        if what is None and not calls:
            raise ValueError(f"{where} has no content; give it as text, or leave the message out")
        content = "" if what is None else text_of(fields[what], f"{where}.{what}")
        content = _tagged(mark, content) if mark else content
        content = "\n".join(filter(None, [content, *(_calls(fields[key], f"{where}.{key}") for key in calls)]))
        if tool_before and mark and talk.messages[-1]["role"] == role:  # templates want the speakers in turns
            talk.messages[-1]["content"] += f"\n{content}"
        else:
            talk.messages.append({"role": role, "content": content})
        tool_before = bool(mark) or bool(calls)
        weights = {key: fields[key] for key in WEIGHTS if key in fields and fields[key] in (0, 1)}
        if 0 in weights.values():
            talk.context.add(len(talk.messages) - 1)
        rest = {key for key, what in fields.items() if what not in ("", [], {})} - {who, what, *weights, *calls}
        talk.unused |= {f"{name}[].{key}" for key in rest.difference(REPLY_FIELDS)}
    return talk


def text_of(value: Any, where: str) -> str:
    """A content as text; text parts are joined as they are. Raises ValueError, naming the field, for anything else."""
    if isinstance(value, list):
        return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(value))
    if not isinstance(value, str):
        raise ValueError(f"{where} is {kind(value)}; give text")
    return whole(value, where)


def whole(text: str, where: str) -> str:
    """The text. ValueError, naming the field, for half of a surrogate pair, which JSON can write and no tokenizer
    can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds {text[error.start]!r}, half a character; write it as UTF-8") from None
    return text


def tidy(text: str) -> str:
    """Without blank lines before and white space after it. Indentation stays; a single space before a text whose other
    lines stand at the margin is none."""
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", text.replace("\r\n", "\n").rstrip())
    indent = re.match(r"[ \t]*", text)
    assert indent is not None
    return text if len(indent[0]) > 1 or "\t" in indent[0] or re.search(r"\n[ \t]", text) else text.lstrip()


def shown(name: object) -> str:
    """A field's name as a message can hold it."""
    return str(name) if str(name).isprintable() else ascii(name)


def _role(value: Any, where: str) -> tuple[str, str]:
    """Who speaks, as chat templates say it, and with what mark: that of a tool's turn, or none."""
    if not isinstance(value, str):
        raise ValueError(f"{where} is {kind(value)}; give one of {', '.join(ROLES)}")
    name = value.strip().rstrip(":").casefold()
    if name in CALLS:
        return "assistant", "tool_call"
    if name in REPLIES:
        return "user", "tool_response"
    if name not in ROLES:
        raise ValueError(f"{where} is {ascii(value)[:80]}, which is not known; give one of {', '.join(ROLES)}")
    return ROLES[name], ""


def _calls(value: Any, where: str) -> str:
    """The calls that a field beside the content holds: one, or a list."""
    calls = value if isinstance(value, list) else [value]
    functions = [call.get("function", call) if isinstance(call, dict) else call for call in calls]
    return "\n".join(_tagged("tool_call", _call(function, where)) for function in functions)


def _call(function: Any, where: str) -> str:
    """A call as JSON of name and arguments; these are often JSON in a text."""
    if isinstance(function, str):
        return whole(function, where)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f'{where} is no call of a tool; give {{"function": {{"name": ..., "arguments": ...}}}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # else as it was written
            arguments = json.loads(arguments)
    call = {"name": function["name"], "arguments": arguments}
    return whole(json.dumps(call, ensure_ascii=False, default=str), where)


def _tagged(mark: str, text: str) -> str:
    return f"<{mark}>\n{text.strip()}\n</{mark}>"


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return whole(part, where)
    if (
        not isinstance(part, dict)
        or not isinstance(part.get("text"), str)
        or part.get("type", "text") not in TEXT_PARTS
    ):
        what = f"of type {ascii(part['type'])[:80]}" if isinstance(part, dict) and "type" in part else kind(part)
        raise ValueError(f'{where} is {what}; a part of a content must be {{"type": "text", "text": ...}}')
    return whole(part["text"], f"{where}.text")


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
    }
    return names.get(type(value), "an object")
