"""Names of methods: those of the list, and a line for all else."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from depthdial.methods import METHODS, Dense, method_named, name_of


@dataclass(frozen=True)
class Foreign(Dense):
    """A method of another package."""


def test_each_method_has_its_name():
    for name in METHODS:
        assert name_of(method_named(name)) == name


def test_a_method_outside_the_list_cannot_be_named():
    with pytest.raises(ValueError, match="Foreign is not one of METHODS, and what is saved names one: flexidepth"):
        name_of(Foreign())
