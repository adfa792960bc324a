"""The row shapes a data file may have, each as one small function (`SHAPES`); not the reading of files, see `data`.

An adapter takes one JSON object and returns a conversation, a plain text, or None when the row is not of its shape. The
first shape that fits wins, so the more specific ones (more fields) stand first. A new shape is one function and one
line in `SHAPES`.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

Message = dict[str, str]
Row = dict[str, Any]
Content = list[Message] | str | None

# Names of speakers in ShareGPT dumps, as chat templates call them.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def turn(user: str, assistant: str) -> list[Message]:
    """One question and one answer as a conversation."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def messages(row: Row) -> Content:
    match row:
        case {"messages": [*found]}:
            kept = [{"role": m["role"], "content": m["content"]} for m in found if _is_message(m, "role", "content")]
            return kept if len(kept) == len(found) else None


def sharegpt(row: Row) -> Content:
    match row:
        case {"conversations": [*found]}:
            known = [m for m in found if _is_message(m, "from", "value") and m["from"] in SPEAKERS]
            return (
                [{"role": SPEAKERS[m["from"]], "content": m["value"]} for m in known]
                if len(known) == len(found)
                else None
            )


def chain_of_thought(row: Row) -> Content:
    """FLAN's chain-of-thought rows: the reasoning, then the answer in a sentence."""
    match row:
        case {"prompt": str(prompt), "rationale": str(rationale), "answer": str(answer)}:
            reason, answer = rationale.strip(), answer.strip().rstrip(".")
            gap = " " if reason.endswith((".", "!", "?")) else "\n"
            return turn(prompt, f"{reason}{gap}The answer is {answer}.".strip() if answer else reason)


def instruction(row: Row) -> Content:
    match row:
        case {"instruction": str(task), "output": str(answer)} | {"instruction": str(task), "response": str(answer)}:
            given = row.get("input") or ""
            return turn(f"{task.strip()}\n\n{given.strip()}", answer) if isinstance(given, str) else None


def completion(row: Row) -> Content:
    match row:
        case {"prompt": str(prompt), "completion": str(answer)} | {"prompt": str(prompt), "response": str(answer)}:
            return turn(prompt, answer)


def question(row: Row) -> Content:
    """GSM8K: calculator marks `<<48/2=24>>` removed, the last line `#### 72` turned into a sentence."""
    match row:
        case {"question": str(asked), "answer": str(answer)}:
            spoken = re.sub(r"\n?####\s*(.+?)\s*$", r"\nThe answer is \1.", re.sub(r"<<[^<>]*>>", "", answer))
            return turn(asked, spoken)


def command(row: Row) -> Content:
    """tldr pages: what a command does, then its examples as a list."""
    match row:
        case {"command": str(name), "description": str(about), "examples": [*found]}:
            if not all(_is_message(e, "task", "command") for e in found):
                return None
            lines = [f"- {e['task'].strip()}:\n  `{e['command'].strip()}`" for e in found]
            return turn(f"How do I use the `{name.strip()}` command?", "\n".join([f"{about.strip()}\n", *lines]))


def task_and_code(row: Row) -> Content:
    """MBPP: the task in words, and the program."""
    match row:
        case {"text": str(task), "code": str(code)}:
            return turn(task, code)


def plain(row: Row) -> Content:
    match row:
        case {"text": str(text)}:
            return text


def _is_message(value: object, who: str, what: str) -> bool:
    return isinstance(value, dict) and isinstance(value.get(who), str) and isinstance(value.get(what), str)


class Shape(NamedTuple):
    """A row shape: the fields, as error messages show them, and its adapter."""

    fields: str
    adapt: Callable[[Row], Content]


SHAPES = (
    Shape("messages [{role, content}]", messages),
    Shape("conversations [{from, value}]", sharegpt),
    Shape("prompt + rationale + answer", chain_of_thought),
    Shape("instruction (+ input) + output|response", instruction),
    Shape("prompt + completion|response", completion),
    Shape("question + answer", question),
    Shape("command + description + examples [{task, command}]", command),
    Shape("text + code", task_and_code),
    Shape("text", plain),
)


def fit(row: Row) -> Content:
    """The conversation or text of `row` under the first shape that fits, or None when none does."""
    return next((found for shape in SHAPES if (found := shape.adapt(row)) is not None), None)
