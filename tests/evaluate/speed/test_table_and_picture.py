"""The table and the picture of a result."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from depthdial.evaluate.speed.picture import draw
from depthdial.evaluate.speed.table import break_even_lines, machine_lines, speed_table

COMMON = {"batch": 1, "prompt_tokens": 32, "new_tokens": 64, "precision": "bf16", "budget": None, "prompt_budget": None}
SPEED: dict[str, Any] = {"first_token_seconds": {"median": 0.0123}, "times_dense": 1.0}
SPEED |= {"tokens_per_second": {"median": 100.0, "low": 90.0, "high": 1100.0}, "cost": None, "speedup": 1.0}
IDEAL = {"of_limit": 0.667, "ideal_speedup": 1.0, "of_ideal": 1.0}


def row(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"regime": "decode", **COMMON, "name": name, "kind": kind, **SPEED, **more}


LIMITS = {"read_gigabytes_per_second": 40.04, "gigamacs_per_second": 500}
RESULTS: dict[str, Any] = {
    "commit": "abc",
    "machine": {"processor": "A|B", "threads": 2, "cores": 4, "gpu": None},
    "versions": {"torch": "2"},
    "model": "tiny",
    "limits": [{"regime": "decode", "batch": 1, "prompt_tokens": 32, **LIMITS}],
    "rows": [
        row("Hugging Face generate", "baseline", speedup=0.34),
        row("our dense", "dense", cost=1.0, **IDEAL),
        row(
            "adaptive",
            "adaptive",
            budget=0.85,
            cost=0.861,
            **IDEAL | {"speedup": 1.1, "ideal_speedup": 1.15, "of_ideal": 0.957},
        ),
        {"regime": "decode", **COMMON, "name": "llama.cpp", "kind": "peer", "missing": "no GGUF"},
        row("our dense", "dense", cost=1.0, regime="prefill", prompt_tokens=512, **IDEAL),
        row("adaptive", "adaptive", cost=1.0, regime="prefill", prompt_tokens=512, prompt_budget=1.0, **IDEAL),
        row(
            "adaptive",
            "adaptive",
            cost=0.8,
            regime="prefill",
            prompt_tokens=512,
            prompt_budget="same",
            budget=0.85,
            **IDEAL | {"first_token_seconds": {"median": 1.234}},
        ),
    ],
    "left_out": {"our dense, int8": "no kernels"},
}


def test_every_row_is_a_line_under_its_regime():
    lines = speed_table(RESULTS).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines] == [
        "", "---", "**decode, batch 1**", "Hugging Face generate, bf16", "our dense, bf16", "adaptive 0.85, bf16",
        "llama.cpp, bf16", "**prefill 512**", "our dense, bf16",
        "adaptive, prompt read in full, bf16", "adaptive 0.85, prompt skips too, bf16",
    ]  # fmt: skip
    adaptive = [cell.strip() for cell in lines[5].split("|")[2:-1]]
    assert adaptive == ["0.861", "12 ms", "100.0", "90.0 to 1,100", "1.10", "1.15", "96%", "67%"]
    assert "not measured: no GGUF" in lines[6] and lines[3].count("–") == 4
    assert "| 1.23 s |" in lines[-1]


def test_the_machine_and_its_limits_are_told():
    facts = machine_lines(RESULTS)
    assert "tiny on A|B, 2 of 4 cores; torch 2; commit abc" in facts
    assert "not measured: our dense, int8 (no kernels)" in facts
    assert "limits in decode, batch 1: 40.0 GB/s read, 1000 GFLOP/s" in facts


def test_the_break_even_is_told():
    facts = break_even_lines({"highest": [{"rows": 4, "cost": 0.91, "share": 0.5}]})
    assert facts.splitlines()[-1] == "4 | 0.910 | 0.50"


def test_a_picture_is_drawn_whole(tmp_path):
    draw(RESULTS, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1


def test_without_matplotlib_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'depthdial[plots]'")):
        draw(RESULTS, tmp_path / "speed.png")
