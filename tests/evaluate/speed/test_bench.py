"""The whole benchmark on a tiny model: who takes part, what is told, what is refused."""

from __future__ import annotations

import contextlib
import json

import pytest

from depthdial.core.dial import Curve
from depthdial.evaluate.speed import bench as bench_
from depthdial.evaluate.speed.bench import bench
from depthdial.evaluate.speed.lineup import SpeedLineup
from depthdial.evaluate.speed.options import SpeedOptions
from depthdial.evaluate.speed.subjects import EngineSubject
from depthdial.evaluate.speed.table import machine_lines
from depthdial.methods import Balcony, SkipLayer
from depthdial.models.base import load_base
from depthdial.models.checkpoint import Plugin, save
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of
from depthdial.models.fingerprint import fingerprint
from depthdial.models.scratch import Spec, fresh

ROW = {"regime", "batch", "prompt_tokens", "new_tokens", "name", "kind", "precision", "budget", "prompt_budget"}
SPEED = {
    "first_token_seconds",
    "times_dense",
    "tokens_per_second",
    "repeats",
    "speedup",
    "speedup_over",
    "cost",
    "stop",
}
IDEAL = {"limit_tokens_per_second", "of_limit", "bound", "ideal_speedup", "of_ideal", "layers"}


@pytest.fixture(scope="module")
def options(tiny_folder, tiny_plugin):
    def make(**more) -> SpeedOptions:
        tiny = {"prompt_tokens": 6, "new_tokens": 5, "repeats": 2, "compiled": False, "dtype": "float32"}
        tiny |= {"model": str(tiny_folder), "plugin": str(tiny_plugin), "device": "cpu", "budgets": (0.85, 0.75)}
        return SpeedOptions(**{**tiny, "batches": (1, 3), "prefill": (20,), **more})

    return make


@pytest.fixture(scope="module")
def results(options):
    calls = []
    result = bench(options(), lambda *told: calls.append(told))
    assert calls[0] == ("loading", 0, 1) and calls[-1][1] == calls[-1][2] == (8 + 8 + 9) * 3
    return result


def test_it_is_json_and_names_no_folder(results, tiny_folder, tiny_plugin):
    text = json.dumps(results, allow_nan=False)
    assert str(tiny_folder) not in text and str(tiny_plugin) not in text
    assert results["model"] == tiny_folder.name and results["plugin"] == "tiny" and results["what"] == "speed"
    assert set(results) == {
        "what", "date", "commit", "machine", "versions", "model", "plugin", "arguments", "peers", "left_out", "limits",
        "rows", "verify",
    }  # fmt: skip
    assert results["arguments"]["seed"] == 0 and results["arguments"]["budgets"] == (0.85, 0.75)


def test_every_regime_has_every_row(results):
    for regime in (("decode", 1, 6), ("decode", 3, 6), ("prefill", 1, 20)):
        rows = [r for r in results["rows"] if (r["regime"], r["batch"], r["prompt_tokens"]) == regime]
        adaptive = ["adaptive"] * (3 if regime[0] == "prefill" else 2)
        assert [row["kind"] for row in rows] == ["baseline", "dense", *adaptive, "control", "control", "dense", "dense"]
        for row, narrow in zip(rows[-2:], ("int8", "int4"), strict=True):
            assert row["precision"] == narrow and row["cost"] == 1.0 and row["ideal_speedup"] >= 1
        for row in rows[:-2]:
            ours = row["kind"] != "baseline"
            assert set(row) == ROW | SPEED | (IDEAL if ours else set())
            assert len(row["repeats"]) == 2 and (row["cost"] is not None) == ours
            assert row["speedup_over"] == "our dense, fp32" and row["first_token_seconds"]["median"] > 0
            assert row["times_dense"] == row["speedup"]
            if row["kind"] == "dense":
                assert row["cost"] == row["speedup"] == row["ideal_speedup"] == row["of_ideal"] == 1.0
                assert row["layers"] == 6
            elif ours and row["prompt_budget"] == 1.0:  # there is nothing to gain
                assert row["cost"] == 1.0 == row["ideal_speedup"] and row["layers"] == 6 and row["budget"] is None
            elif ours:
                assert row["cost"] < 1 and row["layers"] < 6 and row["budget"] is not None


def test_prompts_are_read_in_each_way_where_prefill_is_measured(results):
    ways = {regime: [r["prompt_budget"] for r in results["rows"] if r["regime"] == regime and r["kind"] == "adaptive"]
            for regime in ("decode", "prefill")}  # fmt: skip
    assert ways == {"decode": [None] * 4, "prefill": [1.0, "same", "same"]}
    controls = [row for row in results["rows"] if row["regime"] == "prefill" and row["kind"] == "control"]
    assert [row["prompt_budget"] for row in controls] == ["same", "same"]


def test_where_texts_decode_their_prompts_are_read_in_full(options):
    with contextlib.closing(SpeedLineup(options(prompt_budgets=(1.0, 0.9)))) as lineup:
        reading = {s.title: s.params.prompt_budget for s in lineup.subjects if isinstance(s, EngineSubject)}
    assert reading["adaptive 0.85, fp32"] == 1.0 and reading["adaptive, prompt read at 0.9, fp32"] == 0.9
    assert not any("skips" in title and "adaptive" in title for title in reading)


def test_limits_are_measured_with_each_regime(results):
    assert [entry["regime"] for entry in results["limits"]] == ["decode", "decode", "prefill"]
    assert all(entry["read_gigabytes_per_second"] > 0 < entry["gigamacs_per_second"] for entry in results["limits"])


def test_verification_is_priced_in_every_dense_engine(results):
    rows = results["verify"]
    assert [row["title"] for row in rows] == ["our dense, fp32", "our dense, int8", "our dense, int4"]
    for row in rows:
        assert set(row["seconds"]) == set(row["over_one"]) == {"1", "5", "8", "16"} and row["over_one"]["1"] == 1
        assert all(seconds > 0 for seconds in row["seconds"].values()) and row["over_one"]["16"] < 16
    assert "verify / one step, our dense, int4 (" in machine_lines(results)


def test_a_bare_model_has_no_adaptive_rows(options):
    result = bench(options(plugin=None, batches=(1,), prefill=(), repeats=1))
    assert [row["kind"] for row in result["rows"]] == ["baseline", "dense", "dense", "dense"] and result[
        "plugin"
    ] is None


def test_a_model_with_its_own_routers_is_measured_as_trained(tmp_path, tiny_tokenizer):
    model = fresh(Spec.parse("6x4@64,context=64"), SkipLayer(density=0.5), tiny_tokenizer)
    model.save_pretrained(tmp_path / "own")
    tiny_tokenizer.save_pretrained(tmp_path / "own")
    tiny = {"batches": (1,), "prefill": (20,), "prompt_tokens": 6, "new_tokens": 5, "repeats": 2, "compiled": False}
    result = bench(SpeedOptions(model=str(tmp_path / "own"), dtype="float32", device="cpu", **tiny))
    for regime in ("decode", "prefill"):
        rows = [row for row in result["rows"] if row["regime"] == regime and row["precision"] == "fp32"]
        assert [row["kind"] for row in rows] == ["baseline", "dense", "adaptive", "control"]
        assert rows[2]["prompt_budget"] == (None if regime == "decode" else "same")
        _, dense, adaptive, random = rows
        assert dense["cost"] == 1 and dense["layers"] == 6
        assert adaptive["budget"] is None and adaptive["cost"] < 1 and adaptive["layers"] < 6
        assert adaptive["ideal_speedup"] > 1 and 0 < random["cost"] < 1


def test_exits_by_own_blocks_read_a_prompt_as_they_write(tiny_folder, tmp_path):
    """Nobody names a prompt_budget: what cannot be had is not measured, and does not stop the rest."""
    model, _ = load_base(str(tiny_folder), "float32", "cpu")
    method, base = Balcony(exits=(2, 4), stop=1), fingerprint(model)
    ledger = converted_of(convert(model, method)).ledger
    head, layer = ledger.head, ledger.layers[0].total
    costs = [(head + layer * (n + 1)) / ledger.dense for n in (2, 4)]
    curve = Curve.fit([(-1.0, costs[0], 0.5), (0.0, costs[1], 0.2), (1.0, 1.0, 0.0)], step=1.0)
    folder = save(model, tmp_path / "exits", Plugin("exits", method, base, {"text": curve, "generated": curve}))
    tiny = {"batches": (1,), "prefill": (20,), "prompt_tokens": 6, "new_tokens": 5, "repeats": 1, "compiled": False}
    where = {"model": str(tiny_folder), "plugin": str(folder), "dtype": "float32", "device": "cpu"}
    rows = bench(SpeedOptions(**where, budgets=(0.9,), **tiny))["rows"]
    adaptive = [row for row in rows if row["kind"] == "adaptive"]
    assert [(row["regime"], row["prompt_budget"]) for row in adaptive] == [("decode", None), ("prefill", "same")]
    assert all(row["cost"] == pytest.approx(row["stop"]) and row["cost"] < 0.9 for row in adaptive)


def test_int8_is_compared_with_int8(options):
    choice = options(int8=True, batches=(1,), prefill=(), repeats=1, budgets=(0.8,))
    with contextlib.closing(SpeedLineup(choice)) as lineup:
        sizes = {title: reference.sizes.weight for title, reference in lineup.references.items()}
    assert sizes["our dense, int8"] == sizes["adaptive 0.8, int8"] and sizes["our dense, fp32"] == 4
    assert 1 < sizes["our dense, int8"] < 1.13 and sizes["our dense, int4"] == 0.625
    result = bench(choice)
    rows = [row for row in result["rows"] if row["precision"] == "int8"]
    assert [row["kind"] for row in rows] == ["dense", "adaptive"]
    assert [row["speedup_over"] for row in rows] == ["our dense, fp32", "our dense, int8"]
    assert rows[0]["times_dense"] == rows[0]["speedup"]


def test_a_static_plugin_takes_part(options, tiny_plugin):
    result = bench(options(static=str(tiny_plugin), batches=(1,), prefill=(), repeats=1, budgets=(0.8,)))
    assert [row["name"] for row in result["rows"]][3:] == ["random", "static", "our dense", "our dense"]


def test_int8_that_cannot_be_is_said(options, monkeypatch):
    def none(*_, **__):
        raise ValueError("int8 weights need the native kernels (no compiler); use weights='auto'")

    monkeypatch.setattr("depthdial.engine.assemble._narrow_runner", none)
    result = bench(options(batches=(1,), prefill=(), repeats=1))
    assert "no compiler" in result["left_out"]["our dense, int8"]
    assert {row["precision"] for row in result["rows"]} == {"fp32"}
    assert "not measured: our dense, int8 (int8 weights need" in machine_lines(result)
    with pytest.raises(ValueError, match="no compiler"):
        bench(options(int8=True, batches=(1,), prefill=(), repeats=1))


def test_the_break_even_is_explained(options, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path))
    rest = options(batches=(1,), prefill=(), repeats=1)
    facts = bench(rest, explain=True)["break_even"]
    assert [entry["rows"] for entry in facts["highest"]] == [1] and len(list((tmp_path / "break-even").iterdir())) == 1
    monkeypatch.setattr(bench_, "_results", lambda *_: {})
    assert bench(rest, explain=True)["break_even"] == facts


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"batches": (), "prefill": ()}, "nothing to measure"),
        ({"batches": (0,)}, "at least 1"),
        ({"new_tokens": 1}, "--new-tokens must be at least 2"),
        ({"repeats": 0}, "--repeats"),
        ({"budgets": (1.0,)}, "between 0 and 1"),
        ({"prompt_budgets": ()}, "--prompt-budget needs"),
        ({"prompt_budgets": (1.0, 2.0)}, "prompt_budget must be"),
        ({"peers": ("vlm",)}, "not known"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(options, wrong, says):
    with pytest.raises(ValueError, match=says):
        options(**wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prefill": (128,)}, "context is 128 tokens, and 129"),
        ({"budgets": (0.2,)}, "budget"),
        ({"text": ""}, "empty"),
        ({"prompt_budgets": (0.2,)}, "prompt_budget: budget 0.2"),
    ],
)
def test_what_would_fail_later_fails_before_measuring(options, wrong, says):
    with pytest.raises(ValueError, match=says):
        bench(options(**wrong), lambda name, *_: None if name == "loading" else pytest.fail("it ran"))
