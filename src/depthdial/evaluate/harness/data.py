"""The harness's data sets from a folder of files, in place of the Hugging Face hub.

Prompts, metrics and splits stay the harness's own: rows only get the columns that its templates ask for. A file is
`STEM.jsonl.gz`, `STEM.jsonl` or `STEM.parquet` in the folder or in one of its subfolders `eval`, `text` and `train`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet

JsonRow = dict[str, Any]
SUBFOLDERS = ("", "eval", "text", "train")
ENDINGS = (".jsonl.gz", ".jsonl", ".parquet")
EVALUATION_SPLITS = ("validation", "test")
ENCODING = "utf-8-sig"
"""A byte order mark, which some programs write first, is no part of the text."""


@dataclass(frozen=True)
class Format:
    """Where the splits of a data set of the hub are found, and what their rows look like."""

    splits: Mapping[str, Sequence[str]]
    """For each split of the hub's data set the stems of files that may hold it, best first."""
    columns: Sequence[str]
    """Columns that every row of a file must have."""
    convert: Callable[[JsonRow], JsonRow] = dict
    """From a row of a file to one of the hub's."""
    part: str | None = None
    """The column that must equal the hub's configuration (a subject of MMLU)."""


def _coqa(row: JsonRow) -> JsonRow:
    """A story and its conversation; the harness asks the last question of it."""
    turns = row["turns"]
    others = range(1, max((len(turn["answers"]) for turn in turns), default=1))
    return {
        "id": row["id"],
        "source": row.get("source", ""),
        "story": row["story"],
        "questions": {"input_text": [turn["question"] for turn in turns]},
        "answers": {"input_text": [turn["answers"][0] for turn in turns]},
        "additional_answers": {
            str(i - 1): {"input_text": [turn["answers"][min(i, len(turn["answers"]) - 1)] for turn in turns]}
            for i in others
        },
    }


def _arc(kind: str) -> Format:
    splits = {
        "test": (f"{kind}_test", f"{kind}_val"),
        "validation": (f"{kind}_val",),
        "train": (f"{kind}_train",),
    }
    return Format(splits, ("question", "choices", "answerKey"))


FORMATS: dict[str, Format] = {
    "hellaswag": Format(
        {"validation": ("hellaswag_val",), "train": ("hellaswag_train",)},
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    ),
    "winogrande/winogrande_xl": Format(
        {"validation": ("winogrande_xl_val",), "train": ("winogrande_xl_train",)},
        ("sentence", "option1", "option2", "answer"),
    ),
    "gsm8k/main": Format({"test": ("gsm8k_test",), "train": ("gsm8k_train",)}, ("question", "answer")),
    "openai_humaneval": Format({"test": ("humaneval",)}, ("task_id", "prompt", "entry_point", "test")),
    "coqa": Format(
        {"validation": ("coqa_dev", "coqa_dev_wikipedia_gutenberg"), "train": ("coqa_train",)},
        ("id", "story", "turns"),
        _coqa,
    ),
    "ai2_arc/ARC-Easy": _arc("arc_easy"),
    "ai2_arc/ARC-Challenge": _arc("arc_challenge"),
    "piqa": Format({"validation": ("piqa_val",), "train": ("piqa_train",)}, ("goal", "sol1", "sol2", "label")),
    "super_glue/boolq": Format(
        {"validation": ("boolq_val", "boolq_val_1000"), "train": ("boolq_train",)},
        ("question", "passage", "answer"),
        lambda row: {"passage": row["passage"], "question": row["question"], "label": int(row["answer"])},
    ),
    "lambada_openai/default": Format(
        {"test": ("lambada_test",)}, ("context", "target"), lambda row: {"text": row["context"] + row["target"]}
    ),
    "openbookqa/main": Format(
        {"test": ("openbookqa_test",), "validation": ("openbookqa_val",), "train": ("openbookqa_train",)},
        ("question_stem", "choices", "answerKey"),
    ),
    "wikitext_document_level/wikitext-2-raw-v1": Format(
        {"test": ("wikitext2_test",), "validation": ("wikitext2_valid",), "train": ("wikitext2_train",)},
        ("text",),
        lambda row: {"page": row["text"]},
    ),
    "mmlu": Format(
        {"test": ("mmlu_test",), "validation": ("mmlu_validation",), "dev": ("mmlu_dev",)},
        ("subject", "question", "choices", "answer"),
        part="subject",
    ),
}
"""By the last part of the hub's id, with the configuration where there is more than one."""


@dataclass
class DataFolder:
    """The data sets of a folder. Raises ValueError if there is no such folder."""

    path: Path
    limit: int | None = None
    """Rows of each split that is evaluated, the first ones: the harness takes no others, and to prepare them all takes
    longer than to answer a few."""
    _cache: dict[Path, list[JsonRow]] = field(default_factory=dict)

    def __post_init__(self):
        if not self.path.is_dir():
            raise ValueError(f"--data-dir {self.path} is no folder")

    def find(self, path: str, name: str | None) -> Format | None:
        """The format of a data set of the hub; None if it is not one of `FORMATS`."""
        stem = path.rsplit("/", 1)[-1].lower()
        return FORMATS.get(f"{stem}/{name}") or FORMATS.get(stem)

    def load(self, path: str, name: str | None) -> datasets.DatasetDict:
        """All splits of a data set whose format is known. Where the training split has no file it is empty: nothing
        can be taken from it as an example. ValueError, one line, for a file that is missing, cut off or wrong."""
        format = self.find(path, name)
        assert format is not None
        splits: dict[str, datasets.Dataset] = {}
        for split, stems in format.splits.items():
            file = next((file for stem in stems if (file := self._file(stem)) is not None), None)
            if file is not None:
                rows = self._rows(file, format, name)
                splits[split] = datasets.Dataset.from_list(rows[: self.limit] if split in EVALUATION_SPLITS else rows)
        if not any(split != "train" for split in splits):
            candidates = [stem for split, stems in format.splits.items() if split != "train" for stem in stems]
            raise ValueError(
                f"{self.path} has no file for {path}: it needs {' or '.join(f'{stem}.jsonl.gz' for stem in candidates)}"
            )
        one = next(iter(splits.values()))
        for split in format.splits:
            splits.setdefault(split, one.select([]))
        return datasets.DatasetDict(splits)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def _file(self, stem: str) -> Path | None:
        places = (self.path / folder / f"{stem}{ending}" for folder in SUBFOLDERS for ending in ENDINGS)
        return next((place for place in places if place.is_file()), None)

    def _rows(self, file: Path, format: Format, name: str | None) -> list[JsonRow]:
        if file not in self._cache:
            self._cache[file] = check_rows(file, format.columns)
        rows = self._cache[file]
        if format.part is not None:
            rows = [row for row in rows if row[format.part] == name]
            if not rows:
                raise ValueError(f"{file} has no row whose {format.part} is {name!r}")
        try:
            return [format.convert(row) for row in rows]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(f"{file}: a row is not of the expected format ({error!r})") from error


def check_rows(file: Path, columns: Sequence[str]) -> list[JsonRow]:
    """The rows of a file; each has these columns. ValueError, one line, for anything else."""
    rows = []
    for place, row in _raw(file):
        if not isinstance(row, dict) or (lacking := [name for name in columns if name not in row]):
            has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(
                f"{file}, {place}: lacks the column {lacking[0] if isinstance(row, dict) else columns[0]!r}; "
                f"it has {has}"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{file} has no rows; get it again")
    return rows


def _raw(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        if file.suffix == ".parquet":
            yield from ((f"row {i}", row) for i, row in enumerate(parquet.read_table(file).to_pylist(), 1))
            return
        with (
            gzip.open(file, "rt", encoding=ENCODING) if file.suffix == ".gz" else file.open(encoding=ENCODING) as lines
        ):
            for i, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield f"line {i}", json.loads(line)
                    except json.JSONDecodeError as error:
                        raise ValueError(f"{file}, line {i} is not JSON ({error}); is the file cut off?") from error
                    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
                        raise ValueError(f"{file}, line {i} cannot be read ({error}); mend the row") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{file} is cut off or corrupt ({error}); get it again") from error
