"""The page as text: nothing is fetched, nothing a model wrote is obeyed. In a browser: test_page.py."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from depthdial.maps.html import colour_passes, map_page
from depthdial.maps.schema import DepthMap, Facts, MapRow

HOSTILE = [
    "</script>",
    "<img src=x onerror=alert(1)>",
    "&amp;",
    '"',
    "'",
    "\x1b[31m",
    "\u202e",
    "{title}",
    "\u2028",
    "é",
]


class Seen(HTMLParser):
    """Tags by name, and the text of the tokens."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[str] = []
        self.data = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self._inside = "data" if found.get("id") == "data" else ""
        if tag == "span" and (found.get("class") or "").startswith("t "):
            self._inside = "token"
            self.tokens.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "token":
            self.tokens[-1] += data
        elif self._inside == "data":
            self.data += data


def test_the_text_is_on_the_page(tiny_map):
    calls = Seen(map_page([tiny_map], "A & B <c>"))
    assert "".join(calls.tokens) == "".join(row.text for row in tiny_map.rows)
    data = json.loads(calls.data)
    assert data["layers"] == 6 and len(data["texts"]) == 3
    for (result,), row in zip(data["texts"], tiny_map.rows, strict=True):
        assert result["depth"] == row.layers_used[colour_passes(row)].tolist()
        assert result["surprisal"][0] is None and result["entropy"][0] is None
        assert result["surprisal"][1:] == pytest.approx(row.surprisal[1:].tolist(), abs=1e-3)
        assert result["entropy"][1:] == pytest.approx(row.entropy[:-1].tolist(), abs=1e-3)


def test_a_page_needs_nothing_else(tiny_map):
    text = map_page([tiny_map])
    assert not re.search(r"https?://|//[a-z]+\.[a-z]+|@import|url\(", text)
    assert all("src" not in attrs and tag not in ("link", "iframe", "img") for tag, attrs in Seen(text).tags)


def test_hostile_text_stays_text(made_up, six_layers):
    row = made_up([6] * len(HOSTILE), HOSTILE, id="</title><script>", task="<b>")
    row = dataclasses.replace(row, alternatives=[[], *[[("</script><script>", 0.5)] for _ in HOSTILE[1:]]])
    calls = Seen(map_page([DepthMap(six_layers, [row])], "</title><script>alert(1)</script>"))
    assert [tag for tag, _ in calls.tags].count("script") == 2
    assert not {"img", "b"} & {tag for tag, attrs in calls.tags if "onerror" in attrs}
    shown_ = [piece.replace("\x1b", "\u241b") for piece in HOSTILE]
    assert calls.tokens == shown_
    assert json.loads(calls.data)["texts"][0][0]["pieces"] == shown_


def test_answers_show_the_pass_that_wrote_them(made_up):
    row = made_up([2, 3, 4, 5], generated=np.array([False, False, True, True]))
    assert colour_passes(row).tolist() == [0, 1, 1, 2]
    assert colour_passes(dataclasses.replace(row, layers_used=np.array([2, 3, 0, 5], np.int16))).tolist() == [
        0,
        1,
        1,
        -1,
    ]
    whole = dataclasses.replace(row, generated=np.array([True] * 4))
    assert colour_passes(whole).tolist() == [0, 0, 1, 2]


def test_two_maps_are_compared_text_by_text(tiny_map):
    less = dataclasses.replace(tiny_map, facts=dataclasses.replace(tiny_map.facts, budget=0.7), rows=tiny_map.rows[:2])
    calls = Seen(map_page([tiny_map, less]))
    assert [tag for tag, _ in calls.tags].count("article") == 2
    assert [tag for tag, _ in calls.tags].count("section") == 4
    assert json.loads(calls.data)["names"] == ["budget 0.8", "budget 0.7"]


def test_who_was_asked_is_said(tiny_map):
    """The base of a plug-in; a model that has none was asked itself."""
    maps = [dataclasses.replace(tiny_map, facts=dataclasses.replace(tiny_map.facts, plugin=p)) for p in ("it", None)]
    assert [json.loads(Seen(map_page([one])).data)["asked"] for one in maps] == ["the base", "the model"]


def test_rows_without_masks_or_scores_can_be_drawn(made_up, six_layers):
    row = made_up([6, 4, 0], ran=None)
    result = json.loads(Seen(map_page([DepthMap(six_layers, [row])])).data)["texts"][0][0]
    assert result["mask"] is None and result["scores"] is None and result["depth"] == [6, 6, 4]


def test_the_limit_is_spread_over_tasks(made_up, six_layers):
    rows: list[MapRow] = [made_up([6, 5], id=f"{task}{i}", task=task) for task in "ab" for i in range(5)]
    text = map_page([DepthMap(six_layers, rows)], limit=4)
    assert re.findall(r"<h2>(\w+)</h2>", text) == ["a0", "a1", "b0", "b1"] and "4 of 10 texts" in text


def test_what_cannot_be_drawn_is_refused(tiny_map, made_up, six_layers):
    with pytest.raises(ValueError, match="one map or compares two, not 3"):
        map_page([tiny_map] * 3)
    other = DepthMap(six_layers, [made_up([6, 5], id="elsewhere")])
    with pytest.raises(ValueError, match="no text in common"):
        map_page([tiny_map, other])
    same_name = DepthMap(six_layers, [made_up([6, 5], id=tiny_map.rows[0].id)])
    with pytest.raises(ValueError, match="no text in common"):
        map_page([tiny_map, same_name])
    deeper: Facts = dataclasses.replace(tiny_map.facts, layers=8)
    with pytest.raises(ValueError, match="6 and 8 layers"):
        map_page([tiny_map, dataclasses.replace(tiny_map, facts=deeper)])
    with pytest.raises(ValueError, match="ask for at least one"):
        map_page([tiny_map], limit=0)
