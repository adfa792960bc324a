"""Summaries of made-up maps whose answers are known."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from depthdial.maps.schema import DepthMap
from depthdial.maps.store import write_map
from depthdial.maps.summary import Summary, summarise
from depthdial.maps.table import tables
from depthdial.maps.tokens import token_table


@pytest.fixture
def summed(made_up, six_layers, tmp_path):
    def run(rows, **options) -> Summary:
        return summarise(write_map(DepthMap(six_layers, rows), tmp_path / "map.parquet"), **options)

    return run


def cells(summary: Summary, table: str) -> dict[str, tuple[int, float]]:
    return {cell.name: (cell.tokens, cell.layers.mean) for cell in summary.tables[table]}


def test_a_token_has_the_layers_of_the_pass_that_wrote_it(made_up, summed):
    rows = [made_up([2, 3, 4, 6], id="a"), made_up([2, 5, 5], id="b")]
    wrote, content = summed(rows), summed(rows, view="read")
    assert wrote.layers.mean == np.mean([2, 3, 4, 2, 5]) and wrote.tokens == 5
    assert content.layers.mean == np.mean([3, 4, 6, 5, 5])
    assert cells(wrote, "position") == {"0": (2, 2), "1": (2, 4), "2-3": (1, 4)}


def test_scopes_choose_tokens(made_up, summed):
    marks = np.array([False, False, True, True])
    rows = [made_up([6, 5, 4, 3], id=name, generated=marks) for name in "ab"]
    assert summed(rows).layers.mean == 4.5
    assert summed(rows, scope="prompt").layers.mean == 6
    assert summed(rows, scope="prompt", view="read").layers.mean == 5.5
    assert summed(rows, scope="all").tokens == 6
    no_answer = [made_up([6, 5], id="a", generated=np.array([False, False]))]
    assert summed(no_answer).scope == "prompt"


def test_passes_that_never_were_are_left_out(made_up, summed):
    rows = [made_up([4, 5, 0], id="a"), made_up([4, 5, 0], id="b")]
    assert summed(rows, view="read").tokens == 2
    with pytest.raises(ValueError, match="no token whose pass is known"):
        summed([made_up([0, 0])])


def test_chat_templates_are_left_out(made_up, summed):
    kinds = ["template", "content word", "template", "number"]
    rows = [made_up([6, 6, 2, 4], id=name, token_class=kinds) for name in "ab"]
    assert cells(summed(rows), "token class") == {"content word": (2, 6), "number": (2, 2)}


def test_sides_of_the_equals_sign(made_up, summed):
    pieces = ["Q", "1", " +", " 2", " =", " ", "3", "<end>"]
    kinds = ["number"] * 7 + ["end mark"]
    rows = [made_up([2, 3, 2, 3, 5, 6, 6, 2], pieces, id=name, token_class=kinds) for name in "ab"]
    result = summed(rows)
    assert cells(result, "side of =") == {
        "left of =": (6, pytest.approx(7 / 3)), "right of =": (4, 5.5),
        "left of =, digits": (4, 2), "right of =, digits": (2, 6),
    }  # fmt: skip
    assert {o.claim: o.verdict for o in result.orderings}["left of = < right of ="] == "confirmed"


def test_repeats_are_told_from_first_occurrences(made_up, summed):
    pieces = ["x", "a", "b", "c", "a", "b", "c", "b"]
    rows = [made_up([6, 6, 6, 6, 3, 2, 5, 1], pieces, id=name) for name in "ab"]
    result = summed(rows)
    # a and the last b come again, after another token than before; a b and b c are pairs seen before
    assert cells(result, "repetition") == {"new token": (6, 6), "repeated token": (4, 5.5), "repeated pair": (4, 2.5)}
    assert {o.claim: o.verdict for o in result.orderings}["repeated pair < new token"] == "confirmed"


def test_repetition_within_tasks_takes_the_tasks_out(made_up, summed):
    # the deep task repeats, the shallow one does not: within each, nothing depends on repetition
    deep = [made_up([6] * 8, list("xabababc"), id=f"d{i}", task="d") for i in range(4)]
    flat = [made_up([2] * 4, list("xabc"), id=f"f{i}", task="f") for i in range(4)]
    result = summed(deep + flat)
    verdicts = {o.claim: o.verdict for o in result.orderings}
    assert verdicts["repeated pair < new token"] == "refuted"
    assert verdicts["repeated pair < new token, within tasks"] == "undecided"


def test_repetition_within_tasks_is_the_mean_of_differences_inside_them(made_up, summed):
    """Shares of cells that differ from task to task must not shrink what is the same in each."""
    rows = []
    for task, depth, pieces in (("a", (5, 6), "xyababababab"), ("b", (1, 2), "xyzuvwabcdefab")):
        calls: set[str] = set()
        layers = []
        for here, then in zip(pieces, [*pieces[1:], ""], strict=True):
            layers.append(depth[here + then not in calls])  # of the pass that writes the next token
            calls.add(here + then)
        rows += [made_up(layers, list(pieces), id=f"{task}{i}", task=task) for i in range(4)]
    result = summed(rows)
    steps = {o.claim: o.steps[0][1] for o in result.orderings}
    assert steps["repeated pair < new token, within tasks"].mean == pytest.approx(1)


def test_sides_are_those_of_each_answer(made_up, summed):
    pieces = ["Q", "a", "b", "Q", "2", "=", "4", "Q", "c", "d"]
    generated = [piece != "Q" for piece in pieces]
    rows = [
        made_up([2] * 10, pieces, id=name, generated=np.array(generated), token_class=["content word"] * 10)
        for name in "ab"
    ]
    assert cells(summed(rows), "side of =") == {"left of =": (2, 2), "right of =": (2, 2)} | {
        "left of =, digits": (2, 2), "right of =, digits": (2, 2),
    }  # fmt: skip


def test_names_are_no_markup(made_up, summed):
    rows = [made_up([2] * 4, list("xabc"), id=name, task="[/math]") for name in "ab"]
    console = Console(file=io.StringIO(), width=200)
    for part in tables(summed(rows)):
        console.print(part)
    assert "[/math]" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_orderings_of_tasks_are_judged_by_their_intervals(made_up, summed):
    generator = np.random.default_rng(0)

    def rows(depth):
        return [
            made_up(generator.integers(0, 2, 6) + depth[task], id=f"{task}{i}", task=task, group=f"g{i}")
            for task in depth
            for i in range(30)
        ]

    (result,) = summed(rows({"copy": 1, "summarise": 3, "continue": 5})).orderings[:1]
    assert (result.claim, result.verdict) == ("copy < summarise < continue", "confirmed")
    assert [name for name, _ in result.steps] == ["summarise - copy", "continue - summarise"]
    assert result.steps[0][1].mean == pytest.approx(2, abs=0.3)
    assert summed(rows({"copy": 1, "summarise": 5, "continue": 3})).orderings[0].verdict == "refuted"
    assert summed(rows({"copy": 1, "summarise": 3, "continue": 3})).orderings[0].verdict == "undecided"
    assert not any("copy" in o.claim for o in summed(rows({"copy": 1, "continue": 3})).orderings)


def test_layers_and_entropy(made_up, summed):
    entropy = np.array([0.1, 0.5, 0.2, 0.9, 0.3], np.float32)
    rows = [
        made_up([2, 4, 3, 6, 3], id=f"{i}", entropy=entropy, surprisal=np.array([np.nan, 1, 2, 3, 4], np.float32))
        for i in range(4)
    ]
    result = summed(rows)
    assert [rate.mean for rate in result.run_rate] == [1, 1, 0.75, 0.5, 0.25, 0.25]
    assert result.run_rate_by_task == {"text": [1, 1, 0.75, 0.5, 0.25, 0.25]}
    assert result.entropy["all (Spearman)"].mean == pytest.approx(1) and result.entropy["text"].mean > 0.9
    assert sum(cell.tokens for cell in result.tables["surprisal"]) == 16
    assert next(iter(cells(result, "surprisal").values())) == (4, 2)


def test_json_has_no_nan(made_up, summed):
    text = json.dumps(summed([made_up([2, 3, 4])]).to_json(), allow_nan=False)
    assert json.loads(text)["layers"] == {"mean": 2.5, "low": None, "high": None}


def test_maps_without_masks_can_be_summarised(made_up, summed):
    result = summed([made_up([2, 3, 4], ran=None), made_up([2, 3, 4], id="b")])
    assert result.run_rate == [] and result.layers.mean == 2.5


def test_bad_words_are_refused(made_up, summed):
    with pytest.raises(ValueError, match="view must be wrote or read"):
        summed([made_up([2, 3])], view="writes")
    with pytest.raises(ValueError, match="scope must be one of answer, prompt, all"):
        summed([made_up([2, 3])], scope="some")
    with pytest.raises(ValueError, match="no token in prompts; ask for --scope all"):
        summed([made_up([2, 3])], scope="prompt")


def test_real_maps_agree_with_their_rows(tiny_map, tmp_path):
    facts, tokens, texts = token_table([tiny_map], "read")
    assert facts == tiny_map.facts and texts == 3
    assert tokens.depth.sum() == sum(int(row.layers_used.sum()) for row in tiny_map.rows)
    assert tokens.ran.sum(1).tolist() == tokens.depth.tolist()
    wrote = token_table([tiny_map], "wrote")[1]
    assert len(wrote) == len(tokens) - texts and math.isfinite(wrote.surprisal.sum())
