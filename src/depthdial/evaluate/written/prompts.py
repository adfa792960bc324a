"""What is to be answered: the set of short prompts that comes along, or a file of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib.resources import as_file, files
from pathlib import Path

from depthdial.engine.llm import LLM
from depthdial.maps.prompts import Prompt, PromptFile, by_turns
from depthdial.models.chat import TemplateRefused

DEFAULT = "default"


def prompts_of(source: str, limit: float | None = None) -> list[Prompt]:
    """Prompts of a file (see `PromptFile`; answers that it brings are left out), or with "default" the 400 of ten kinds
    that come along. limit: as many of them, the first of each kind by turns, in the order of the file.

    Raises ValueError, one line, for what is no file of prompts.
    """
    with _file(source) as path:
        prompts = [*PromptFile(path)]
    if limit is None:
        return prompts
    return [prompts[place] for place in by_turns([prompt.task for prompt in prompts], int(limit))]


def digest_of(source: str) -> str:
    """A hash of the file."""
    with _file(source) as path:
        return str(PromptFile(path).identity["sha256"])


def _file(source: str) -> AbstractContextManager[Path]:
    if source != DEFAULT:
        return nullcontext(Path(source))
    return as_file(files("depthdial.evaluate.written").joinpath("prompts.jsonl"))


def source_name(source: str) -> str:
    """What results may say of it: no place of this machine's files."""
    return DEFAULT if source == DEFAULT else Path(source).name


def prompt_tokens(prompts: Iterable[Prompt], llm: LLM, room: int) -> list[list[int]]:
    """Each prompt as tokens, in the model's chat template where it has one. room: tokens that an answer may take.

    Raises ValueError, one line, for a prompt that leaves less room in the model's context, or that its template
    refuses.
    """
    result = []
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
        result.append(ids)
    return result


def text_of(prompt: Prompt) -> str:
    """What a reader is shown of it."""
    return prompt.prompt or "\n".join(f"{m['role']}: {m['content']}" for m in _messages(prompt))


def _tokens(prompt: Prompt, llm: LLM) -> list[int]:
    if prompt.messages or llm.tokenizer.chat_template:
        return llm.chat_tokens(_messages(prompt))
    return llm.tokenizer(prompt.prompt, verbose=False)["input_ids"]


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    """The conversation up to where an answer is due."""
    messages = [*prompt.messages] or [{"role": "user", "content": prompt.prompt}]
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages
