"""What people read: the Markdown and the PNG, from results as they are kept."""

from __future__ import annotations

import importlib.util

import pytest

from depthdial.evaluate.harness.picture import draw
from depthdial.evaluate.harness.table import cost_table, difference_table, score_table, tables
from depthdial.maps.keep_figure import COLOURS


def task(score: float, **fields):
    facts = {
        "metric": "acc", "kind": "mean", "items": 200, "score": score, "stderr": 0.03, "chance": 0.25,
        "retained": score / 0.5, "above_chance": (score - 0.25) / 0.25, "cost": 0.9,
        "prompt_cost": 1.0, "dense_share": 0.31,
        "over_base": {"mean": score - 0.5, "low": None, "high": None},
    }  # fmt: skip
    return {**facts, **fields}


def mean(value: float | None, half: float = 0.02):
    return {
        "mean": value,
        "low": None if value is None else value - half,
        "high": None if value is None else value + half,
    }


def row(name: str, kind: str, cost: float, score: float, **fields):
    perplexity = {"metric": "word_perplexity", "kind": "perplexity", "chance": 0.0, "above_chance": None}
    return {
        "name": name, "kind": kind, "budget": 1.0 if kind == "base" else 0.9, "part": "", "cost": cost,
        "prompt_cost": 1.0, "layers_prompt": 30 * cost,
        "layers_answer": None, "seconds": 12.3, "cpu_seconds": 9.8, "mean_retained": mean(score / 0.5),
        "mean_above_chance": mean((score - 0.25) / 0.25), "counted": ["arc"], "at_chance": ["wiki"],
        "tasks": {"arc": task(score), "wiki": task(20 / score, **perplexity)}, **fields,
    }  # fmt: skip


@pytest.fixture
def results():
    won = {**mean(0.1), "tasks": {"arc": {"mean": 0.1, "low": 0.05, "high": 0.2}, "wiki": mean(-9.0)}}
    rows = [
        row("base", "base", 1.0, 0.5),
        row("flexidepth 0.9", "adaptive", 0.91, 0.48),
        row("random 0.9", "baseline", 0.9, 0.4, adaptive_over_this=won),
    ]
    return {"layers": 30, "rows": rows, "arguments": {"prompt_budget": 1.0}}


def test_scores_with_their_errors_and_shares(results):
    lines = score_table(results["rows"]).splitlines()
    assert lines[0] == "|  | arc, acc (n = 200) | wiki, word_perplexity (n = 200) |"
    assert lines[2] == "| base | 50.0 ±3.0 | 40.00 ±0.03 |"
    assert lines[3].startswith("| flexidepth 0.9 | 48.0 ±3.0 (96; 31) |")


def test_costs_depths_and_means(results):
    assert (
        "| flexidepth 0.9 | 0.910 | 1.000 | 27.3 | – | 96.0 (94.0 to 98.0) | 92.0 (90.0 to 94.0) | 12 | 10 |"
        in cost_table(results)
    )


def test_differences_name_the_tasks_that_are_told_apart(results):
    (line,) = difference_table(results["rows"]).splitlines()[2:]
    assert line == "| random 0.9 | 0.900 | 10.0 (8.0 to 12.0) | arc | – |"


def test_all_tables_say_what_is_left_out(results):
    text = tables(results)
    assert "wiki (word_perplexity)" in text and "nan" not in text and "None" not in text
    rows = [{k: v for k, v in row.items() if k != "adaptive_over_this"} for row in results["rows"]]
    assert "minus each baseline" not in tables({**results, "rows": rows})


def test_where_skipping_hurts(results):
    parts = [
        row(f"{part} 0.9", "where", 1.0, 0.45, part=part, prompt_cost=0.91, budget=0.9) for part in ("prompt", "both")
    ]
    text = tables({**results, "rows": [*results["rows"], *parts]})
    lines = text[text.index("Where skipping hurts") :].splitlines()[4:8]
    assert [line.split("|")[1].strip() for line in lines] == [
        "nothing",
        "answer only 0.9",
        "prompt only 0.9",
        "prompt and answer 0.9",
    ]
    assert lines[2].startswith("| prompt only 0.9 | 1.000 | 0.910 | 80.0 (78.0 to 82.0) | 90.0 |")
    assert "Where" not in tables(results) and "Contexts are read at prompt_budget 1.0" in text


def test_a_row_that_has_not_run_every_task(results):
    del results["rows"][2]["tasks"]["wiki"]
    del results["rows"][2]["adaptive_over_this"]["tasks"]["wiki"]
    results["rows"][2]["mean_above_chance"] = mean(None)
    assert "| random 0.9 | 40.0 ±3.0 (80; 31) | – |" in tables(results)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="an extra")
def test_the_picture_is_a_png_and_whole(results, tmp_path):
    from matplotlib.image import imread

    draw(results, tmp_path / "a.png")
    image = imread(tmp_path / "a.png")
    assert image.shape[1] > image.shape[0] > 300 and image.std() > 0.05
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    draw({"layers": 30, "rows": results["rows"][:1]}, tmp_path / "base.png")


def coloured(path) -> int:
    """Pixels in the colour of the first line."""
    import numpy as np
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    return int((np.abs(imread(path)[..., :3] - to_rgb(COLOURS[0])).max(-1) < 0.01).sum())


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="an extra")
def test_the_picture_of_tasks_at_chance_is_not_empty(results, tmp_path):
    """A small model is at chance on all tasks of a short run: scores are drawn then, and what is missing is said."""
    for row in results["rows"]:
        row |= {"counted": [], "at_chance": ["arc", "wiki"], "mean_above_chance": mean(None)}
        for facts in row["tasks"].values():
            facts["above_chance"] = None
    draw(results, tmp_path / "at_chance.png")
    assert coloured(tmp_path / "at_chance.png") > 100
    for row in results["rows"]:
        row |= {"mean_retained": mean(None)}
        for facts in row["tasks"].values():
            facts["retained"] = None
    draw(results, tmp_path / "nothing.png")
    assert coloured(tmp_path / "nothing.png") == 0 and (tmp_path / "nothing.png").stat().st_size > 10_000
