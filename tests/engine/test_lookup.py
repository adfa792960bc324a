"""Where the end of a text stood before, and what followed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from depthdial.engine.lookup import LENGTHS, LONGEST, Lookup, copied

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=60)


@given(TEXTS, st.integers(1, 60))
def test_the_latest_place_of_the_longest_run_is_found_however_the_text_grew(text: list[int], first: int):
    lookup = Lookup()
    for count in range(min(first, len(text)), len(text)):
        lookup.find(text[:count])
    found = lookup.find(text)
    for length in LENGTHS:
        places = [i for i in range(length, len(text)) if text[i - length : i] == text[-length:]]
        if places and len(text) > length:
            assert found is not None and found.at == places[-1]
            equal = 0
            while equal < min(found.at, LONGEST) and text[found.at - 1 - equal] == text[-1 - equal]:
                equal += 1
            assert found.matched == equal >= length
            return
    assert found is None


@given(TEXTS, st.data(), st.integers(0, 40))
def test_a_copy_goes_on_into_itself(text: list[int], data: st.DataObject, count: int):
    at = data.draw(st.integers(0, len(text) - 1))
    made = copied(text, at, count)
    whole = [*text, *made]
    assert len(made) == count and made == whole[at : at + count]


def test_a_loop_is_followed():
    assert copied([9, 1, 2, 1, 2], 3, 5) == [1, 2, 1, 2, 1]
