"""What is to be answered: the set of short prompts that comes along, or a file of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import as_file, files
from pathlib import Path

from depthdial.engine.llm import LLM
from depthdial.maps.prompts import Prompt, PromptFile
from depthdial.models.chat import TemplateRefused

SHIPPED = "default"


def prompts_of(source: str, limit: float | None = None) -> list[Prompt]:
    """Prompts of a file (see `PromptFile`; answers that it brings are left out), or with "default" the 400 of ten kinds
    that come along. limit: as many of them, the first of each kind by turns, in the order of the file.

    Raises ValueError, one line, for what is no file of prompts.
    """
    if source != SHIPPED:
        return _spread([*PromptFile(source)], limit)
    with as_file(files("depthdial.evaluate.written").joinpath("prompts.jsonl")) as path:
        return _spread([*PromptFile(path)], limit)


def digest_of(source: str) -> str:
    """A hash of the file."""
    if source != SHIPPED:
        return str(PromptFile(source).told["sha256"])
    with as_file(files("depthdial.evaluate.written").joinpath("prompts.jsonl")) as path:
        return str(PromptFile(path).told["sha256"])


def name_of(source: str) -> str:
    """What results may say of it: no place of this machine's files."""
    return SHIPPED if source == SHIPPED else Path(source).name


def tokens_of(prompts: Iterable[Prompt], llm: LLM, room: int) -> list[list[int]]:
    """Each prompt as tokens, in the model's chat template where it has one. room: tokens that an answer may take.

    Raises ValueError, one line, for a prompt that leaves less room in the model's context, or that its template
    refuses.
    """
    found = []
    for prompt in prompts:
        try:
            ids = _tokens(prompt, llm)
        except TemplateRefused as error:
            raise ValueError(f"prompt {prompt.id!r}: the model's chat template refuses it ({error.reason})") from error
        if len(ids) + room > llm.context:
            raise ValueError(
                f"prompt {prompt.id!r} has {len(ids)} tokens, and the model's context of {llm.context} holds an answer "
                f"of {room}, too; shorten it, or give less in --max-tokens"
            )
        found.append(ids)
    return found


def text_of(prompt: Prompt) -> str:
    """What a reader is shown of it."""
    return prompt.prompt or "\n".join(f"{m['role']}: {m['content']}" for m in _asked(prompt))


def _tokens(prompt: Prompt, llm: LLM) -> list[int]:
    if prompt.messages or llm.tokenizer.chat_template:
        return llm.chat_tokens(_asked(prompt))
    return llm.tokenizer(prompt.prompt, verbose=False)["input_ids"]


def _asked(prompt: Prompt) -> list[dict[str, str]]:
    """The conversation up to where an answer is due."""
    messages = [*prompt.messages] or [{"role": "user", "content": prompt.prompt}]
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _spread(prompts: list[Prompt], limit: float | None) -> list[Prompt]:
    if limit is None or limit >= len(prompts):
        return prompts
    turn: dict[str, int] = {}
    ranked = []
    for place, prompt in enumerate(prompts):
        turn[prompt.task] = turn.get(prompt.task, -1) + 1
        ranked.append((turn[prompt.task], place))
    return [prompts[place] for place in sorted(place for _, place in sorted(ranked)[: int(limit)])]
