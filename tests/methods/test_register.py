"""Methods of other packages: registered by hand, or by an entry point; refused in one line where they cannot be had."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest

import depthdial
from depthdial import methods
from depthdial.core.method import Method
from depthdial.methods import METHODS, Dense, Random, method_named, name_of


@dataclass(frozen=True)
class Coin(Random):
    """A method of another package."""

    side: float = 0.5


@dataclass(frozen=True)
class Bare(Dense):
    """Without an example."""


@dataclass
class Thawed(Method):
    """Not frozen."""

    program: Any = Dense.program
    decide: Any = Dense.decide


@dataclass(frozen=True)
class Wide(Random):
    """With a field that JSON has not."""

    table: dict[str, int] | None = None


@dataclass(frozen=True)
class Wrong(Random):
    """With an example of fields it has not."""

    example: ClassVar[Any] = {"colour": 1}


class Undecided(Method):
    """Lacks what a method must say."""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list as it is without other packages, and as it was again after the test."""
    monkeypatch.setattr(METHODS, "_known", dict(METHODS._own))
    monkeypatch.setattr(METHODS, "_searched", True)


def found(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    """Let other packages bring these entry points."""
    points = [EntryPoint(name, value, methods.GROUP) for name, value in entries]
    monkeypatch.setattr(methods, "entry_points", lambda group: points)
    monkeypatch.setattr(METHODS, "_searched", False)


def test_a_registered_method_stands_in_the_one_list():
    before = list(METHODS)
    depthdial.register("coin", Coin)
    depthdial.register("coin", Coin)  # a module that is loaded by its entry point and registers itself
    assert list(METHODS) == [*before, "coin"] and len(METHODS) == len(before) + 1
    method = method_named("coin", {"rate": 0.6, "side": 0.25})
    assert method == Coin(rate=0.6, side=0.25) and name_of(method) == "coin"


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        (
            "random",
            Coin,
            "'random': depthdial.methods.random.Random is there already as 'random'; choose another name",
        ),
        ("Coin flip", Coin, "a method's name is of small letters, digits and _, not 'Coin flip'"),
        (3, Coin, "a method's name is of small letters, digits and _, not 3"),
        ("luck", Random, "'luck': depthdial.methods.random.Random is there already as 'random'; choose another name"),
        ("coin", 3, "method 'coin': 3 is no class derived from depthdial.core.method.Method"),
        ("coin", dict, "method 'coin': <class 'dict'> is no class derived from"),
        ("coin", Undecided, "method 'coin': Undecided lacks decide, program"),
        ("coin", Thawed, r"method 'coin': Thawed is no frozen dataclass; write @dataclass\(frozen=True\) above it"),
        ("coin", type("Plain", (Random,), {}), "method 'coin': Plain is no frozen dataclass"),
        ("coin", Bare, "method 'coin': Bare has no `example`: fields with which it skips some tokens"),
        ("coin", Wide, r"method 'coin': a field cannot be saved: dict\[str, int\] is none of int, float"),
        ("coin", Wrong, "method 'coin' has no field colour; it has"),
    ],
)
def test_what_cannot_be_a_method_is_refused(name: Any, kind: Any, why: str):
    before = list(METHODS)
    with pytest.raises(ValueError, match=why) as raised:
        depthdial.register(name, kind)
    assert "\n" not in str(raised.value) and list(METHODS) == before


def test_an_entry_point_that_cannot_be_had_is_named_and_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    found(monkeypatch, ("gone", "no_such_package:Gone"), ("static", "depthdial.methods:Random"),
          ("plain", "depthdial.methods.dense:Dense"), ("coin", f"{__name__}:Coin"))  # fmt: skip
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Coin.__module__])
    with caplog.at_level(logging.WARNING):
        assert METHODS["coin"] is Coin
    assert [record.getMessage() for record in caplog.records] == [
        "the method 'gone' of no_such_package:Gone is left out: ModuleNotFoundError: No module named 'no_such_package'",
        "the method 'plain' of depthdial.methods.dense:Dense is left out: ValueError: method 'plain': Dense has no "
        "`example`: fields with which it skips some tokens and keeps others on a model of six layers",
        "the method 'static' of depthdial.methods:Random is left out: ValueError: method 'static': "
        "depthdial.methods.random.Random is there already as 'random'; choose another name",
    ]
    assert set(METHODS) == {*METHODS._own, "coin"}


def test_other_packages_are_looked_for_once_and_only_where_the_list_is_not_enough(monkeypatch: pytest.MonkeyPatch):
    looks = []
    monkeypatch.setattr(methods, "entry_points", lambda group: looks.append(group) or [])
    monkeypatch.setattr(METHODS, "_searched", False)
    assert method_named("static") and not looks
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"unknown method 'coin'; choose one of flexidepth, .* or install the package"
        ):
            method_named("coin")
    assert looks == ["depthdial.methods"]
