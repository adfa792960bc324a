"""What counts as written."""

from __future__ import annotations

from depthdial.core.written import written


def test_the_first_pass_was_over_the_prompt():
    assert written([3, 1, 2]) == [1, 2] and written([3]) == [3] and written([]) == []
