"""`depthdial map` and its summary and page, as processes and in this one."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from depthdial.cli.app import app
from depthdial.maps.store import read_map

TYING = """
import os, signal, sys
replace = os.replace
def torn(part, path):
    if path.name == "part-00002.parquet":  # in the midst of writing the third part
        os.truncate(part, os.path.getsize(part) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(part, path)
os.replace = torn
from depthdial.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def options(tiny_folder, tiny_plugin):
    return ["--model", str(tiny_folder), "--plugin", str(tiny_plugin), "--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "some.jsonl"
    rows = [{"prompt": f"the fox {i} {'quick ' * (i % 3)}", "task": "ab"[i % 2]} for i in range(9)]
    rows[4]["answer"] = " = 4"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def mapped(options, prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps") / "map"
    inputs = ["--max-new-tokens", "4", "--part-size", "2", "--scores", "--alternatives", "2"]
    return folder, run("map", *options, *inputs, "--prompts", str(prompts), "--output", str(folder), "--json"), inputs


def run(*args: str):
    return CliRunner().invoke(app, list(args), catch_exceptions=False)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_map_is_made_and_told_of(mapped):
    folder, result, _ = mapped
    facts, results = json.loads(result.stdout), read_map(folder)
    assert facts["texts"] == len(results.rows) == 9 and facts["parts"] == facts["parts_in_all"] == 5
    assert facts["prompt_cost"] == 1 == results.facts.prompt_budget and 0.5 < facts["cost"] < 0.99, "prompts are read"
    assert all((row.cost[~row.generated] == 1).all() for row in results.rows if row.cost is not None)
    assert facts["tokens"] == sum(len(row.pieces) for row in results.rows)
    assert 2 < facts["layers"] < 6 and results.facts.budget == 0.8 and results.facts.plugin == "tiny"
    assert [row.task for row in results.rows] == list("ababababa") and results.rows[4].forced
    assert all(row.scores is not None and row.alternatives is not None for row in results.rows)
    assert set(files(folder)) == {"README.md", "map.json", *(f"data/part-0000{i}.parquet" for i in range(5))}


def test_prompts_may_skip_too(options, prompts, tmp_path):
    for request in ("same", "0.75"):
        inputs = ["--prompts", str(prompts), "--max-new-tokens", "4", "--prompt-budget", request]
        result = run("map", *options, *inputs, "--output", str(tmp_path / request))
        facts = read_map(tmp_path / request).facts
        assert facts.prompt_budget == ("same" if request == "same" else 0.75) and facts.prompt_offset != math.inf
        assert "true cost of prompts 0." in result.stdout and "true cost of answers 0." in result.stdout


def test_hugging_face_datasets_loads_the_folder(mapped, tmp_path):
    from datasets import load_dataset

    result = load_dataset(str(mapped[0]), split="train", cache_dir=str(tmp_path))
    assert len(result) == 9 and result[0]["text"].startswith("the fox 0")


@pytest.mark.slow
def test_a_killed_map_goes_on_as_if_nothing_had_been(mapped, options, prompts, tmp_path):
    folder, _, inputs = mapped
    words = ["map", *options, *inputs, "--prompts", str(prompts), "--output", str(tmp_path / "map")]
    killed = subprocess.run([sys.executable, "-c", TYING, *words], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    there, whole = set(files(tmp_path / "map")), {"map.json", "data/part-00000.parquet", "data/part-00001.parquet"}
    (half,) = there - whole
    assert whole < there and half.startswith("data/.part-00002-")
    assert len(read_map(tmp_path / "map").rows) == 4, "half a file is not read"
    result = run(*words, "--resume", "--json")
    assert json.loads(result.stdout)["parts"] == 3
    assert files(tmp_path / "map") == files(folder)


def test_a_finished_map_is_not_made_again(mapped, options, prompts, failed):
    folder, _, inputs = mapped
    words = ["map", *options, *inputs, "--prompts", str(prompts), "--output", str(folder)]
    before = files(folder)
    assert "pass --resume" in failed(*words)
    assert json.loads(run(*words, "--resume", "--json").stdout)["parts"] == 0
    assert "its settings have max_new_tokens 4, not 5" in failed(*words, "--max-new-tokens", "5", "--resume")
    assert "its facts have budget 0.8, not 0.9" in failed(*words, "--budget", "0.9", "--resume")
    assert files(folder) == before


def test_tasks_use_the_chat_template(options, tmp_path):
    words = ["--tasks", "repeat,add", "--count", "2", "--no-base"]
    result = run("map", *options, *words, "--output", str(tmp_path / "map"))
    assert result.exit_code == 0, result.output
    assert "next: depthdial map summary" in result.stdout
    rows = read_map(tmp_path / "map").rows
    assert rows[0].text.startswith("<|im_start|>user\nRepeat this list of numbers:") and rows[0].entropy is None
    assert rows[2].text.endswith("= " + str(sum(map(int, re.findall(r"\d+", rows[0].text.partition("assistant")[2])))))


def test_summary_prints_and_writes(mapped, tmp_path):
    folder = mapped[0]
    result = run("map", "summary", str(folder), "--output", str(tmp_path / "out"))
    assert result.exit_code == 0 and "token class" in result.stdout and "runs for" in result.stdout
    facts = json.loads(run("map", "summary", str(folder), "--json", "--view", "read").stdout)
    assert facts["view"] == "read" and {row["name"] for row in facts["tables"]["task"]} == {"a", "b"}
    assert (tmp_path / "out" / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["view"] == "wrote"


def test_html_draws_one_map_or_two(mapped, tmp_path):
    folder = str(mapped[0])
    result = run("map", "html", folder, "-o", str(tmp_path / "one.html"), "--limit", "4", "--title", "Mine")
    assert "4 texts" in result.stdout and "<title>Mine</title>" in (tmp_path / "one.html").read_text()
    run("map", "html", folder, folder, "-o", str(tmp_path / "two.html"))
    assert (tmp_path / "two.html").read_text().count("<section") == 18


def test_bad_input_is_one_line(failed, options, tmp_path, mapped):
    out = ["--output", str(tmp_path / "x")]
    assert "--output" in failed("map", "--tasks", "all")
    assert "one of the two" in failed("map", *out)
    assert "no such file of prompts" in failed("map", *out, "--prompts", str(tmp_path / "none.jsonl"))
    assert "unknown task 'cpoy'" in failed("map", *out, "--tasks", "cpoy")
    assert "must be i/n" in failed("map", *out, "--tasks", "all", "--shard", "3/2")
    assert "alternatives are the base's" in failed(
        "map", *options, *out, "--tasks", "add", "--no-base", "--alternatives", "1"
    )
    assert "below" in (text := failed("map", *options, *out, "--tasks", "add", "--budget", "0.1")) or "0.7" in text
    assert "is no number up to 1.0 and not same" in failed("map", *out, "--tasks", "add", "--prompt-budget", "all")
    assert "outside" in failed("map", *options, *out, "--tasks", "add", "--prompt-budget", "0.2")
    assert not (tmp_path / "x").exists()
    assert "no such map" in failed("map", "summary", str(tmp_path / "none"))
    assert "not a depth map" in failed("map", "html", str(tmp_path))
    assert "cannot be a page" in failed("map", "html", str(mapped[0]), "-o", str(tmp_path / "no" / "page.html"))
    assert "view must be" in failed("map", "summary", str(mapped[0]), "--view", "x")
