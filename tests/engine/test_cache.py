"""Pages against a plain model: each sequence finds exactly what it wrote, whoever shares, forks, shrinks and leaves."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthdial.engine.cache import Cache, Shape, pages_for
from depthdial.engine.prefix import first_key, next_key
from depthdial.kernels.tensors import PAGE

CPU = torch.device("cpu")
SHAPE = Shape(layers=2, kv_heads=1, head_dim=2, dtype=torch.float32)
PAGES, SLOTS = 7, 4


def write(cache: Cache, slot: int, start: int, values: list[int]) -> None:
    for place, value in enumerate(values, start):
        units = cache.table[:, slot, place // PAGE].long()
        assert (units >= 0).all() and len(set(units.tolist())) == len(units)
        cache.k[units, :, place % PAGE] = value
        cache.v[units, :, place % PAGE] = -value


def read(cache: Cache, slot: int, length: int) -> list[int]:
    units = cache.table[1, slot, : pages_for(length)].long()
    k, v = (c[units, 0].flatten(0, 1)[:length, 0].int().tolist() for c in (cache.k, cache.v))
    assert k == [-value for value in v]
    return k


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_each_sequence_reads_what_it_wrote(data: Any):
    cache = Cache(SHAPE, PAGES * PAGE - 3, 3 * PAGE, SLOTS, CPU)
    assert cache.pages == PAGES
    texts: dict[int, list[int]] = {}
    fresh = iter(range(1, 10_000_000))
    for _ in range(data.draw(st.integers(1, 25))):
        act = data.draw(st.sampled_from(["open", "grow", "grow", "fork", "shrink", "close"]))
        if act == "open" and cache.free_slots:
            texts[cache.open()] = []
        slot = data.draw(st.sampled_from(sorted(texts))) if texts else None
        if slot is None:
            continue
        text = texts[slot]
        if act == "grow":
            count = data.draw(st.integers(1, 3 * PAGE - len(text))) if len(text) < 3 * PAGE else 0
            before = cache.available
            if count and cache.grow(slot, len(text), len(text) + count):
                values = [next(fresh) for _ in range(count)]
                write(cache, slot, len(text), values)
                text += values
            else:
                assert cache.available == before
        elif act == "fork" and cache.free_slots:
            length = data.draw(st.integers(0, len(text)))
            texts[cache.fork(slot, length)] = text[:length]
        elif act == "shrink":
            length = data.draw(st.integers(0, len(text)))
            cache.shrink(slot, length)
            del text[length:]
        elif act == "close":
            cache.close(slot)
            del texts[slot]
        for each, expected in texts.items():
            assert read(cache, each, len(expected)) == expected
        distinct = {int(p) for s, t in texts.items() for p in cache.table[0, s, : pages_for(len(t))]}
        assert cache.available >= PAGES - len(distinct) - len(texts), "at most one page a sequence is held in reserve"
    for slot in list(texts):
        cache.close(slot)
    assert cache.available == PAGES and cache.free_slots == SLOTS


def saved(cache: Cache, keys: list[bytes], first: int) -> None:
    """A sequence of full pages that came and went."""
    slot = cache.open()
    assert cache.grow(slot, 0, len(keys) * PAGE)
    write(cache, slot, 0, list(range(first, first + len(keys) * PAGE)))
    for i, key in enumerate(keys):
        cache.save(slot, i, key, [1] * PAGE, [0.5] * PAGE)
    cache.close(slot)


def test_a_saved_prefix_outlives_its_sequence_until_room_is_needed():
    cache = Cache(SHAPE, 4 * PAGE, 4 * PAGE, 2, CPU)
    keys = [first_key(i) for i in range(4)]
    saved(cache, keys[:2], 1)
    assert cache.available == 4 and cache.prefixes.idle == 2
    slot = cache.open(cache.prefixes.find(keys[:2]))
    assert read(cache, slot, 2 * PAGE) == list(range(1, 1 + 2 * PAGE))
    assert cache.available == 2, "what is read cannot be given up"
    other = cache.open()
    assert cache.grow(other, 0, 2 * PAGE) and not cache.grow(other, 2 * PAGE, 2 * PAGE + 1)
    cache.close(slot)
    assert cache.grow(other, 2 * PAGE, 2 * PAGE + 1), "the page unused longest goes"
    assert len(cache.prefixes.find(keys[:1])) + len(cache.prefixes.find(keys[1:2])) == 1


def test_to_write_into_a_saved_page_never_changes_the_prefix():
    cache = Cache(SHAPE, 4 * PAGE, 4 * PAGE, 3, CPU)
    keys = [first_key(i) for i in range(2)]
    saved(cache, keys, 1)
    one, two = (cache.open(cache.prefixes.find(keys)) for _ in range(2))
    cache.shrink(one, 2 * PAGE - 1)
    assert cache.grow(one, 2 * PAGE - 1, 2 * PAGE)
    write(cache, one, 2 * PAGE - 1, [999])
    assert read(cache, two, 2 * PAGE) == list(range(1, 1 + 2 * PAGE)) and read(cache, one, 2 * PAGE)[-1] == 999
    cache.close(one)
    cache.shrink(two, PAGE + 1)
    assert cache.grow(two, PAGE + 1, PAGE + 2)  # alone with the page: it is written, and no prefix any longer
    assert len(cache.prefixes.find(keys)) == 1


def test_without_prefixes_nothing_is_kept():
    cache = Cache(SHAPE, 4 * PAGE, 4 * PAGE, 2, CPU, prefixes=False)
    saved(cache, [first_key(0)], 1)
    assert cache.prefixes.find([first_key(0)]) == [] and cache.prefixes.idle == 0 and cache.available == 4


def test_a_token_takes_k_and_v_of_all_layers():
    assert SHAPE.token_bytes == 2 * 2 * 1 * 2 * 4
    assert [pages_for(n) for n in (0, 1, PAGE, PAGE + 1)] == [0, 1, 1, 2]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2**40), max_size=6), st.lists(st.integers(0, 2**40), max_size=6))
def test_keys_tell_texts_and_settings_apart(a: list[int], b: list[int]):
    start = first_key("plug-in", 0.5)
    assert (next_key(start, a) == next_key(start, b)) == (a == b)
    assert next_key(start, a) != next_key(first_key("plug-in", 0.6), a)
