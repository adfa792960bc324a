"""Pieces joined are the text: whole characters, no lost spaces, stop strings cut off."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from depthdial.core.dial import Dials
from depthdial.engine.request import Request, Row
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.stops import StopFinder
from depthdial.engine.text import TextStream


def run(tokenizer, ids, prompt=(), stops=()):
    stream = TextStream(tokenizer, prompt, stops)
    for token in ids:
        if stream.push(token):
            break
    stream.close()
    return stream


def decoded(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_joined_pieces_are_the_text(tiny_tokenizer, text):
    ids = tiny_tokenizer(text)["input_ids"]
    stream = run(tiny_tokenizer, ids, prompt=tiny_tokenizer("the quick")["input_ids"])
    assert len(stream.pieces) == stream.ready == len(ids)
    assert "".join(stream.pieces) == text


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 299), max_size=30))
def test_any_tokens_give_the_decoders_text(tiny_tokenizer, ids):
    assert "".join(run(tiny_tokenizer, ids).pieces) == decoded(tiny_tokenizer, ids)


def test_a_character_comes_whole_with_the_token_that_completes_it(tiny_tokenizer):
    ids = tiny_tokenizer("a漢b")["input_ids"]
    assert run(tiny_tokenizer, ids).pieces == ["a", "", "", "漢", "b"]


def test_what_never_completes_comes_at_the_end(tiny_tokenizer):
    ids = tiny_tokenizer("a漢")["input_ids"][:-1]
    stream = TextStream(tiny_tokenizer, [])
    for token in ids:
        stream.push(token)
    assert stream.pieces == ["a", "", ""]
    stream.close()
    assert "".join(stream.pieces) == decoded(tiny_tokenizer, ids) and len(stream.pieces) == 3


def test_special_tokens_have_no_text_and_harm_no_neighbour(tiny_tokenizer):
    ids = [*tiny_tokenizer("the fox")["input_ids"], 1, 2, *tiny_tokenizer(" jumps é")["input_ids"], 2]
    assert "".join(run(tiny_tokenizer, ids).pieces) == "the fox jumps é"


def test_a_leading_space_survives_a_decoder_that_strips_it():
    # SentencePiece's way: the first word of a text loses its space, so a continuation needs its prompt beside it
    words = Tokenizer(models.WordLevel({"▁the": 0, "▁fox": 1, "es": 2}, unk_token="es"))
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert decoded(tokenizer, [1, 2]) == "foxes"
    assert run(tokenizer, [1, 2, 0], prompt=[0]).pieces == [" fox", "es", " the"]


@pytest.mark.parametrize(
    ("stops", "text"),
    [((".",), "the fox"), (("fox", "the"), ""), (("x. J",), "the fo"), (("jumps!",), None), ((" and", "over"), None)],
)
def test_text_ends_before_the_first_stop_string(tiny_tokenizer, stops, text):
    whole = "the fox. Jumps, jumps"
    ids = tiny_tokenizer(whole)["input_ids"]
    stream = run(tiny_tokenizer, ids, stops=stops)
    assert "".join(stream.pieces) == (whole if text is None else text)
    assert stream.stopped == (text is not None)
    assert stream.ready == len(stream.pieces)


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab ", max_size=12), stops=st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=2))
def test_ready_pieces_never_change(tiny_tokenizer, text, stops):
    stream, given_out = TextStream(tiny_tokenizer, [], stops), []
    for token in tiny_tokenizer(text)["input_ids"]:
        done = stream.push(token)
        given_out += stream.pieces[len(given_out) : stream.ready]
        if done:
            break
    stream.close()
    given_out += stream.pieces[len(given_out) :]
    assert given_out == stream.pieces
    ends = [text.find(stop) for stop in stops if stop in text]
    got = "".join(given_out)
    assert text.startswith(got) and not any(stop in got for stop in stops)
    assert bool(ends) == stream.stopped and (got == text or bool(ends))


def plainly(text: str, stops: list[str]) -> str:
    """What is left of a text before the stop string that begins first among those that end first."""
    for end in range(1, len(text) + 1):
        if starts := [end - len(stop) for stop in stops if text[:end].endswith(stop)]:
            return text[: min(starts)]
    return text


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab", max_size=40),
    stops=st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=4),
)
def test_stops_that_overlap_themselves_and_others_are_found_character_by_character(text, stops):
    finder, found, left = StopFinder(stops), None, text
    for end, character in enumerate(text, 1):
        found = finder.push(character)
        if found is not None:
            left = text[: end - found]
            break
        # the end that may begin a stop string, and nothing longer
        ends = [n for stop in stops for n in range(len(stop)) if text[:end].endswith(stop[:n])]
        assert finder.open == max(ends)
    assert left == plainly(text, stops)


def work(tokenizer, ids, stops) -> int:
    """How many calls the stream makes, of Python's functions and of C's: what its work is, whatever the clock says."""
    stream, calls = TextStream(tokenizer, [], stops), 0

    def count(_frame, event, _argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        for token in ids:
            stream.push(token)
    finally:
        sys.setprofile(None)
    return calls


def test_many_long_stop_strings_cost_about_as_much_as_none(tiny_tokenizer):
    ids = tiny_tokenizer("the quick brown fox jumps over the lazy dog " * 8)["input_ids"]
    none = work(tiny_tokenizer, ids, [])
    unlike = work(tiny_tokenizer, ids, [chr(97 + i) + "~" * 999 for i in range(16)])
    # what comes nearest to stopping: all of the text begins each of them
    like = work(
        tiny_tokenizer, ids, [("the quick brown fox jumps over the lazy dog " * 30)[:999] + chr(i) for i in range(16)]
    )
    assert unlike < 6 * none and like < 40 * none


def test_a_text_that_nearly_repeats_a_stop_string_costs_no_walk_over_it(tiny_tokenizer):
    """Each token of `aaaa...` leaves the end open as long as the stop string allows."""
    short, long = ([*tiny_tokenizer("a")["input_ids"]] * count for count in (500, 2000))
    stops = ["a" * 400 + "b"]
    assert work(tiny_tokenizer, long, stops) < 5 * work(tiny_tokenizer, short, stops)


def test_a_broken_character_may_be_a_stop_string(tiny_tokenizer):
    half = tiny_tokenizer("a漢")["input_ids"][:-1]
    stream = run(tiny_tokenizer, half, stops=["\ufffd"])
    assert stream.stopped and "".join(stream.pieces) == "a"


@pytest.mark.parametrize(
    ("stop", "reason", "text"), [("\ufffd", "stop", "a"), ("x", "length", "a\ufffd"), ("a", "stop", "")]
)
def test_a_text_that_is_cut_says_stop_also_at_its_length(tiny_tokenizer, stop, reason, text):
    ids = tiny_tokenizer("a漢")["input_ids"][:-1]
    params = SamplingParams(max_tokens=len(ids), stop=stop)
    row = Row(Request(None, [5], params, 0, Dials(0.0), len(ids)), 0, tiny_tokenizer)
    for token in ids:
        if row.finish_reason is None:
            row.push(token, frozenset())
    assert row.finish_reason == reason and "".join(row._text.pieces) == text


class Watched(list):
    """Pieces of a stream that look at it whenever they change, as another thread may."""

    def __init__(self, stream: TextStream):
        super().__init__()
        self.stream, self.given = stream, []

    def look(self) -> None:
        ready = self.stream.ready
        pieces = list(self[:ready])
        assert len(pieces) >= ready, "each ready token has a piece"
        assert pieces[: len(self.given)] == self.given[: len(pieces)], "what was given out stays"
        self.given = max(self.given, pieces, key=len)

    def append(self, piece: str) -> None:
        super().append(piece)
        self.look()

    def pop(self, *place):
        found = super().pop(*place)
        self.look()
        return found

    def __setitem__(self, place, piece) -> None:
        super().__setitem__(place, piece)
        self.look()


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 299), max_size=20), stops=st.sampled_from([(), ("e",), ("\ufffd",), ("the", "ab")]))
def test_another_thread_never_sees_a_piece_that_changes(tiny_tokenizer, ids, stops):
    stream = TextStream(tiny_tokenizer, [], stops)
    stream.pieces = watched = Watched(stream)
    for token in ids:
        if stream.push(token):
            break
        watched.look()
    stream.close()
    watched.look()
    assert watched.given == list(stream.pieces)


def test_half_a_character_at_the_end_reaches_who_follows(tiny_tokenizer):
    """Its token was given out as an empty piece before, and the sign was lost."""
    stream = TextStream(tiny_tokenizer, [])
    given: list[str] = []
    for token in tiny_tokenizer("a漢")["input_ids"][:-1]:
        stream.push(token)
        given += stream.pieces[len(given) : stream.ready]
    stream.close()
    given += stream.pieces[len(given) : stream.ready]
    assert "".join(given) == "".join(stream.pieces) == "a\ufffd"
