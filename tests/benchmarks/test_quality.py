"""The quality benchmark from data files to JSON, picture and tables, on a tiny model; and what its text leaves out."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from depthdial.methods import Static
from depthdial.models.checkpoint import Plugin, save
from depthdial.models.convert import convert
from depthdial.models.fingerprint import fingerprint
from depthdial.train.data import Record
from heldout import data as heldout_text

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def asked(question: str, answer: str) -> Record:
    return Record("t", messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def test_passages_seen_in_training_are_recognised():
    passage = " ".join(f"word{i}" for i in range(40))
    other = " ".join(f"other{i}" for i in range(40))
    trained = [asked(f"{passage} Who was it?", "a"), Record("p", text="something else " * 30)]
    held = [
        asked(f"Read: {passage} When was it?", "b"),
        asked(other, "c"),
        asked("short", "d"),
        Record("p", text=passage),
    ]
    shares = heldout_text.seen_shares(trained, held)
    seen, fresh, short, plain = (shares[id(r)] for r in held)
    assert seen > 0.8 and plain == 1.0
    assert fresh == short == 0.0


def test_words_of_two_neighbouring_records_make_no_passage():
    half = " ".join(f"word{i}" for i in range(10))
    rest = " ".join(f"word{i}" for i in range(10, 20))
    held = [Record("p", text=f"{half} {rest}")]
    trained = [Record("p", text=half), Record("p", text=rest)]
    assert heldout_text.seen_shares(trained, held)[id(held[0])] == 0.0


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The files that the recipe and the benchmark name, with a few words in each."""
    folder = tmp_path_factory.mktemp("data")
    words = [*"abcdefghijklmnopqrstuvwxyz"]
    drawn = [random.Random(i).choices(words, k=24) for i in range(2000)]  # no two share a passage
    rows = [{"prompt": " ".join(row[:16]), "completion": " ".join(row[16:])} for row in drawn]
    prose = [{"text": "the lazy dog and the other foxes " * 20}]
    files = {f"train/{name}": rows[i::7] for i, name in enumerate(heldout_text.recipe().FILES)}
    backwards = [" ".join(reversed(row)) for row in drawn[:60]]
    files["eval/gsm8k_test"] = [{"question": text, "answer": "2 + 2\n#### 4"} for text in backwards]
    files |= {"text/wikitext2_test": prose, "text/wikipedia_demo": prose}
    for name, content in files.items():
        path = folder / f"{name}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in content))  # gzip is told by content, not by name
    return folder


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "quality.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_from_files_to_tables(data, tiny_folder, tiny_plugin, tiny_model, tmp_path):
    static = convert(tiny_model("llama"), Static(order=(4, 2, 3), count=2))
    about = Plugin("static", Static(order=(4, 2, 3), count=2), fingerprint(tiny_model("llama")))
    other = save(static, tmp_path / "static", about)
    output = tmp_path / "out" / "quality.json"
    words = [
        "--data",
        data,
        "--model",
        tiny_folder,
        "--plugin",
        f"flexidepth={tiny_plugin}",
        "--plugin",
        f"static={other}",
    ]
    sizes = ["--tokens", 256, "--length", 64, "--batch", 2, "--budgets", "1.0,0.9,0.3", "--tolerance", 0.02]
    settings = [*map(str, sizes), "--dtype", "float32"]
    done = run(*words, *settings, "--output", output)
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert results["complete"]
    by_name = {s["name"]: s for s in results["subjects"]}
    assert list(by_name) == ["flexidepth", "static", "static, no adapters", "int8 dense"]
    (rounded,) = by_name.pop("int8 dense")["points"]
    assert rounded["budget"] == 1.0 == rounded["groups"]["all"]["cost"] and 0 < rounded["groups"]["all"]["kl"] < 0.1
    for subject in by_name.values():
        assert [p["budget"] for p in subject["points"]] == [1.0, 0.9]  # 0.3 is below every floor
        full, less = (p["groups"]["all"] for p in subject["points"])
        assert (full["cost"], full["kl"], full["ratio"]) == (1.0, 0.0, 1.0)
        assert abs(less["cost"] - 0.9) <= 0.02 and less["kl"] > 0
    assert set(results["text"]["groups"]) == {"all", "instruction", "maths", "prose", "answers"}
    assert results["routes"]["flexidepth"]["routers"]["layers"][0]["layer"] == 2
    assert output.with_suffix(".png").exists()
    assert str(tmp_path) not in output.read_text() and str(data) not in output.read_text()
    assert "| static, no adapters |" in done.stdout

    parts = [tmp_path / "flexidepth.json", tmp_path / "both.json"]
    assert run(*words[:6], *settings, "--output", parts[0]).returncode == 0
    rest = [*words[:4], *words[6:]]
    assert run(*rest, *settings, "--after", parts[0], "--output", parts[1]).returncode == 0
    both = json.loads(parts[1].read_text())
    assert sorted([_untimed(s) for s in both["subjects"]], key=lambda s: s["name"]) == sorted(
        [_untimed(s) for s in results["subjects"]], key=lambda s: s["name"]
    )
    assert both["routes"] == results["routes"] and [p["subjects"] for p in both["parts"]] == [
        ["flexidepth", "int8 dense"]
    ]
    otherwise = run(*rest, *settings, "--tolerance", "0.03", "--after", parts[0], "--output", tmp_path / "no.json")
    assert otherwise.returncode == 2 and "another text" in otherwise.stderr

    again = run(*words, "--output", output)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1 and "choose another --output" in again.stderr


def _untimed(subject: dict) -> dict:
    return {**subject, "points": [{**point, "seconds": None} for point in subject["points"]]}
