"""Outputs in a notebook: every token on its colour, a card for each, nothing fetched, nothing of a text obeyed."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from depthdial.core.colours import colours
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.output import Piece, RequestOutput, Sample, shortened

EVIL = '<script src="https://x.y/z.js">&amp;\x1b[2J\n'
PIECES = [Piece("The", 5, 4, 0.8, b"\xf0"), Piece(EVIL, 6, 6, 1.0, b""), Piece(" end", 7, 5, 0.9, b"\xf4")]


class Reader(HTMLParser):
    """Tags with their attributes, and the text of tokens outside of their cards."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[str] = []
        self.cards: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("br",):
            self.open.append(dict(attrs).get("class") or tag)
            if self.open[-1] == "t":
                self.tokens.append("")
                self.cards.append("")

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "card" in self.open:
            self.cards[-1] += data
        elif self.open and self.open[-1] == "t":
            self.tokens[-1] += data


def output(**fields: Any) -> RequestOutput:
    samples = [Sample(PIECES, "stop", **fields)]
    return RequestOutput('Say "<b>"', [1, 2], [6, 6], 1.0, samples)


def test_each_token_has_its_colour_and_its_card():
    page = Reader(output()._repr_html_())
    assert page.tokens == ["The", EVIL.replace("\x1b", "␛").replace("\n", "↵\n"), " end"]
    styles = [a["style"] for tag, a in page.tags if a.get("class") == "t"]
    assert styles == [f"color:{k};background:{b}" for k, b in map(colours, (0.0, 1.0, 0.5))], "from least to most"
    assert page.cards[0].startswith("The · id 54 of 6 layers") and "true cost 0.800 of dense" in page.cards[0]
    assert all(a["style"] == "display:none" for _, a in page.tags if a.get("class") == "card"), "hidden by itself"
    assert not page.open, "every tag is closed"


def test_which_layers_ran_is_drawn():
    cards = output()._repr_html_().split('<span class="cells">')[1:]
    cells = [re.findall(r"<i( class=ran)?></i>", card.partition("</span>")[0]) for card in cards]
    assert [[bool(cell) for cell in row] for row in cells] == [
        [True, True, True, True, False, False], [True] * 6, [True, True, True, True, False, True],
    ]  # fmt: skip


def test_nothing_is_fetched_and_nothing_obeyed():
    page = Reader(output()._repr_html_())
    assert {tag for tag, _ in page.tags} == {"style", "div", "p", "span", "i", "b", "br"}
    names = {name for _, attributes in page.tags for name in attributes}
    assert names <= {"class", "style", "tabindex"}
    assert not re.search(
        r"url\(|@import|https?:", re.sub(r"&[a-z#0-9]+;|https://x\.y/z\.js", "", output()._repr_html_())
    )


def test_what_is_said_beside_the_text():
    page = output()._repr_html_()
    assert "Say &quot;&lt;b&gt;&quot;" in page and "4 <i" in page and "6 layers" in page
    assert "3 tokens, 5.0 of 6 layers on average, true cost 0.950 of dense, read at 1.000" in page
    shares = [{5: math.log(0.25)}, {6: math.log(0.5)}, {}]
    assert "probability 0.250" in output(logprobs=shares)._repr_html_()
    failed = RequestOutput(None, [1], [], math.nan, [Sample([], "error", error="it <broke>")])
    assert "no token (error)" in failed._repr_html_() and "(it &lt;broke&gt;)" in failed._repr_html_()


def test_reprs_are_short():
    assert repr(output()) == f"RequestOutput(Sample({shortened(output().text)}, 3 tokens, cost 0.950, stop))"
    assert len(shortened("long " * 99)) < 80 and shortened("a\nb") == r"'a\nb'"


def test_of_a_real_text_and_the_models_around_it(tiny_folder: Path, tiny_plugin: Path):
    llm = LLM(str(tiny_folder), str(tiny_plugin), 0.8, "float32", "cpu")
    (out,) = llm.generate(["the quick"], SamplingParams(12, seed=1, ignore_eos=True))
    page = Reader(out._repr_html_())
    assert len(page.tokens) == 12 == len({id(piece) for piece in out.samples[0].pieces})
    assert min(out.depths) < 6 and f"{min(out.depths)} of 6 layers" in "".join(page.cards)
    assert repr(llm) == "LLM(llama, 6 layers, plugin tiny, budget 0.8, prompt_budget 1.0)"
    model: Any = llm.model
    assert repr(model.converted) == "Converted(FlexiDepth, 4 of 6 layers, with a dial)"
    assert repr(model.converted.plugin.curves["text"]) == "Curve(3 points, costs 0.700 to 0.950)"


def test_a_route_says_what_it_is_of(adaptive, tiny_model):
    import torch

    model: Any = adaptive(tiny_model("llama"))
    assert repr(model.route) == "Route(no pass yet)"
    model(torch.arange(3, 13).view(2, 5))
    assert repr(model.route) == f"Route(2 x 5 tokens, {model.route.layers_used.float().mean():.1f} of 6 layers)"


@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
def test_letters_can_be_read_on_their_background(place: float):
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, colours(place)))
    assert (high + 0.05) / (low + 0.05) >= 4.5
