"""Conversations as data files spell them: names of roles, contents in parts, weights. Where one stands: `shapes`."""

import re
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
# Turns that call a tool, or that a tool answers with.
TOOLS = {
    "tool", "tools", "tool_call", "tool_calls", "tool_response", "tool_result", "function", "function_call",
    "function_response", "function-call", "function-response", "observation", "ipython",
}  # fmt: skip
CALLS = ("tool_calls", "function_call")
WHO, WHAT = ("role", "from"), ("content", "value")
# Fields of a message that say whether it is to be learnt: 0 and false are no, 1 and true are yes.
WEIGHTS = ("weight", "train", "training", "loss")
TEXT_PARTS = ("text", "input_text", "output_text")


def turn(user: str, assistant: str) -> list[Message]:
    """One question and one answer as a conversation."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


class LeftOut(Exception):
    """A row that is understood, and not to be learnt from; the text is the reason."""


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
    """The messages of a list that the field `name` holds.

    Raises ValueError, naming the field, for what is no message; LeftOut for one with tool turns.
    """
    talk = Talk()
    for number, message in enumerate(value):
        where = f"{name}[{number}]"
        if not isinstance(message, dict):
            raise ValueError(f"{where} is {_kind(message)}; each message is an object with role and content")
        fields = {key: what for key, what in message.items() if what is not None}
        who, what = (next((key for key in keys if key in fields), None) for keys in (WHO, WHAT))
        if who is None:
            has = ", ".join(map(shown, fields)) or "nothing"
            raise ValueError(f"{where} has no role (it has {has}); give role and content")
        role = _role(fields[who], f"{where}.{who}")
        if role is None or any(fields.get(call) for call in CALLS):
            raise LeftOut("with tool turns, which are not known")
        if what is None:
            raise ValueError(f"{where} has no content; give it as text, or leave the message out")
        talk.messages.append({"role": role, "content": text_of(fields[what], f"{where}.{what}")})
        weights = {key: fields[key] for key in WEIGHTS if key in fields and fields[key] in (0, 1)}
        if 0 in weights.values():
            talk.context.add(number)
        rest = {key for key, what in fields.items() if what not in ("", [], {})} - {who, what, *weights}
        talk.unused |= {f"{name}[].{key}" for key in rest}
    return talk


def text_of(value: Any, where: str) -> str:
    """A content as text; text parts are joined as they are. Raises ValueError, naming the field, for anything else."""
    if isinstance(value, list):
        return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(value))
    if not isinstance(value, str):
        raise ValueError(f"{where} is {_kind(value)}; give text")
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


def _role(value: Any, where: str) -> str | None:
    """Who speaks, as chat templates say it; None for a tool."""
    if not isinstance(value, str):
        raise ValueError(f"{where} is {_kind(value)}; give one of {', '.join(ROLES)}")
    name = value.strip().rstrip(":").casefold()
    if name in TOOLS:
        return None
    if name not in ROLES:
        raise ValueError(f"{where} is {ascii(value)[:80]}, which is not known; give one of {', '.join(ROLES)}")
    return ROLES[name]


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return whole(part, where)
    if (
        not isinstance(part, dict)
        or not isinstance(part.get("text"), str)
        or part.get("type", "text") not in TEXT_PARTS
    ):
        kind = f"of type {ascii(part['type'])[:80]}" if isinstance(part, dict) and "type" in part else _kind(part)
        raise ValueError(f'{where} is {kind}; a part of a content must be {{"type": "text", "text": ...}}')
    return whole(part["text"], f"{where}.text")


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
    }
    return names.get(type(value), "an object")
