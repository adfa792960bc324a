"""What people read: the Markdown, the PNG and the page, from results as they are kept."""

from __future__ import annotations

import importlib.util
import re

import pytest

from depthdial.evaluate.written.page import texts_page
from depthdial.evaluate.written.picture import draw
from depthdial.evaluate.written.table import tables


def mean(value: float | None, half: float | None = 0.02):
    ends = {"low": None, "high": None} if half is None or value is None else {"low": value - half, "high": value + half}
    return {"mean": value, **ends}


def row(name: str, kind: str, cost: float, **fields):
    over = {"nll": mean(0.1), "repeats": mean(0.05), "ended": mean(-0.1, None), "length": mean(3.0)}
    facts = {
        "name": name, "kind": kind, "budget": 1.0 if cost == 1 else 0.9, "part": "", "texts": 2, "tokens": 100,
        "seconds": 2.0, "tokens_per_second": 50.0, "cost": mean(cost, None), "prompt_cost": mean(1.0, None),
        "nll": mean(0.5), "repeats": mean(0.15), "ended": mean(0.5), "length": mean(50.0), "chrf": mean(44.0),
        "over_base": over, "furthest_from_budget": {"texts": 2, "mean": 0.004, "most": 0.013},
    }  # fmt: skip
    return {**facts, **fields}


@pytest.fixture
def results():
    against = {**row("", "", 1.0)["over_base"], "chrf": mean(12.0)}
    short = {"texts": 0, "mean": None, "most": None}
    return {
        "model": "tiny <b>", "date": "2026-11-30", "missing": {"base int8": "no kernels"},
        "arguments": {"max_tokens": 120, "prompt_budget": 1.0},
        "rows": [
            row("base", "base", 1.0, furthest_from_budget=short),
            row("flexidepth 0.9", "adaptive", 0.9),
            row("prompt only 0.9", "where", 1.0, part="prompt", budget=0.9, prompt_cost=mean(0.9)),
            row("random 0.9", "baseline", 0.9, adaptive_over_this=against),
        ],
    }  # fmt: skip


@pytest.fixture
def texts(results):
    answer = {"text": "<script>alert(1)</script>\x1b[2J", "token_ids": [1, 2, 3, 4] * 3, "ended": False}
    answer |= {"cost": 9.9, "passes": 11, "logprob": -6.0}
    return [{"id": "p-1", "task": "chat", "prompt": "a & b", "answers": {r["name"]: answer for r in results["rows"]}}]


def test_tables(results):
    facts = tables(results)
    assert "2 prompts, prompt_budget 1.0, up to 120 tokens" in facts and "Left out: base int8 (no kernels)" in facts
    assert "| base | 1.000 | 1.000 | 0.500 | 15.0 | 50 | 50.0 | 44.0 | – | 50 |" in facts
    assert "| flexidepth 0.9 | 0.900 | 1.000 | 0.500 | 15.0 | 50 | 50.0 | 44.0 | 0.004 (0.013) | 50 |" in facts
    assert "| +0.100 (+0.080 to +0.120) | +5.0 (+3.0 to +7.0) | -10.0 | +3.0 (+3.0 to +3.0) |" in facts
    assert "| random 0.9 | 0.900 | +0.100" in facts and "| +12.0 (+12.0 to +12.0) |" in facts
    where = facts[facts.index("Where skipping hurts") :].splitlines()
    assert [line.split("|")[1].strip() for line in where[4:7]] == ["nothing", "answer only 0.9", "prompt only 0.9"]
    assert "None" not in facts and "nan" not in facts


def test_a_page_shows_all_texts_and_obeys_none(results, texts):
    picture = texts_page(results, texts)
    assert "<script" not in picture and "&lt;script&gt;alert(1)&lt;/script&gt;" in picture and "\x1b" not in picture
    assert "<b>" not in picture and "tiny &lt;b&gt;" in picture and "a &amp; b" in picture
    assert picture.count('<section class="pane') == 4 and picture.count('type="checkbox"') == 4
    assert "default-src 'none'" in picture and not re.search(r"(src|href)=", picture)
    assert "12 tokens · cost 0.900 · NLL 0.50 · repeated 56 %" in picture and "(no end)" in picture


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_a_picture(results, tmp_path):
    draw(results, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
