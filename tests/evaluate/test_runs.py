"""Run folders to tables: means over seeds, paired differences with Student's interval, and refusals."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.evaluate.run_plot import _look, draw_runs
from depthdial.evaluate.runs import compare, half_width, read_runs, runs_table, student


def run(folder: Path, loss: float, seed: int = 0, method: str = "dense", **more: object) -> Path:
    folder.mkdir(parents=True)
    results = {
        "loss": loss, "density": 0.5, "layers": 2.0, "cost": 0.5, "macs_per_token": 2_000_000, "tokens": 4_000_000,
        "tokens_per_second": 1000.0, "seed": seed, "size": "4x2@32", "method": method, "steps": 2, "mfu": 0.25,
        "density_per_layer": [0.25, 0.75, 0.5, 0.5], "target": 0.5, "seconds": 10.0, **more,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    lines = [
        {"step": 1, "loss": 5.0, "layers": 4.0},
        {"step": 1, "heldout_loss": 5.1},
        {"step": 2, "loss": 4.0, "layers": 2.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


TABLE = {
    1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445, 5: 2.570582, 9: 2.262157, 10: 2.228139, 11: 2.200985,
    12: 2.178813, 20: 2.085963, 29: 2.045230, 30: 2.042272, 60: 2.000298, 100: 1.983972, 101: 1.983731, 1000: 1.962339,
}  # fmt: skip
"""Quantiles as tables print them, by degrees of freedom."""


def test_the_quantile_is_students_at_any_number_of_runs():
    assert {freedom: student(freedom) for freedom in TABLE} == pytest.approx(TABLE, abs=2e-6)
    falling = [student(freedom) for freedom in range(1, 60)]
    assert falling == sorted(falling, reverse=True), "never a step down to the normal's 1.96"
    assert student(3, 0.99) == pytest.approx(5.840909, abs=1e-5)
    values = [float(i % 5) for i in range(12)]
    assert half_width(values) == pytest.approx(2.200985 * statistics.stdev(values) / 12**0.5)


def test_groups_are_means_and_differences_are_paired_by_seed(tmp_path: Path):
    for seed, (dense, skip) in enumerate([(4.0, 3.9), (4.2, 4.0), (4.4, 4.3)]):
        run(tmp_path / f"dense-seed{seed}", dense, seed)
        run(tmp_path / f"skip-seed{seed}", skip, seed, "skiplayer")
    run(tmp_path / "lone", 5.0, 0, "random")
    groups = {g["group"]: g for g in compare(read_runs([tmp_path]), "dense")}
    assert set(groups) == {"dense", "skip", "lone"} and groups["dense"]["difference"] is None
    skip = groups["skip"]
    assert skip["loss"] == pytest.approx(statistics.fmean([3.9, 4.0, 4.3]))
    assert skip["difference"] == pytest.approx(-0.4 / 3)
    assert skip["difference_half_width"] == pytest.approx(4.302653 * statistics.stdev([-0.1, -0.2, -0.1]) / 3**0.5)
    assert skip["difference_half_width"] < skip["loss_half_width"], "pairs tell more than groups"
    assert skip["macs_per_token"] == 1e6
    assert groups["lone"]["difference"] == pytest.approx(1.0) and groups["lone"]["difference_half_width"] is None
    text = runs_table(list(groups.values()), "dense")
    assert "| skip | 4x2@32 | 3 | 4.0667 ±" in text and "-0.1333 ±" in text and "+1.0000 |" in text
    assert "2.00 of 4 | 0.500 (0.5) | 4.0 M | 1000 | 0.25 |" in text


@given(values=st.lists(st.floats(-5, 5), min_size=2, max_size=30), shift=st.floats(-3, 3))
def test_the_interval_knows_spread_only(values: list[float], shift: float):
    half = half_width(values)
    assert half is not None and half >= 0
    assert half_width([v + shift for v in values]) == pytest.approx(half, abs=1e-6)
    assert half_width(values[:1]) is None


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no finished run"):
        read_runs([tmp_path])
    folder = run(tmp_path / "a" / "x", 4.0)
    run(tmp_path / "b" / "x", 4.0)
    with pytest.raises(ValueError, match="two runs are called x"):
        read_runs([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ValueError, match=r"no run is called 'dnese'; --baseline must be one of x"):
        compare(read_runs([tmp_path / "a"]), "dnese")
    for same, value in (("size", "8x2@32"), ("tokens", 1), ("method", "random")):
        run(tmp_path / same / "dense-seed0", 4.0)
        run(tmp_path / same / "dense-seed1", 4.0, **{"seed": 1, same: value})
        with pytest.raises(ValueError, match=f"runs called dense differ in {same}"):
            compare(read_runs([tmp_path / same]), "dense")
    run(tmp_path / "other" / "dense", 4.0)
    run(tmp_path / "other" / "skip", 4.0, tokens=1)
    with pytest.raises(ValueError, match="runs called skip differ in tokens"):
        compare(read_runs([tmp_path / "other"]), "dense")
    (folder / "results.json").write_text('{"loss": 1}')
    with pytest.raises(ValueError, match=r"lacks density"):
        read_runs([folder])
    (folder / "results.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        read_runs([folder])


def test_pictures_are_written_whole(tmp_path: Path):
    run(tmp_path / "runs" / "dense-seed0", 4.0)
    run(tmp_path / "runs" / "skip-seed0", 3.9)
    text = draw_runs(read_runs([tmp_path / "runs"]), tmp_path)
    assert [p.name for p in text] == ["loss.png", "density.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in text) and not list(tmp_path.glob(".*.part"))


def test_no_two_of_21_groups_look_alike():
    assert len({tuple(_look(i).items()) for i in range(21)}) == 21
