"""The row shapes a data file may have, each as one small function (`SHAPES`); not the reading of files, see `data`.

An adapter takes the fields of one JSON object and returns a conversation, a plain text, or None when the row is not of
its shape. The first shape that fits wins, so the more specific ones (more fields) stand first. A new shape is one
function and one line in `SHAPES`. What a row holds beside its shape and `beside` knows (history, a system message, a
label) is not used, and `fit` says so.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from depthdial.train.messages import Exclusion, Talk, conversation, kind, shown, text_of, tidy, turn, whole

JsonRow = dict[str, Any]
Content = Talk | str | None

TALKS = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "input", "inputs")
ANSWERS = ("completion", "response", "output", "solution", "answer", "chosen", "targets")
"""Texts or lists of messages. Of trl's preferences what was chosen is learnt."""
SYSTEMS = ("system", "system_prompt", "system_message")
NAMES_OF_ROWS = ("source", "split")
"""Fields that say where a row is from: `data` reads them."""
EMPTY = (None, "", [], {})
# GSM8K's own notation: what its calculator reads, and the last line.
CALCULATOR, LAST_LINE = r"<<[-+*/().,\d\s=%$]*>>", r"\n####[ \t]*([-+$]?\d[\d,.]*%?)\s*$"
SHORT = 40
"""Characters of an answer that can stand in a sentence."""


class Fields:
    """The fields of one row that hold something, and which of them were read."""

    def __init__(self, row: JsonRow):
        self.row, self.names = row, set[str]()

    def get(self, *names: str, of: type | tuple[type, ...] = str) -> Any:
        """The first of these fields that is of that type, None where none is."""
        for name in names:
            if name in self.row and isinstance(value := self.row[name], of):
                self.names.add(name)
                return whole(value, name) if isinstance(value, str) else value
        return None

    def name(self, *names: str) -> str | None:
        """The first of these fields that is a text or a list of messages."""
        return next((name for name in names if _is_said(self.row.get(name))), None)

    def talk(self, name: str, role: str) -> Talk:
        """A field that is a list of messages, or a text by that role."""
        value = self.get(name, of=(list, str))
        return conversation(value, name) if isinstance(value, list) else Talk([{"role": role, "content": value}])


class Fit(NamedTuple):
    """What a row is, and its fields that nothing is made of."""

    content: Talk | str
    unused: frozenset[str]


def messages(row: Fields) -> Content:
    return next((conversation(row.get(name, of=list), name) for name in TALKS if _is_list(row.row.get(name))), None)


def chain_of_thought(row: Fields) -> Content:
    """FLAN's chain-of-thought rows: the reasoning, then the answer, in a sentence where it is a few words."""
    prompt, rationale, answer = row.get("prompt"), row.get("rationale"), row.get("answer")
    if prompt is None or rationale is None or answer is None:
        return None
    reason, answer = tidy(rationale), tidy(answer)
    if len(answer) > SHORT or "\n" in answer:
        return Talk(turn(_with_context(row, prompt), f"{reason}\n\n{answer}"))
    answer = answer.rstrip(".")
    gap = " " if reason.endswith((".", "!", "?")) else "\n"
    return Talk(turn(_with_context(row, prompt), f"{reason}{gap}The answer is {answer}.".strip() if answer else reason))


def pair(row: Fields) -> Content:
    """A question and its answer: texts, or lists of messages of which the second is to be learnt."""
    asks, answers = row.name(*QUESTIONS), row.name(*ANSWERS)
    if asks is None or answers is None:
        return None
    question, answer = row.talk(asks, "user"), row.talk(answers, "assistant")
    if isinstance(row.row[asks], list):
        question.context = set(range(len(question.messages)))
    else:
        first, after = question.messages[0], (row.get("input"), row.get("context")) if asks == "instruction" else ()
        first["content"] = _join(first["content"], *after) if after else _with_context(row, first["content"])
    if asks == "question" and isinstance(row.row[answers], str):
        answer.messages[0]["content"] = _spoken(answer.messages[0]["content"])
    return question + answer if answer.messages[0]["role"] == "assistant" else answer  # which holds the question, too


def preference(row: Fields) -> Content:
    """trl's, with the prompt in it."""
    return conversation(row.get("chosen", of=list), "chosen") if _is_list(row.row.get("chosen")) else None


def command(row: Fields) -> Content:
    """tldr pages: what a command does, then its examples as a list."""
    name, about, examples = row.get("command"), row.get("description"), row.get("examples", of=list)
    if name is None or about is None or examples is None:
        return None
    if not all(
        isinstance(e, dict) and isinstance(e.get("task"), str) and isinstance(e.get("command"), str) for e in examples
    ):
        return None
    lines = [f"- {e['task'].strip()}:\n  `{e['command'].strip()}`" for e in examples]
    listing = whole("\n".join([f"{about.strip()}\n", *lines]), "examples")
    return Talk(turn(f"How do I use the `{name.strip()}` command?", listing))


def task_and_code(row: Fields) -> Content:
    """MBPP, known by its tests: the task in words, and the program. (`code` beside `text` alone may be a language.)"""
    task, code = row.get("text"), row.get("code")
    is_mbpp = any(name in row.row for name in ("test_list", "task_id"))
    return Talk(turn(task, code)) if is_mbpp and task is not None and code is not None else None


def plain(row: Fields) -> Content:
    return row.get("text", "chosen")


class RowShape(NamedTuple):
    """A row shape: the fields, as error messages show them, and its adapter."""

    fields: str
    adapt: Callable[[Fields], Content]


SHAPES = (
    RowShape("messages|conversations [{role|from, content|value}]", messages),
    RowShape("prompt + rationale + answer", chain_of_thought),
    RowShape(f"{'|'.join(QUESTIONS)} (+ context) + {'|'.join(ANSWERS)}", pair),
    RowShape("command + description + examples [{task, command}]", command),
    RowShape("text + code + test_list|task_id", task_and_code),
    RowShape("chosen [{role, content}]", preference),
    RowShape("text|chosen", plain),
)


def fit(row: JsonRow) -> Fit | None:
    """The conversation or text of `row` under the first shape that fits, or None when none does.

    A field that holds nothing is as good as left out, unless no shape fits without it. Raises ValueError, naming the
    field, for one that breaks the row's shape; Exclusion for a row that is not to be learnt from.
    """
    full = {name: value for name, value in row.items() if value not in EMPTY}
    for fields in (full, {**row, **dict.fromkeys((name for name in row if row[name] is None), "")}):
        for shape in SHAPES:
            row_fields = Fields(fields)
            content = shape.adapt(row_fields)
            if content is not None:
                talk = beside(row_fields, content) if isinstance(content, Talk) else content
                for name in NAMES_OF_ROWS:
                    row_fields.get(name)
                unused = {name for name in full if name not in row_fields.names}
                return Fit(talk, frozenset(unused | (talk.unused if isinstance(talk, Talk) else set())))
    return None


def misfit(row: object) -> str:
    """Why no shape fits a row, and what would."""
    if not isinstance(row, dict):
        return f"the row is {kind(row)}; give an object with fields"
    has = {name: value for name, value in row.items() if value not in EMPTY}
    asks, answers = (next((n for n in names if n in has), None) for names in (QUESTIONS, (*ANSWERS, "rationale")))
    for name in (*TALKS, asks, answers, "text"):
        if name in has and not (_is_list(has[name]) if name in TALKS else _is_said(has[name])):
            wants = "a list of {role, content}" if name in TALKS else "text"
            return f"{name} is {kind(has[name])}; give {wants}"
    if asks or answers:
        missing, names = ("answer", ANSWERS) if asks else ("question", QUESTIONS)
        return f"{asks or answers} stands without {missing}; give it as one of {', '.join(names)}"
    names = f"no field is known ({', '.join(map(shown, row))[:200]})" if row else "there are no fields"
    return f"{names}; accepted: {'; '.join(shape.fields for shape in SHAPES)}"


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_said(value: Any) -> bool:
    return isinstance(value, str) or (_is_list(value) and all(isinstance(message, dict) for message in value))


def beside(row: Fields, talk: Talk) -> Talk:
    """The conversation with what other fields of its row say of it: earlier turns, a system message, a false label."""
    if row.get("label", of=bool) is False:
        raise Exclusion("labelled false")
    if (earlier := row.get("history", of=list)) is not None:
        talk = _history(earlier) + talk
    if not any(message["role"] == "system" for message in talk.messages) and (system := row.get(*SYSTEMS)) is not None:
        talk = Talk([{"role": "system", "content": system}]) + talk
    return talk


def _history(earlier: list[Any]) -> Talk:
    """Earlier turns: pairs of question and answer, or messages."""
    if all(isinstance(one, dict) for one in earlier):
        return conversation(earlier, "history")
    talk = Talk()
    for number, pair in enumerate(earlier):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"history[{number}] is no pair of question and answer; give [[question, answer], ...]")
        question, answer = (text_of(text, f"history[{number}][{i}]") for i, text in enumerate(pair))
        talk += Talk(turn(question, answer))
    return talk


def _spoken(answer: str) -> str:
    """GSM8K's answers without the calculator's marks `<<48/2=24>>`, their last line `#### 72` as a sentence; any other
    answer as it is. They are known by that line, with a number that was calculated above it."""
    last = re.search(LAST_LINE, answer)
    if last is None:
        return answer
    above = answer[: last.start()]
    is_gsm8k = re.search(CALCULATOR, above) or re.sub(r"\D", "", last[1]) in re.sub(r"[,\s]", "", above)
    return f"{re.sub(CALCULATOR, '', above)}\nThe answer is {last[1]}." if is_gsm8k else answer


def _with_context(row: Fields, prompt: str) -> str:
    """A question, after the text that it is about."""
    context = row.get("context")
    return prompt if context is None else _join(context, prompt)


def _join(*texts: str | None) -> str:
    return "\n\n".join(text for text in map(tidy, filter(None, texts)) if text)
