"""What the page asks of the dial, in Node: for models with a curve, without one, and without routers."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from depthdial.serve.pages import FOLDER

NODE = shutil.which("node")
CURVE = {"floor": 0.7, "budget": 0.8, "own": False}
CASES = [
    (CURVE, False, 0.8, "Adaptive, budget 0.80"),
    (CURVE, True, 0.93, "Adaptive, budget 0.93"),
    (CURVE, True, 1, "Dense"),
    ({**CURVE, "budget": None}, False, None, "As trained"),  # a plug-in that recommends none
    ({**CURVE, "budget": None}, True, 0.75, "Adaptive, budget 0.75"),
    ({"floor": None, "budget": None, "own": True}, False, None, "As trained"),  # pre-trained with its routers
    ({"floor": None, "budget": None, "own": False}, False, None, "As trained"),  # a plug-in without a curve
    ({"floor": None, "budget": 1, "own": True}, False, 1, "All layers"),  # what it was pre-trained without
    ({"floor": None, "budget": 1, "own": False}, False, 1, "Dense"),
]


@pytest.mark.skipif(NODE is None, reason="needs node")
@pytest.mark.parametrize(("facts", "moved", "budget", "title"), CASES)
def test_a_model_runs_as_it_was_trained_unless_the_dial_is_moved(facts, moved, budget, title):
    assert NODE is not None
    code = f"""import {{chosen, named}} from {json.dumps((FOLDER / "dial.js").as_uri())};
        const facts = {json.dumps(facts)}, budget = chosen(facts, {json.dumps(moved)}, {json.dumps(budget)});
        console.log(JSON.stringify([budget, named(budget, facts)]));"""
    command = [NODE, "--input-type=module", "--no-warnings", "-e", code]
    data, name = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert data == budget and name["title"] == title
    assert ("untouched base" in name["says"][1]) == (title == "Dense")


@pytest.mark.skipif(NODE is None, reason="needs node")
@pytest.mark.parametrize(
    ("facts", "ways"),
    [
        ({**CURVE, "prompt_budget": 1, "prompt_floor": 0.7}, ["read in full", "as the answer"]),
        ({**CURVE, "prompt_budget": "same", "prompt_floor": 0.7}, ["as the answer", "read in full"]),
        ({**CURVE, "prompt_budget": 0.9, "prompt_floor": 0.7}, ["read at 0.90", "read in full", "as the answer"]),
        ({"floor": None, "budget": None, "prompt_budget": "same", "prompt_floor": None}, ["as the answer"]),
        ({"floor": None, "budget": 1, "prompt_budget": 1, "prompt_floor": 1}, ["read in full"]),  # the bare base
    ],
)
def test_the_ways_to_read_a_prompt_begin_with_the_servers_own(facts, ways):
    assert NODE is not None
    code = f"""import {{readings}} from {json.dumps((FOLDER / "dial.js").as_uri())};
        console.log(JSON.stringify(readings({json.dumps(facts)})));"""
    command = [NODE, "--input-type=module", "--no-warnings", "-e", code]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [way["says"] for way in result] == ways and result[0]["value"] == facts["prompt_budget"]


def test_the_page_asks_no_budget_of_its_own():
    """The dial's place is asked for where it was moved, and nowhere else."""
    page = (FOLDER / "app.js").read_text()
    assert page.count('at("budget").value') == 1 and page.count("budgetNow()") == 2
