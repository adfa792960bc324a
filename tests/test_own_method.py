"""A method of one's own, in a package of one's own that is made here: found by its entry point, in processes that know
nothing of it, and used by every verb as our own methods are. Its router is of a shape that no kernel knows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest

METHOD = '''
"""Nearness: a layer runs for tokens that lie near to a learned direction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision
from depthdial.core.estimators import straight_through
from depthdial.core.layers import Part
from depthdial.core.method import Dims, Method, Parts, Seen, span
from depthdial.core.penalties import squared_depth
from depthdial.core.program import Program, Step, plain
from depthdial.core.tokens import Tokens, Trace


class Direction(Part):
    """scale * cos(x, direction): no dense layer, so nothing that a kernel has."""

    runs_for = "all"

    def __init__(self, dim: int, scale: float):
        super().__init__()
        self.direction = nn.Parameter(torch.empty(dim))
        self.scale = scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.direction)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.cosine_similarity(x.float(), self.direction.float(), dim=-1)

    @property
    def macs(self) -> int:
        return 2 * self.direction.numel()


@dataclass(frozen=True)
class Nearness(Method):
    example: ClassVar[Mapping[str, object]] = {"first": 2}

    first: int | None = None
    scale: float = 8.0
    alpha: float = 1e-3

    def program(self, depth: int) -> Program:
        return plain(depth, span(self.first, None, (), depth))

    def parts(self, step: Step, dims: Dims) -> dict[str, nn.Module]:
        return {"router": Direction(dims.hidden, self.scale)}

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        g = tokens.shifted(parts["router"](seen.x)).sigmoid()
        m = straight_through(g > 0.5, g)
        return Decision(g > 0.5, m, 1 - m, g)

    def loss(self, tokens: Tokens, trace: Trace) -> Tensor | None:
        return self.alpha * squared_depth(trace.stack("score"))
'''
CHECK = '''
"""The engine's tokens, depths and costs are those of the dense reference, at a budget that the plug-in can meet."""

import json
import sys

import torch

from depthdial import LLM, METHODS, SamplingParams, load
from depthdial.models.converted import converted_of

folder, plugin = sys.argv[1:]
llm = LLM(folder, plugin, dtype="float32", device="cpu")
(out,) = llm.generate([[5, 6, 7, 8]], SamplingParams(24, ignore_eos=True, budget=llm.budget, prompt_budget=1.0))
rows = llm.stats.rows_run
(said,) = llm.generate(["the quick"], SamplingParams(12, ignore_eos=True, budget=llm.budget))
model, _ = load(folder, plugin, dtype="float32", device="cpu")
written = model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=24, do_sample=False, eos_token_id=None)
print(json.dumps({
    "method": type(converted_of(model).method).__name__, "known": "nearness" in METHODS,
    "same": written[0, 4:].tolist() == out.token_ids,
    "budget": llm.budget, "text": said.text, "text_cost": said.cost, "text_depths": said.depths,
    "depths": out.depths, "cost": out.cost, "layers": llm.layers, "rows": rows,
}))
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the package, as pip leaves it: the module, and what it says of itself."""
    folder = tmp_path_factory.mktemp("site-packages")
    (folder / "nearness.py").write_text(METHOD)
    info = folder / "nearness-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nearness\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(
        "[depthdial.methods]\nnearness = nearness:Nearness\nbroken = nearness:Nowhere\n"
    )
    (folder / "check.py").write_text(CHECK)
    return folder


def run(place: Path | None, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], env=around(place), capture_output=True, text=True, check=False)


def around(place: Path | None) -> dict[str, str]:
    """The environment of a process that has the package, or not."""
    paths = [*([] if place is None else [str(place)]), *filter(None, sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def verb(place: Path | None, *args: str) -> subprocess.CompletedProcess[str]:
    return run(place, "-m", "depthdial", *args)


def served(place: Path, common: list[str], model: str, facts: dict) -> None:
    """A server of its own process, whose engine is another one, writes what the engine here does."""
    server = subprocess.Popen([sys.executable, "-m", "depthdial", "serve", "--port", "0", *common],
                              env=around(place), stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert server.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        assert address is not None
        body = {"model": model, "prompt": "the quick", "max_tokens": 12, "ignore_eos": True, "temperature": 0}
        body |= {"budget": facts["budget"]}
        answer = httpx.post(f"{address[0]}/v1/completions", json=body, timeout=120).json()
        assert answer["choices"][0]["text"] == facts["text"]
        usage = answer["usage"]
        assert usage["cost"] == pytest.approx(facts["text_cost"], abs=1e-4) and usage["cost"] < 1
    finally:
        server.terminate()
        assert server.wait(120) == 0


def test_it_is_listed_and_a_broken_one_beside_it_is_named(place):
    listed = verb(place, "methods")
    assert listed.returncode == 0, listed.stderr
    assert (
        "nearness: Nearness: a layer runs for tokens that lie near" in listed.stdout and "scale = 8.0" in listed.stdout
    )
    assert "flexidepth: " in listed.stdout
    assert "the method 'broken' of nearness:Nowhere is left out: AttributeError" in listed.stderr
    assert listed.stderr.count("\n") == 1


def test_the_dense_reference_runs_it(place, tiny_folder):
    code = """
        import sys, torch
        from depthdial import convert
        from depthdial.methods import METHODS
        from depthdial.models import load_base
        kind = METHODS["nearness"]
        torch.manual_seed(0)
        model = convert(load_base(sys.argv[1], "float32", "cpu")[0], kind(**kind.example))
        model(torch.arange(3, 83)[None])
        keep = model.route.keep()
        assert keep[:2].all() and 0.1 < keep[2:].float().mean() < 0.9, keep.float().mean((1, 2))
        assert 0.3 < model.route.cost() < 1
    """
    done = run(place, "-c", textwrap.dedent(code), str(tiny_folder))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_it_is_trained_saved_loaded_by_name_served_and_benched(place, tiny_folder, tmp_path):
    data, plugin = tmp_path / "text.jsonl", tmp_path / "plugin"
    data.write_text("".join(json.dumps({"text": f"the quick fox number {i} jumps"}) + "\n" for i in range(60)))
    small = "--steps 3 --batch 2 --length 32 --heldout-tokens 256 --generated-tokens 128 --budget 0.8 --set first=2"
    trained = verb(place, "train", "--model", str(tiny_folder), "--data", str(data), "--output", str(plugin),
                   "--method", "nearness", "--dtype", "float32", *small.split())  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    saved = json.loads((plugin / "method.json").read_text())
    assert saved["method"] == {"name": "nearness", "first": 2, "scale": 8.0, "alpha": 0.001}

    checked = run(place, str(place / "check.py"), str(tiny_folder), str(plugin))
    assert checked.returncode == 0, checked.stderr
    facts = json.loads(checked.stdout)
    assert facts["method"] == "Nearness" and facts["known"] and facts["same"], "as the dense reference writes"
    assert 2 <= min(facts["depths"]) < max(facts["depths"]) <= 6 == facts["layers"], (
        "some tokens skip, and not all alike"
    )
    assert facts["cost"] < 1 and facts["rows"] < 6 * 28, "what was skipped was not run"

    common = ["--model", str(tiny_folder), "--plugin", str(plugin), "--dtype", "float32", "--device", "cpu"]
    benched = verb(place, "bench", *common, "--budgets", "0.9", "--batches", "1", "--prefill", "", "--repeats", "1",
                   "--prompt-tokens", "6", "--new-tokens", "4", "--no-compiled", "--json")  # fmt: skip
    assert benched.returncode == 0, benched.stderr
    assert any(row["kind"] == "adaptive" and row["cost"] < 1 for row in json.loads(benched.stdout)["rows"])

    served(place, common, tiny_folder.name, facts)

    unknown = verb(None, "generate", "the quick", *common)
    assert unknown.returncode == 2 and "Traceback" not in unknown.stderr
    assert "unknown method 'nearness'; choose one of flexidepth" in unknown.stderr
    assert "or install the package that brings it" in unknown.stderr
