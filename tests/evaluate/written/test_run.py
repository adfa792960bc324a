"""A whole evaluation on a tiny model: rows, costs that are met, what is kept, and that ending it changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from depthdial.core.dial import Curve
from depthdial.evaluate.subjects import Setup
from depthdial.evaluate.written import run as module
from depthdial.evaluate.written.run import run
from depthdial.methods import method_named
from depthdial.models import save
from depthdial.models.checkpoint import Plugin
from depthdial.models.converted import converted_of
from depthdial.models.fingerprint import fingerprint

CLOCKS = {"seconds", "tokens_per_second", "date", "commit"}


@pytest.fixture
def baselines(tiny_model, adapted, tmp_path):
    """name -> folder: random layers, whose curve is wrong, and static ones."""
    told = {}
    for name, fields in {
        "random": {"first": 2, "adapter_ratio": 4, "rate": 0.5},
        "static": {"order": (3, 1, 4), "count": 2, "adapter_ratio": 4},
    }.items():
        model = adapted(tiny_model("llama"), method_named(name, fields))
        curve = Curve((-3.0, 0.0, 3.0), (0.6, 0.8, 0.95), (0.5, 0.2, 0.0))
        plugin = Plugin(name, converted_of(model).method, fingerprint(model), {"text": curve, "generated": curve})
        told[name] = str(save(model, tmp_path / "plugins" / name, plugin))
    return told


def timeless(told: Any) -> Any:
    if isinstance(told, dict):
        return {k: timeless(v) for k, v in told.items() if k not in CLOCKS}
    return [timeless(v) for v in told] if isinstance(told, list) else told


def test_rows_costs_and_files(options, tmp_path, baselines):
    results, texts = run(options(baselines=baselines, max_tokens=40))
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["base", "flexidepth 0.8", "base int8", "random 0.8", "static 0.8", "early exit 0.8"]
    base, own = rows["base"], rows["flexidepth 0.8"]
    assert base["cost"]["mean"] == 1 == base["prompt_cost"]["mean"] and base["chrf"]["mean"] == 100
    assert own["cost"]["mean"] < 0.99 and own["prompt_cost"]["mean"] == 1, "something was skipped in writing"
    assert own["over_base"]["nll"]["mean"] > 0, "a greedy text is less likely where layers are left out"
    for name in ("static 0.8", "early exit 0.8"):
        asked = {round(b, 6) for b in json.loads(_record(tmp_path, name).read_text())["budgets"]}
        assert len(asked) <= 2 and rows[name]["cost"]["mean"] == pytest.approx(own["cost"]["mean"], abs=0.06), (
            "prompts take turns between two numbers of layers"
        )
    assert abs(rows["random 0.8"]["cost"]["mean"] - own["cost"]["mean"]) < 0.04
    assert set(rows["random 0.8"]["adaptive_over_this"]) == {"nll", "repeats", "ended", "length", "chrf"}
    held = json.loads((tmp_path / "out" / "results.json").read_text())
    assert held == results and held["complete"] and str(tmp_path) not in json.dumps(held)
    assert [text["prompt"] for text in texts][:1] == ["the quick fox and the lazy dog"]
    assert list(texts[0]["answers"]) == list(rows) and texts[0]["task"] == "chat"


def _record(place, name):
    return place / "out" / "records" / f"{name.replace(' ', '-')}--written.json"


def test_what_is_done_is_not_done_again_and_rows_can_be_added(options, monkeypatch):
    first, texts = run(options())
    written = []
    real = module.Writer.write
    monkeypatch.setattr(module.Writer, "write", lambda self, *rest: written.append(rest) or real(self, *rest))
    again, same = run(options(resume=True))
    assert timeless(again) == timeless(first) and same == texts and not written
    grown, _ = run(options(resume=True, budgets=[0.8, 0.9], early_exit=False))
    assert [row["name"] for row in grown["rows"]] == ["base", "flexidepth 0.8", "flexidepth 0.9", "base int8"]
    assert len(written) == 1 and timeless(grown["rows"][1]) == timeless(first["rows"][1])
    for other, says in (({"max_tokens": 13}, "its max_tokens is 12, not 13"), ({"limit": 3}, "its limit")):
        with pytest.raises(ValueError, match=says):
            run(options(resume=True, **other))


def test_ended_at_any_chunk_it_comes_to_the_same(options, tmp_path):
    class Ended(BaseException):
        pass

    whole, texts = run(options(output=tmp_path / "whole"))
    for after in (2, 7, 12):
        told = 0

        def stop(name: str, done: int, total: int, after: int = after) -> None:
            nonlocal told
            told += 1
            if told == after:
                raise Ended

        place = tmp_path / f"ended-{after}"
        with pytest.raises(Ended):
            run(options(output=place), stop)
        again, same = run(options(output=place, resume=place.exists()))
        assert timeless(again) == timeless(whole) and same == texts


def test_where_skipping_hurts(options):
    results, _ = run(options(where=True, early_exit=False, int8="none", max_tokens=30))
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["base", "flexidepth 0.8", "prompt only 0.8", "prompt and answer 0.8"]
    own, prompt, both = (rows[name] for name in list(rows)[1:])
    assert prompt["cost"]["mean"] == 1 and own["cost"]["mean"] < 0.99 and both["cost"]["mean"] < 0.99
    for row in (prompt, both):
        assert row["prompt_cost"]["mean"] < 0.99 and 0.7 <= row["asked"]["prompt_budget"] < 1
    assert own["prompt_cost"]["mean"] == 1


def test_prompts_that_skip_as_answers_do(options):
    results, _ = run(options(prompt_budget="same", early_exit=False, int8="none"))
    base, own = results["rows"]
    assert base["prompt_cost"]["mean"] == 1 and own["prompt_cost"]["mean"] < 0.99
    assert results["arguments"]["prompt_budget"] == "same"
    with pytest.raises(ValueError, match=r"budget 0\.2 is outside"):
        run(options(prompt_budget=0.2, output=None))


def test_int8_rows_are_left_out_where_there_are_no_kernels(options, monkeypatch):
    from depthdial.engine import assemble

    def none(*_):
        raise ValueError("int8 weights run on a CPU only")

    monkeypatch.setattr(assemble, "_narrow_runner", none)
    results, _ = run(options(early_exit=False))
    assert results["missing"] == {"base int8": "int8 weights run on a CPU only"} and len(results["rows"]) == 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"limit": 0}, "--limit must be a whole number of prompts"),
        ({"limit": 0.5}, "--limit must be a whole number of prompts"),
        ({"max_tokens": 0}, "--max-tokens must be at least 1"),
        ({"output": None, "resume": True}, "--resume needs --output"),
        ({"where": True, "prompt_budget": "same"}, "--where reads prompts in full"),
        ({"budgets": [1.2]}, r"not at 1\.2"),
        ({"baselines": {"int8": "x"}}, "this name is taken"),
    ],
)
def test_options_that_make_no_sense(options, wrong, says):
    with pytest.raises(ValueError, match=says):
        options(**wrong)


def test_what_cannot_be_run(options, tiny_plugin, tmp_path):
    with pytest.raises(ValueError, match="the plug-in itself has this name"):
        run(options(baselines={"flexidepth": str(tiny_plugin)}))
    with pytest.raises(ValueError, match="no such file of prompts"):
        run(options(prompts=str(tmp_path / "none.jsonl")))


def test_a_model_with_its_own_routers_has_no_base_that_could_judge(options, tmp_path, tiny_tokenizer):
    from depthdial.models.own import own_types

    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    own: Any = own_types("llama")
    kind, model = own
    config = kind(**sizes, **heads, method={"name": "skiplayer"}, eos_token_id=2)
    model(config).save_pretrained(tmp_path / "own")
    tiny_tokenizer.save_pretrained(tmp_path / "own")
    setup = Setup(str(tmp_path / "own"), "float32", "cpu")
    with pytest.raises(ValueError, match="has no untouched base that could judge"):
        run(options(model="own", setup=setup, plugin=None, budgets=[1.0]))
