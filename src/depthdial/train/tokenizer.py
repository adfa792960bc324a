"""The tokenizer of a model that is pre-trained: one that exists, or a byte-level BPE trained on the data itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from depthdial.models.base import load_tokenizer
from depthdial.train.data import Record

END = "<|endoftext|>"
DEFAULT = "train:4096"
LEAST = 257  # the bytes and the end of a document


def vocabulary_size(name: str) -> int | None:
    """The vocabulary asked for by "train:SIZE"; None for the name of a tokenizer that exists.

    Raises ValueError for a size that is no number or too small.
    """
    if not name.startswith("train:"):
        return None
    size = name.removeprefix("train:")
    if not re.fullmatch(r"\d+", size) or int(size) < LEAST:
        raise ValueError(f"tokenizer {name!r}: give train:SIZE with a size of at least {LEAST}, such as {DEFAULT}")
    return int(size)


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer that exists: a short name, folder or hub id. Raises ValueError, one line, if it cannot be had."""
    tokenizer = load_tokenizer(name)
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer {name} is a slow one without offsets; give a folder with tokenizer.json")
    return tokenizer


def train_tokenizer(records: Iterable[Record], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `size` tokens from the text of `records`, END among them as its end of a document.

    Digits stand alone, so that numbers are spelt the same way everywhere.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(records), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A sha256 of everything that decides which ids a text becomes."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())  # type: ignore[attr-defined]
    digest.update(json.dumps([tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token]).encode())
    return digest.hexdigest()


def _texts(records: Iterable[Record]) -> Iterator[str]:
    for record in records:
        yield record.text
        yield from (message["content"] for message in record.messages)
