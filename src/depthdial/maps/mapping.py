"""A whole map: prompts in, a folder of Parquet parts out, part by part, so that an interruption costs one part.

A part is a fixed stretch of the prompts and is mapped on its own: it comes out the same whoever maps it, and whenever.
Shards are therefore parts by turns, and may share a folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from depthdial.core.dial import PromptBudget
from depthdial.engine.llm import LLM
from depthdial.engine.sampling import SamplingParams
from depthdial.maps.card import map_card
from depthdial.maps.folder import MapFolder
from depthdial.maps.prompts import Prompt, PromptSource
from depthdial.maps.record import Recorder
from depthdial.maps.schema import DepthMap, MapRow
from depthdial.maps.store import part_file, write_map
from depthdial.maps.texts import MapText, conversation_text
from depthdial.models.chat import TemplateRefused


@dataclass(frozen=True)
class MapSettings:
    """What a map is made with, beside the model and the prompts."""

    max_new_tokens: int = 64
    """Most tokens to generate, greedily, where no answer is given; 0 maps the prompts alone."""
    chat: bool = False
    """Put prompts into the model's chat template."""
    truncate: bool = False
    """Cut what is longer than the model's context (the end of it) instead of refusing it."""
    scores: bool = False
    base: bool = True
    alternatives: int = 0
    batch_tokens: int = 2048
    part_size: int = 128
    """Texts of one Parquet part."""

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 0), ("alternatives", 0), ("batch_tokens", 1), ("part_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")

    def raw(self) -> MapSettings:
        """The same without the chat template."""
        return replace(self, chat=False)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells one map from another: `truncate` only decides whether there is a map."""
        return {name: value for name, value in vars(self).items() if name != "truncate"}


@dataclass(frozen=True)
class MapShard:
    """Parts `number`, `number + count`, ... of a map; the whole of it is 1 of 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> MapShard:
        """From "i/n". Raises ValueError for what is no shard."""
        number, slash, count = text.partition("/")
        if not slash or not number.isdecimal() or not count.isdecimal() or not 1 <= int(number) <= int(count):
            raise ValueError(f"shard {text!r} must be i/n with 1 <= i <= n, 2/4 for example")
        return cls(int(number), int(count))

    def parts(self, total: int) -> range:
        """Its parts of `total`."""
        return range(self.number - 1, total, self.count)


WHOLE = MapShard()


@dataclass
class MapTotals:
    """What one call mapped (what `resume` found there is not counted)."""

    texts: int = 0
    tokens: int = 0
    generated: int = 0
    layers: int = 0
    prompt_cost: float = 0.0
    cost: float = 0.0
    seconds: float = 0.0
    parts: int = 0

    def add(self, rows: Sequence[MapRow]) -> None:
        self.parts += 1
        self.texts += len(rows)
        self.tokens += sum(len(row.token_ids) for row in rows)
        self.generated += sum(int(row.generated.sum()) for row in rows)
        self.layers += sum(int(row.layers_used.sum()) for row in rows)
        self.prompt_cost += sum(float(row.costs(generated=False).sum()) for row in rows)
        self.cost += sum(float(row.costs(generated=True).sum()) for row in rows)

    def to_json(self) -> dict[str, Any]:
        """With means in place of sums: of layers over all tokens, of true costs over those read and those written."""
        prompt_tokens = self.tokens - self.generated
        return {
            **vars(self),
            "layers": self.layers / self.tokens if self.tokens else None,
            "prompt_cost": self.prompt_cost / prompt_tokens if prompt_tokens else None,
            "cost": self.cost / self.generated if self.generated else None,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
        }


class Mapper:
    """Prompts to rows with one model at one budget of answers and one of prompts.

    model, tokenizer: converted, as `depthdial.load` gives them; name: for the record. budget None is what the plug-in
    recommends, prompt_budget None what an `LLM` does. Raises ValueError for budgets that the model cannot have.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        budget: float | None,
        settings: MapSettings,
        prompt_budget: PromptBudget | None = None,
    ):
        vocabulary = model.config.get_text_config().vocab_size
        if settings.alternatives > vocabulary:
            raise ValueError(f"alternatives must be at most {vocabulary}, the vocabulary, not {settings.alternatives}")
        self.settings, self.tokenizer = settings, tokenizer
        # without the prefix cache a part does not depend on the parts before it
        self.llm = LLM.of(model, tokenizer, budget, prompt_budget, prefix_cache=False)
        self.recorder = Recorder(
            model, tokenizer, self.llm.dials(), name, self.llm.budget, settings.scores, settings.base,
            settings.alternatives, settings.batch_tokens, self.llm.engine, self.llm.prompt_budget,
        )  # fmt: skip

    def rows(self, prompts: Sequence[Prompt]) -> list[MapRow]:
        """One row per prompt. Raises ValueError for a prompt that is empty or longer than the context."""
        return self.recorder.rows(self.texts(prompts))

    def texts(self, prompts: Sequence[Prompt]) -> list[MapText]:
        """The prompts as tokens, with their answers: those given, or generated now, or none."""
        texts = [self._text(prompt) for prompt in prompts]
        limit = self.settings.max_new_tokens
        open_ = [i for i, prompt in enumerate(prompts) if limit and not prompt.closed]
        if not open_:
            return texts
        greedy = SamplingParams(max_tokens=limit, temperature=0.0)  # a map can be made again
        outputs = self.llm.generate([list(texts[i].ids) for i in open_], greedy)
        for i, output in zip(open_, outputs, strict=True):
            if output.error is not None:  # half an answer must not be kept as data
                raise ValueError(f"prompt {texts[i].id!r}: generating failed ({output.error}); go on with --resume")
            prompt, answer = output.prompt_token_ids, output.token_ids
            ids, marks = [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)
            texts[i] = MapText(ids, marks, texts[i].id, texts[i].task, texts[i].group)
        return texts

    def _text(self, prompt: Prompt) -> MapText:
        if prompt.messages and prompt.closed:
            with _template(prompt):
                whole = conversation_text(self.tokenizer, prompt.messages, prompt.id, prompt.task)
            start, answer, marks = list(whole.ids), [], list(whole.generated)
        else:
            with _template(prompt):
                start = self._prompt_tokens(prompt)
            answer = [] if prompt.answer is None else token_ids(self.tokenizer, prompt.answer)
            if prompt.answer is not None and not answer:
                raise ValueError(f"prompt {prompt.id!r} has an empty answer; leave it out to have one generated")
            marks = [False] * len(start)
        room = self.llm.context - len(answer)
        if not prompt.closed:
            room -= self.settings.max_new_tokens
        if len(start) > room:
            if not self.settings.truncate or room < 1:
                raise ValueError(
                    f"prompt {prompt.id!r} has {len(start)} tokens, and the model's context of {self.llm.context} has "
                    f"room for {max(0, room)} beside its answer; shorten it, or pass --truncate"
                )
            start, marks = start[:room], marks[:room]
        if prompt.closed and not answer and not any(marks):
            raise ValueError(
                f"conversation {prompt.id!r}: no token of its answer is left in the context, or none can be told apart "
                "in what the chat template writes; shorten it, or give `prompt` and `answer` instead of `messages`"
            )
        marks = marks + [True] * len(answer)
        return MapText([*start, *answer], marks, prompt.id, prompt.task, prompt.group, forced=any(marks))

    def _prompt_tokens(self, prompt: Prompt) -> list[int]:
        if prompt.messages or self.settings.chat:
            messages = prompt.messages or ({"role": "user", "content": prompt.prompt},)
            return self.llm.chat_tokens(messages)
        return token_ids(self.tokenizer, prompt.prompt, special=True)


@contextmanager
def _template(prompt: Prompt) -> Iterator[None]:
    """ValueError where the model's chat template refuses a conversation."""
    try:
        yield
    except TemplateRefused as error:
        raise ValueError(
            f"conversation {prompt.id!r}: the model's chat template refuses it ({error.reason})"
        ) from error


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False) -> list[int]:
    """Token ids; special: with what the tokenizer puts before a text."""
    ids = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    assert isinstance(ids, list)
    return ids


def make(
    source: PromptSource,
    mapper: Mapper,
    folder: MapFolder,
    shard: MapShard = WHOLE,
    licence: str | None = None,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> MapTotals:
    """Map all prompts of a shard into the folder, leaving out parts that are there; returns what was done now.

    licence: of the texts, for the card, which is written with the last part. report: told of texts done, and of how
    many there will be.
    """
    totals, began = MapTotals(), time.perf_counter()
    size = mapper.settings.part_size
    parts = -(-source.total // size)
    mine = [number for number in shard.parts(parts) if not part_file(folder.path, number).is_file()]
    due = set(mine)
    for number, prompts in enumerate(_blocks(source, size)):
        if number in due:
            rows = mapper.rows(prompts)
            write_map(DepthMap(mapper.recorder.facts, rows), part_file(folder.path, number))
            totals.add(rows)
            report("mapping", totals.texts, min(source.total, len(mine) * size))
    totals.seconds = time.perf_counter() - began
    if all(part_file(folder.path, number).is_file() for number in range(parts)):
        folder.finish(map_card(folder, mapper.recorder.facts, licence))
    return totals


def _blocks(prompts: Iterable[Prompt], size: int) -> Iterator[list[Prompt]]:
    """`size` prompts at a time."""
    rest = iter(prompts)
    while block := list(islice(rest, size)):
        yield block
