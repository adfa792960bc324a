"""The text of the quality benchmark: about equal parts of instruction, maths and prose that no recipe trains on.

- instruction: the side of the recipe's own files that training holds out (`holdout(..., 0.01, seed)`), without the
  school maths, and without documents of which much was trained on all the same: P3 asks many questions about one
  passage, so that half of the held-out side by words stands, passage by passage, in training documents.
- maths: GSM8K's test split. prose: the test split of WikiText-2, and Wikipedia articles.

Only tokens of the texts count, not what the chat template writes: its system message is in every training document.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from depthdial.maps.classes import TokenClasses
from depthdial.models.calibration import Batch
from depthdial.train.data import Record, holdout, read
from depthdial.train.pack import prepare

HELD_OUT = 0.01
"""Share of documents that `depthdial.train.run.train` holds out."""
GRAM = 13
"""Words in a row by which a passage is recognised, as in the GPT-3 paper's check for contamination."""
MOST_SEEN = 0.25
"""Share of such word sequences of a document that may occur in training documents (templates repeat, too)."""


@dataclass(frozen=True)
class Held:
    """Batches of packed rows, each of one kind of text; what each token is; and what the text was made of."""

    batches: list[Batch]
    groups: dict[str, list[Tensor]]
    """Kinds of text, and "answers": bool [B, T] per batch."""
    classes: list[dict[str, Tensor]]
    """By batch, then by class of token: bool [B, T]."""
    told: dict[str, Any]


def recipe() -> ModuleType:
    """recipes/smollm2.py, which says what is trained on."""
    spec = spec_from_file_location("smollm2", Path(__file__).parents[2] / "recipes" / "smollm2.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def held_out(
    data: Path, tokenizer: PreTrainedTokenizerBase, tokens: int, length: int = 512, batch: int = 4, seed: int = 0
) -> Held:
    """The text: `tokens` tokens of each kind, what the template wrote included, rounded up to whole batches.

    data: a folder with train/, eval/ and text/. batch: rows of `length` tokens per batch. Where there is less than was
    asked for, all is taken. Raises ValueError where a file is missing or a kind of text does not fill one batch.
    """
    told = recipe()
    files = [data / "train" / f"{name}.jsonl.gz" for name in told.FILES]
    trained, held = holdout(read(files, drop=(*told.SHARE_ALIKE, *told.TWICE_OR_TEST)), HELD_OUT, seed)
    kinds = {
        "instruction": [r for r in held if r.source != "gsm8k_train"],
        "maths": read(data / "eval" / "gsm8k_test.jsonl.gz"),
        "prose": read([data / "text" / "wikitext2_test.jsonl.gz", data / "text" / "wikipedia_demo.jsonl.gz"]),
    }
    seen = seen_shares(trained, [r for records in kinds.values() for r in records])
    finder = TokenClasses(tokenizer)
    batches: list[Batch] = []
    classes: list[dict[str, Tensor]] = []
    groups: dict[str, list[Tensor]] = {name: [] for name in (*kinds, "answers")}
    made: dict[str, Any] = {}
    for kind, records in kinds.items():
        fresh = [r for r in records if seen[id(r)] <= MOST_SEEN]
        rows = prepare(fresh, tokenizer, length, seed=seed, targets="all")
        full = [i for i in range(len(rows)) if rows.target[i].mean() > 0.5]
        random.Random(seed).shuffle(full)
        full = full[: min(len(full) // batch, -(-tokens // (length * batch))) * batch]
        if not full:
            raise ValueError(f"{kind}: the text does not fill {batch} rows of {length} tokens; give more, or --length")
        for at in range(0, len(full), batch):
            columns = [rows[i] for i in full[at : at + batch]]
            made_batch = {name: torch.stack([c[name] for c in columns]) for name in columns[0]}
            found = finder.rows(made_batch["input_ids"], made_batch["position_ids"])
            made_batch["labels"] = made_batch["labels"].masked_fill(found["template"], -100)
            batches.append(made_batch)
            classes.append(found)
            for name in groups:
                is_it = found["answer"] if name == "answers" else torch.full_like(found["answer"], name == kind)
                groups[name].append(is_it)
        made[kind] = {
            "documents": len(records),
            "left_out_as_seen": len(records) - len(fresh),
            "rows": len(full),
            "tokens": len(full) * length,
            "sources": sorted({r.source for r in fresh}),
        }
    return Held(batches, groups, classes, made)


def seen_shares(trained: Sequence[Record], held: Sequence[Record]) -> dict[int, float]:
    """For each held-out record, by `id`: what share of its sequences of `GRAM` words occurs in training records."""
    numbers: dict[str, int] = {}
    own = [_grams(_words(r), numbers) for r in held]
    wanted = np.unique(np.concatenate(own))
    found = np.zeros(len(wanted), bool)
    for start in range(0, len(trained), 4096):
        text = [word for record in trained[start : start + 4096] for word in (*_words(record), "\0")]
        grams = np.unique(_grams(text, numbers))
        at = np.searchsorted(wanted, grams).clip(max=len(wanted) - 1)
        found[at[wanted[at] == grams]] = True
    return {
        id(record): float(found[np.searchsorted(wanted, grams)].mean()) if len(grams) else 0.0
        for record, grams in zip(held, own, strict=True)
    }


def _words(record: Record) -> list[str]:
    return " ".join([record.text, *(m["content"] for m in record.messages)]).lower().split()


def _grams(words: Sequence[str], numbers: dict[str, int]) -> np.ndarray:
    """A 64-bit hash of each sequence of `GRAM` words, uint64 [max(0, words - GRAM + 1)]."""
    ids = np.array([numbers.setdefault(word, len(numbers) + 1) for word in words], np.uint64)
    count = max(0, len(ids) - GRAM + 1)
    hashes = np.zeros(count, np.uint64)
    for k in range(GRAM):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[k : k + count]
        hashes ^= hashes >> np.uint64(29)
    return hashes
