"""Peers: a driver of our own is spoken to as theirs are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from depthdial.evaluate.speed import peers
from depthdial.evaluate.speed.peers import PEERS, Peer, PeerSubject, check_peers, drivers, start_peers
from depthdial.evaluate.speed.subjects import Regime

DRIVER = """
import os
import sys
sys.path.insert(0, {place!r})
from driver import arguments, serve

args = arguments(None, ("bf16", "odd")).parse_args()
if args.precision == "odd":
    sys.exit("there is no such file")

def run(prompts, new_tokens):
    if len(prompts) > 2:
        raise ValueError("too many\\n texts")
    if new_tokens == 99:
        sys.exit("out of luck")
    if new_tokens == 98:
        os.abort()
    print("noise that must not get between")
    return {{"first": 0.5, "rest": float(args.threads), "tokens": [[7] * new_tokens for _ in prompts]}}

serve(lambda: ({{"versions": {{"odd": "1.2"}}, "model": args.model.name}}, run))
"""
ODD = Peer("odd_speed.py", ("bf16", "odd"), False, "Odd")


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "odd_speed.py"
    path.write_text(DRIVER.format(place=str(drivers())))
    return path


@pytest.fixture
def odd(script):
    subject = PeerSubject(ODD, "bf16", sys.executable, script, script.parent / "some-model", threads=3)
    yield subject
    subject.close()


def test_a_driver_is_asked_again_and_again(odd):
    assert odd.about == {"ready": True, "versions": {"odd": "1.2"}, "model": "some-model"}
    for new_tokens in (4, 1):
        run = odd.run([[1, 2]], new_tokens)
        assert (run.first, run.rest, run.steps, run.tokens) == (0.5, 3.0, new_tokens - 1, new_tokens - 1)
    assert odd.takes(Regime("decode", 1, 2, 4)) and not odd.takes(Regime("decode", 4, 2, 4))


def test_an_error_of_one_request_is_said_and_the_driver_goes_on(odd):
    with pytest.raises(ValueError, match="Odd: too many texts"):
        odd.run([[1]] * 3, 4)
    assert odd.run([[1]], 4).steps == 3


def test_a_driver_that_ends_says_why(odd, script):
    with pytest.raises(ValueError, match=r"its driver ended \(out of luck"):
        odd.run([[1]], 99)
    with pytest.raises(ValueError, match="driver ended"):
        odd.run([[1]], 4)
    with pytest.raises(ValueError, match="there is no such file"):
        PeerSubject(ODD, "odd", sys.executable, script, script.parent, threads=1)


def test_a_driver_that_crashes_is_told_from_one_that_gives_up(odd):
    with pytest.raises(ValueError, match="ended by SIGABRT"):
        odd.run([[1]], 98)


def test_a_python_that_is_not_there(script):
    with pytest.raises(ValueError, match="--peer-python"):
        PeerSubject(ODD, "bf16", str(script.parent / "python"), script, script.parent, threads=1)


def test_those_that_start_take_part_and_the_others_say_why(script, monkeypatch):
    monkeypatch.setitem(PEERS, "odd", ODD)
    monkeypatch.setattr(peers, "drivers", lambda: script.parent)
    subjects, about = start_peers(["odd"], {"odd": sys.executable}, script.parent / "m")
    try:
        assert [subject.title for subject in subjects] == ["Odd, bf16"]
        assert about["Odd, bf16"]["versions"] == {"odd": "1.2"} and "no such file" in about["Odd, odd"]["missing"]
    finally:
        for subject in subjects:
            subject.close()


def test_unknown_peers_and_missing_pythons_are_refused():
    with pytest.raises(ValueError, match="'vlm' is not known; give some of llama-cpp"):
        check_peers(["vlm"], {})
    with pytest.raises(ValueError, match="'vlm' is not known"):
        check_peers([], {"vlm": "x"})
    with pytest.raises(ValueError, match="--peer-python tide=PATH"):
        check_peers(["tide"], {"llama-cpp": "x"})


def test_every_peer_has_a_driver():
    for peer in PEERS.values():
        assert (drivers() / peer.driver).is_file()
