"""Records to token ids with a target mask: which tokens the model is to learn. Packing into rows is in `pack`."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from depthdial.models.chat import ChatTemplate, Mask, TemplateRefused, Tokens
from depthdial.train.data import Record, by_reason
from depthdial.train.messages import Message

Targets = Literal["assistant", "all"]
Span = tuple[int, int]

# End-of-document tokens in use, for tokenizers whose eos is the end of a chat turn.
DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")
BATCH = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """One document. input_ids: int32 [T]; target: bool [T], True where the token is to be learnt (not shifted)."""

    input_ids: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Rendering:
    """A document as text. spans: character ranges to learn; bare: written without a chat template, so that begin and
    end tokens are still to be added; ends: as in `Record`.
    """

    text: str
    spans: Sequence[Span]
    bare: bool
    ends: bool = True


class Renderer:
    """Records to text, with the character spans of the assistant's messages, end mark included; with targets "all", of
    every message. What the template itself writes is the same in every document and never a target: routers would
    meet a budget by skipping it alone (docs/log.md).

    Templates hold no marks of what the assistant said, so each sequence of roles is rendered once with placeholders for
    the contents; filled in, it must equal the template's own rendering. Where it does not (the template edits
    contents), the spans come from rendering the conversation message by message, each rendering a prefix of the whole.
    Where that fails too, ValueError. Without a chat template a conversation is written as `User: ...`, `Assistant: ...`
    with blank lines between.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, targets: Targets = "assistant"):
        if targets not in ("assistant", "all"):
            raise ValueError(f"targets is {targets!r}; choose 'assistant' or 'all'")
        self.tokenizer, self.targets = tokenizer, targets
        self.template = ChatTemplate(tokenizer)
        self.frames: dict[tuple[str, ...], list[str] | None] = {}
        marks = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        # The end mark of an answer: a special token with nothing but white space before it; empty where there is none.
        either = "|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or "(?!)"
        self.end = re.compile(rf"(?:\s*(?:{either}))?")

    def __call__(self, record: Record) -> Rendering:
        if not record.messages:
            return Rendering(record.text, [(0, len(record.text))], bare=True, ends=record.ends)
        bare = self.tokenizer.chat_template is None
        text, spans = self._plain(record) if bare else self._chat(record)
        if spans is None:
            raise ValueError(
                f"{_place(record)}: the chat template rewrites a conversation as it grows, so answers cannot be "
                "separated from questions; train on all tokens (targets='all') or give single-turn rows"
            )
        return Rendering(text, spans, bare)

    def tokens(self, record: Record, rendering: Rendering, mask: Mask) -> tuple[Tokens, Rendering]:
        """Tokens of a conversation whose contents may hold control tokens, as text, and what they are tokens of."""
        safe = self(replace(record, messages=tuple(mask.messages)))
        tokens, own = self.template.tokens(rendering.text, safe.text, mask)
        return tokens, safe if own else rendering

    def _plain(self, record: Record) -> tuple[str, list[Span]]:
        heads = [("\n\n" if i else "") + f"{m['role'].capitalize()}: " for i, m in enumerate(record.messages)]
        return self._fill(record, record.messages, [*heads, ""])

    def _chat(self, record: Record) -> tuple[str, list[Span] | None]:
        messages = record.messages
        whole = self.template.text(messages)
        roles = tuple(m["role"] for m in messages)
        if roles not in self.frames:
            self.frames[roles] = self._frame(roles)
        if frame := self.frames[roles]:
            trimmed = [{**m, "content": m["content"].strip()} for m in messages]  # as many templates do
            for filling in (messages, trimmed):
                text, spans = self._fill(record, filling, frame)
                if text == whole:
                    return whole, spans
        # contents that the template edits are not to be found in its text: all of it is learnt, marks included
        if self.targets == "all" and not record.context:
            return whole, [(0, len(whole))]
        return whole, self._prefixes(record, whole)

    def _frame(self, roles: Sequence[str]) -> list[str] | None:
        """What the template writes before, between and after the contents: len(roles) + 1 strings."""
        holes = [f"\ue000{i}\ue001" for i in range(len(roles))]  # private-use characters: no template knows them
        rest, frame = self.template.text([{"role": r, "content": h} for r, h in zip(roles, holes, strict=True)]), []
        for hole in holes:
            before, mark, rest = rest.partition(hole)
            if not mark:
                return None
            frame.append(before)
        return [*frame, rest]

    def _fill(self, record: Record, messages: Sequence[Message], frame: Sequence[str]) -> tuple[str, list[Span]]:
        text, spans = frame[0], []
        for number, (message, after) in enumerate(zip(messages, frame[1:], strict=True)):
            start, text = len(text), text + message["content"] + after
            answer = message["role"] == "assistant"
            if (answer or self.targets == "all") and number not in record.context:
                end = self.end.match(after) if answer else None
                spans.append((start, start + len(message["content"]) + (end.end() if end else 0)))
        return text, spans

    def _prefixes(self, record: Record, whole: str) -> list[Span] | None:
        spans, messages = [], record.messages
        for i, message in enumerate(messages):
            if message["role"] == "assistant" and i not in record.context:
                head = self.template.text(messages[:i], prompt=True)
                grown = self.template.text(messages[: i + 1]).rstrip()
                if not (whole.startswith(grown) and grown.startswith(head)):
                    return None
                spans.append((len(head), len(grown)))
        return spans


class Vocabulary:
    """Refuses tokens that the model's embedding, of `size` tokens, does not hold: also where a message only names one,
    which would be read as text, but was added to the tokenizer to be learnt."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int):
        self.tokenizer, self.size = tokenizer, size
        self.added = {str(token): id for id, token in tokenizer.added_tokens_decoder.items() if id >= size}
        self.names = re.compile("|".join(map(re.escape, sorted(self.added, key=len, reverse=True))) or "(?!)")

    def __call__(self, ids: np.ndarray, text: str, where: str) -> None:
        """Raises ValueError for a document with such a token."""
        largest = int(ids.max(initial=0))
        if largest >= self.size:
            self._refuse(cast(str, self.tokenizer.convert_ids_to_tokens(largest)), largest, where)
        if name := self.names.search(text):
            self._refuse(name[0], self.added[name[0]], where)

    def _refuse(self, name: str, id: int, where: str) -> None:
        raise ValueError(
            f"{where}: the token {name!r} has id {id}, but the model's embedding holds {self.size} tokens; take the "
            "tokenizer that the model was saved with, or resize the embedding"
        )


def separator_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token id written after a plain document: eos, or where the chat template ends its turns with eos, the
    vocabulary's own end-of-document token (`<|endoftext|>`, 0, for SmolLM2). Raises ValueError where there is neither.
    """
    template, eos, bos = (
        str(tokenizer.chat_template or ""),
        str(tokenizer.eos_token or ""),
        str(tokenizer.bos_token or ""),
    )
    first = [] if eos in template or "eos_token" in template else [eos]
    vocabulary = tokenizer.get_vocab()
    for name in [*first, *DOCUMENT_ENDS, eos, bos]:
        if name in vocabulary:
            return vocabulary[name]
    raise ValueError(f"tokenizer {tokenizer.name_or_path} has no end-of-document token; give one as separator=ID")


def encode_all(
    records: Iterable[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    separator: int | None = None,
    targets: Targets = "assistant",
    vocabulary: int | None = None,
    strict: bool = True,
) -> Iterator[Document]:
    """Tokenise records in order, `BATCH` at a time. What a message says is never a control token.

    Targets are the assistant's tokens with their end mark (with "all", the user's tokens too) and all tokens of a
    plain text. Plain text, and conversations of a tokenizer without chat template, get the tokenizer's bos
    if it adds one by itself, and `separator` at the end (default: `separator_token`). vocabulary: rows of the model's
    embedding. strict: False leaves conversations out that the chat template refuses: documents without tokens, which
    the log counts. Raises ValueError for a tokenizer without offsets, a template that cannot be followed or takes no
    record at all, or a token that is not in the embedding.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path} is a slow one without offsets; give a folder with tokenizer.json"
        )
    end = separator_token(tokenizer) if separator is None else separator
    begin = [t for t in tokenizer("")["input_ids"] if t == tokenizer.bos_token_id][:1]
    render, source = Renderer(tokenizer, targets), iter(records)
    check = None if vocabulary is None else Vocabulary(tokenizer, vocabulary)
    count, reasons = 0, dict[str, list[str]]()

    def rendering_of(record: Record) -> Rendering:
        try:
            return render(record)
        except TemplateRefused as error:
            if strict:
                raise ValueError(f"{_place(record)}: {error}") from None
            reasons.setdefault(str(error), []).append(_place(record))
            return Rendering("", (), bare=False)

    while batch := list(islice(source, BATCH)):
        texts = [rendering_of(record) for record in batch]
        count += len(batch)
        tokens = tokenizer(
            [r.text for r in texts],
            add_special_tokens=False,  # a chat template writes its own
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        pairs = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
        for record, rendering, (ids, offsets) in zip(batch, texts, pairs, strict=True):
            text = rendering.text
            if text and (mask := render.template.mask(record.messages)) is not None:
                (ids, offsets), rendering = render.tokens(record, rendering, mask)
            target = _overlap(np.asarray(offsets, np.int64).reshape(-1, 2), rendering.spans)
            before, after = (begin, [end] if rendering.ends else []) if rendering.bare else ([], [])
            document = Document(
                np.array([*before, *ids, *after], np.int32),
                np.concatenate([np.zeros(len(before), bool), target, np.ones(len(after), bool)]),
            )
            if check is not None:
                check(document.input_ids, text, _place(record))
            yield document
    left = sum(map(len, reasons.values()))
    if left:
        log.warning("%d of %d records left out: %s", left, count, by_reason(reasons))
    if left == count and count:
        raise ValueError(f"no record can be learnt from: {by_reason(reasons)}")


def encode(
    record: Record,
    tokenizer: PreTrainedTokenizerBase,
    *,
    separator: int | None = None,
    targets: Targets = "assistant",
) -> Document:
    """`encode_all` for one record."""
    return next(encode_all([record], tokenizer, separator=separator, targets=targets))


def _place(record: Record) -> str:
    return record.where or f"source {record.source}"


def _overlap(offsets: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """bool [T]: does the token, characters offsets[t] = (start, end), share a character with a span?"""
    if not spans:
        return np.zeros(len(offsets), bool)
    starts, ends = np.array(spans).T
    return ((offsets[:, 1:] > starts) & (offsets[:, :1] < ends)).any(1)
