"""Chat templates, filled so that what a message says is never a control token.

A template's marks (`<|im_start|>`) are tokens, and whoever could write them in a message could write a system message.
So a conversation whose contents hold signs that such marks are made of is rendered twice, the second time with
stand-ins for those signs. If both give the same control tokens, none of them came from a content. If not, the tokens
are those of the second rendering, in which all control tokens are the template's, with the signs put back as text.
Templates may cut, trim or move contents; they are never told apart by looking for them.

Not seen are marks that are no tokens: where `[INST]` is written as plain text, a message can hold the same text.
"""

from __future__ import annotations

import json
import re
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import AddedToken, PreTrainedTokenizerBase

Message = dict[str, Any]
SIGNS, NAMES = range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE)
"""Private characters, which no template and no tokenizer knows: for signs of a message, and for control tokens."""
SPEAKERS = re.compile("system|user|human|assistant|bot|model|turn", re.IGNORECASE)
"""What the name of a mark of turns holds; it may be an added token without the flag of a special one."""
ANSWERS = ("assistant", "model")
"""Roles whose contents a model wrote: `<think>` and its like are tokens there, as they were when it wrote them."""


class TemplateRefused(ValueError):
    """The chat template does not take a conversation, for a reason of its own."""

    def __init__(self, reason: str):
        super().__init__(f"the chat template refuses a conversation ({reason})")
        self.reason = reason


class Tokens(NamedTuple):
    """Token ids, and of each the characters it stands for, (start, end) in the text that was rendered."""

    ids: list[int]
    offsets: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Mask:
    """A conversation with stand-ins, one character for one; back: stand-in to sign, for `str.translate`."""

    messages: list[Message]
    back: dict[int, str]


class ChatTemplate:
    """A tokenizer's chat template. It keeps nothing of the conversations."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def text(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The conversation as the template writes it; prompt: with the beginning of an answer.

        Raises TemplateRefused, with the template's own reason.
        """
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))
        except Exception as error:  # a template is a program of somebody else's
            raise TemplateRefused(" ".join(f"{error}".split()) or type(error).__name__) from error

    def ids(self, messages: Sequence[Message], prompt: bool = False) -> list[int]:
        """The same as token ids. Raises TemplateRefused; ValueError where a content holds control tokens that the
        tokenizer cannot read as text."""
        text, mask = self.text(messages, prompt), self.mask(messages)
        if mask is None:
            return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return self.tokens(text, self.text(mask.messages, prompt), mask)[0].ids

    def mask(self, messages: Sequence[Message]) -> Mask | None:
        """The conversation with stand-ins for signs that control tokens begin or end with; None if it holds none."""
        used = set("".join(_texts(list(messages))))
        signs = sorted(sign for sign in used if not self.signs.isdisjoint(unicodedata.normalize("NFKC", sign)))
        if not signs:
            return None
        free = list(islice((code for code in SIGNS if chr(code) not in used), len(signs)))
        if len(free) < len(signs):
            raise ValueError("a message holds all private characters of Unicode; leave some of them out")
        stand_ins = dict(zip(map(ord, signs), free, strict=True))
        return Mask(
            [self._masked(dict(m), stand_ins, m.get("role")) for m in messages],
            {code: chr(sign) for sign, code in stand_ins.items()},
        )

    def tokens(self, text: str, masked: str, mask: Mask) -> tuple[Tokens, bool]:
        """The tokens of a rendered text, and are they those of `masked`, the rendering of `mask.messages`?"""
        plain, safe = self._tokens(text), self._tokens(masked)
        written, own = self._controls(plain, text), self._controls(safe, masked)
        if masked.translate(mask.back) != text:  # the template reads contents: places are no longer the same
            written, own = ([id for id, _ in found] for found in (written, own))
        if written == own:
            return plain, False
        marked = self._marks.sub(lambda found: self._stand_ins[found[0]], masked)
        found = self._plain.encode(marked.translate(mask.back), add_special_tokens=False)
        return Tokens(found.ids, found.offsets), True

    @cached_property
    def added(self) -> dict[int, AddedToken]:
        """Tokens that a text of a message must not become, by id."""
        source = json.dumps(self.tokenizer.chat_template or "", ensure_ascii=False)
        return {
            id: token
            for id, token in self.tokenizer.added_tokens_decoder.items()
            if token.content.strip() and (token.special or _is_mark(token.content, source))
        }

    @cached_property
    def signs(self) -> frozenset[str]:
        """First and last characters of those tokens."""
        return frozenset(sign for token in self.added.values() for sign in (token.content[0], token.content[-1]))

    def _masked(self, value: Any, stand_ins: dict[int, int], role: object) -> Any:
        if isinstance(value, str):
            pieces = self._spoken.split(value) if role in ANSWERS else [value]
            return "".join(piece if i % 2 else piece.translate(stand_ins) for i, piece in enumerate(pieces))
        if isinstance(value, Mapping):
            return {k: v if _kept(k, v) else self._masked(v, stand_ins, role) for k, v in value.items()}
        return [self._masked(v, stand_ins, role) for v in value] if isinstance(value, list | tuple) else value

    def _tokens(self, text: str) -> Tokens:
        if not self.tokenizer.is_fast:
            return Tokens(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], ())
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return Tokens(found["input_ids"], found["offset_mapping"])

    def _controls(self, tokens: Tokens, text: str) -> list[tuple[int, int]]:
        """Control tokens with their places. The token for what is unknown is one only where its name is written."""
        places = [start for start, _ in tokens.offsets] or [0] * len(tokens.ids)
        unknown = self.tokenizer.unk_token_id
        return [
            (id, start)
            for id, start in zip(tokens.ids, places, strict=True)
            if id in self.added and (id != unknown or text.startswith(self.added[id].content, start))
        ]

    @cached_property
    def _spoken(self) -> re.Pattern[str]:
        """What a model's own text may hold, as a group: marks that are neither special tokens nor begin turns."""
        own = [t.content for t in self.added.values() if not t.special and not SPEAKERS.search(t.content)]
        return re.compile(f"({_either(own)})")

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        whole = [rf"(?<!\w){re.escape(t.content)}(?!\w)" for t in self.added.values() if t.single_word]
        rest = _either([t.content for t in self.added.values() if not t.single_word])
        return re.compile("|".join([*whole, rest]))

    @cached_property
    def _stand_ins(self) -> dict[str, str]:
        """For each control token's text one of the same length that nobody can guess."""
        return {
            token.content: "".join(chr(secrets.choice(NAMES)) for _ in token.content) for token in self.added.values()
        }

    @cached_property
    def _plain(self) -> Tokenizer:
        """The tokenizer with other names for its control tokens: their texts are text."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                "a message holds the text of a control token, which this tokenizer cannot read as text; leave it out, "
                "or give a folder with tokenizer.json"
            )
        told, names = json.loads(backend.to_str()), self._stand_ins
        model = told["model"]
        for token in told["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): id for piece, id in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        if "merges" in model:
            model["merges"] = [(a, b) for a, b in model["merges"] if names.keys().isdisjoint((a, b, a + b))]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        return Tokenizer.from_str(json.dumps({**told, "truncation": None, "padding": None}))


def _is_mark(content: str, source: str) -> bool:
    """Is an added token without the flag of a special one a mark of this template?"""
    if json.dumps(content, ensure_ascii=False)[1:-1] in source:
        return True
    return not (content[0].isalnum() or content[-1].isalnum()) and SPEAKERS.search(content) is not None


def _either(texts: list[str]) -> str:
    """A pattern for any of these texts, the longest first; it fits nothing where there are none."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def _kept(name: str, value: Any) -> bool:
    """Is this a word that templates decide by, and no text of anybody's?"""
    return name in ("role", "type") and isinstance(value, str) and value.isidentifier()


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for k, v in value.items() if not _kept(k, v) for text in _texts(v)]
    return [text for v in value for text in _texts(v)] if isinstance(value, list | tuple) else []
