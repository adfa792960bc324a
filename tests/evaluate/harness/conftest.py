"""A folder of tiny data files, and tiny models that the harness asks."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depthdial.engine.llm import LLM
from depthdial.models import attach

WORDS = ("the quick brown fox", "jumps over", "the lazy dog", "and the other foxes", "over the dog", "a quick fox")


def _some(i: int, count: int = 2) -> str:
    return " ".join(WORDS[(i * 5 + j * (i + 1)) % len(WORDS)] for j in range(count))


def rows() -> dict[str, list[dict[str, Any]]]:
    """By stem, in the formats that `data.FORMATS` tells."""
    arc = [
        {
            "question": f"{_some(i, 3)}?",
            "choices": {"text": [_some(i + j, 1 + j % 2) for j in range(4)], "label": list("ABCD")},
            "answerKey": "ABCD"[i % 4],
        }
        for i in range(7)
    ]
    hellaswag = [
        {
            "ind": i, "activity_label": "Foxes", "ctx_a": f"{_some(i)}.", "ctx_b": "the dog", "ctx": "",
            "endings": [_some(i + j, 1 + j) for j in range(4)], "label": i % 4,
        }
        for i in range(6)
    ]  # fmt: skip
    coqa = [
        {
            "id": str(i),
            "story": _some(i, 6),
            "turns": [{"question": f"{_some(j, 1)}?", "answers": [WORDS[j], "the fox", "dog"]} for j in range(2)],
        }
        for i in range(5)
    ]
    winogrande = {"sentence": "the fox saw the dog so _ jumps over", "option1": "the fox", "option2": "the dog"}
    boolq = {"passage": "the quick brown fox jumps", "question": "is the fox quick"}
    gsm8k = [{"question": _some(i), "answer": f"{_some(i)}\n#### {i}"} for i in range(8)]
    return {
        "hellaswag_val": hellaswag,
        "winogrande_xl_val": [{**winogrande, "answer": str(1 + i % 2)} for i in range(4)],
        "gsm8k_test": gsm8k[:3],
        "gsm8k_train": gsm8k,
        "humaneval": [
            {
                "task_id": f"HumanEval/{i}",
                "prompt": "def f(x):\n",
                "entry_point": "f",
                "canonical_solution": "    return x\n",
                "test": "def check(f):\n    assert f(1) == 1\n",
            }
            for i in range(2)
        ],
        "coqa_dev": coqa,
        "arc_easy_val": arc,
        "arc_challenge_val": arc[:5],
        "piqa_val": [{"goal": _some(i), "sol1": _some(i + 1), "sol2": _some(i + 2), "label": i % 2} for i in range(9)],
        "boolq_val": [{**boolq, "answer": bool(i % 2)} for i in range(4)],
        "lambada_test": [{"id": i, "context": _some(i, 4), "target": " fox"} for i in range(5)],
        "openbookqa_test": [
            {"question_stem": row["question"], "choices": row["choices"], "answerKey": row["answerKey"]} for row in arc
        ],
        "wikitext2_test": [{"text": f"= Foxes =\n {_some(i, 30)}"} for i in range(2)],
        "mmlu_test": [
            {"subject": subject, "question": _some(i), "choices": list("wxyz"), "answer": i % 4}
            for subject in ("abstract_algebra", "anatomy")
            for i in range(4)
        ],
        "mmlu_dev": [{"subject": "anatomy", "question": "the fox", "choices": list("wxyz"), "answer": 1}],
    }


def _write(file: Path, rows: list[dict[str, Any]]) -> Path:
    with gzip.open(file, "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    return file


@pytest.fixture
def write_rows() -> Callable[[Path, list[dict[str, Any]]], Path]:
    """`write_rows(file, rows)`: a `.jsonl.gz`."""
    return _write


@pytest.fixture
def piqa() -> list[dict[str, Any]]:
    return rows()["piqa_val"]


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """A fresh folder with all of `rows`, as `.jsonl.gz` in a subfolder `eval`."""
    folder = tmp_path / "data"
    (folder / "eval").mkdir(parents=True)
    for stem, facts in rows().items():
        _write(folder / "eval" / f"{stem}.jsonl.gz", facts)
    return folder


@pytest.fixture(scope="session")
def tiny_llm(tiny_model, tiny_tokenizer, tiny_plugin) -> Callable[..., LLM]:
    """`tiny_llm(plugged=True, max_batch=4)`: a tiny model with a context of 1024, with the plug-in of `tiny_plugin`."""

    def make(plugged: bool = True, max_batch: int = 4) -> LLM:
        model = tiny_model("llama")
        if plugged:
            attach(model, tiny_plugin)
        else:
            from depthdial.methods import Dense
            from depthdial.models import convert

            convert(model, Dense())
        model.config.max_position_embeddings = 1024  # as far as its rope reaches, the weights do not know of it
        return LLM.of(model, tiny_tokenizer, max_batch=max_batch)

    return make
