"""The whole of it on a tiny model: what is said, that it can be ended anywhere, and what is refused when."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthdial.evaluate.headroom import run as module
from depthdial.evaluate.headroom.passes import Drops
from depthdial.evaluate.headroom.prices import Price, dropping, routing
from depthdial.evaluate.headroom.run import Options, run, settled
from depthdial.evaluate.headroom.table import tables
from depthdial.methods import FlexiDepth, Static
from depthdial.models import load
from depthdial.models.ahead import config_ahead
from depthdial.models.export import export

TEXT = "\n\n".join(f"The quick brown fox jumps over the lazy dog {i} times.\nThe other foxes do not." for i in range(9))


@pytest.fixture
def options(tiny_folder: Path, tmp_path: Path) -> Callable[..., Options]:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    told = {"model": str(tiny_folder), "data": text, "tokens": 120, "length": 40, "dtype": "float32", "device": "cpu"}
    return lambda **fields: Options(**{**told, "budgets": (0.9, 0.7), **fields})


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name not in ("date", "commit")}


def test_what_is_found(options: Callable, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    results = run(options(output=tmp_path / "out"), lambda _, done, total: seen.append((done, total)))
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert results["layers"] == 6 and results["rows"] == 3 and results["counted"] == 117
    points = results["static"]["points"]
    assert points[0] == {"layers": 0, "cost": 1.0, "kl": 0.0, "nll": 0.0} and points[1]["kl"] == pytest.approx(
        min(results["single"]), rel=1e-6
    )
    assert all(a["cost"] > b["cost"] for a, b in pairwise(points)) and points[-1]["cost"] <= 0.7
    for point in results["oracle"]:
        score = {row: point[row]["score"] for row in ("all", "text", "shuffled", "token", "token_shuffled")}
        assert score["token"] < score["text"] < score["all"] and score["shuffled"] != score["text"]
        assert point["text"]["kl"] != point["shuffled"]["kl"] and point["text"]["dropped"] >= point["dropped"]
    assert results["oracle"][0]["token"]["score"] < results["oracle"][1]["token"]["score"]
    assert results["settled"]["curve"][-1] == 1.0 and len(results["settled"]["curve"]) == 7
    assert seen and all(done <= total for done, total in seen)
    text = tables(results)
    assert "At true cost 0.9 expect at best" in text and "each text its own" in text and "nan" not in text
    assert str(tmp_path) not in json.dumps(results)


def test_ended_anywhere_it_comes_to_the_same(options: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Ended(BaseException):
        pass

    whole = timeless(run(options()))
    real, left = Drops._row, [0]

    def row(self: Drops, *args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Ended
        return real(self, *args)

    monkeypatch.setattr(Drops, "_row", row)
    ended, before = 0, -1
    while True:
        left[0] = 15
        try:
            results = run(options(output=tmp_path / "out", resume=ended > 0))
            break
        except Ended:
            ended += 1
            size = (tmp_path / "out" / "chunks.jsonl").stat().st_size
            assert size > before, "each time it gets on"
            before = size
    assert ended > 2 and timeless(results) == whole
    with pytest.raises(ValueError, match="holds another run: its text is"):
        run(options(output=tmp_path / "out", resume=True, tokens=80))
    with pytest.raises(ValueError, match="pass --resume"):
        run(options(output=tmp_path / "out"))


def test_prices(tiny_folder: Path, tiny_model: Callable, adapted: Callable):
    config: Any = config_ahead(str(tiny_folder))
    gone, skipped = dropping(config), routing(config)
    ledger = adapted(tiny_model("llama"), Static(order=(2,), adapter_ratio=0)).converted.ledger
    assert gone.saved == ledger.layers[2].total / ledger.dense and gone.dropped(gone.cost(3.0)) == pytest.approx(3)
    routed = adapted(tiny_model("llama"), FlexiDepth(first=0)).converted.ledger
    assert skipped.cost(6) == pytest.approx(routed.floor), "all that can be skipped is"
    assert skipped.saved < gone.saved and skipped.fixed > 0 == gone.fixed
    assert Price(0.1, 0.02).dropped(0.9) == pytest.approx(1.2)


def test_a_word_is_settled_from_where_it_stays():
    likeliest = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]], dtype=bool)
    told = settled(likeliest, np.array(["number", "number", "punctuation"]))
    assert told["layers"] == pytest.approx((2 + 1 + 4) / 3)
    assert [each["class"] for each in told["classes"]] == ["number", "punctuation"]
    assert told["classes"][0] == {"class": "number", "tokens": 2, "layers": 1.5, "half": 1.0}
    assert told["stays"] == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3, 1])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"budgets": (1.0,)}, "--budgets: a budget lies above 0 and below 1.0"),
        ({"budgets": ()}, "--budgets names none"),
        ({"tokens": 8}, "--length must be at least 8, and --tokens at least that, not 40 and 8"),
        ({"resume": True}, "--resume needs --output"),
    ],
)
def test_options_that_make_no_sense(options: Callable, wrong: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        options(**wrong)


def test_what_is_wrong_is_said_before_anything_is_read(
    options: Callable, tiny_folder: Path, tiny_plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "load_base", lambda *_: pytest.fail("no weights are read"))
    (tmp_path / "short.txt").write_text("a fox")
    (tmp_path / "text.md").write_text(TEXT)
    for data, says in (("none.txt", "none.txt"), ("short.txt", "fewer than 64 tokens"), ("text.md", ".txt and .jsonl")):
        with pytest.raises((ValueError, OSError), match=says):
            run(options(data=tmp_path / data))
    monkeypatch.setattr(module, "check_data", lambda _: pytest.fail("no text is read"))
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_folder.iterdir():
        if "token" not in file.name and "template" not in file.name:
            (bare / file.name).write_bytes(file.read_bytes())
    routed = tmp_path / "routed"
    export(*load(str(tiny_folder), str(tiny_plugin), device="cpu"), routed)
    wrong = ((bare, "tokenizer"), (tmp_path / "nothing", "no such file or folder"), (routed, "is routed already"))
    for model, says in wrong:
        with pytest.raises(ValueError, match=says):
            run(options(model=str(model)))
