"""Answers by a solver that reads the text form alone, and what each text promises."""

import numpy as np
import pytest

from depthdial.testbed.tasks import COMPOSE, FILLER, HOP, IGNORED, NONE, TASKS, World


def _solved(world: World, words: list[str]) -> dict[int, tuple[int, int, list[str]]]:
    """By place: kind, k and the answers after 0 to k applications, the last of which must follow."""
    leads, found = {}, {}
    rules = {f"p{i}": row for i, row in enumerate(world.permutations)}
    for i, word in enumerate(words):
        if ">" in word:
            a, b = word.split(">")
            leads[a] = b
        elif ":" in word:
            k, way = int(word.split(":")[0]), [word.split(":")[1]]
            for _ in range(k):
                way.append(leads[way[-1]])
            found[i] = (HOP, k, way)
        elif word[0] == "p" and words[i + 1][0] != "p":
            begin = i
            while words[begin][0] == "p":
                begin -= 1
            way = [words[begin]]
            for rule in words[begin + 1 : i + 1]:
                way.append(f"e{rules[rule][int(way[-1][1:])]}")
            found[i] = (COMPOSE, i - begin, way)
        elif word[0] == "f" and word[1:].isdigit() and words[i + 1 : i + 2] and words[i + 1][0] == "f":
            found[i] = (FILLER, 0, [f"f{(int(word[1:]) + 1) % 8}"])
    return found


@pytest.mark.parametrize("task", TASKS)
def test_an_independent_solver_finds_every_answer_and_no_other_mark(task):
    world = World(task)
    batch = world.batch(20, 7, 1)
    seen = set()
    for ids, labels, kinds, ks, trail in zip(*batch, strict=True):
        words = world.text(ids).split()
        assert len(words) == world.length
        solved = _solved(world, words)
        marked = {int(i) for i in (labels != IGNORED).nonzero()[0]}
        assert set(solved) == marked == {int(i) for i in (kinds != NONE).nonzero()[0]}
        for i, (kind, k, way) in solved.items():
            assert (kinds[i], ks[i], world.words[labels[i]]) == (kind, k, way[-1]) and words[i + 1] == way[-1]
            way += way[-1:] * (world.hops + 1 - len(way))
            if kind != COMPOSE:
                assert [world.words[j] for j in trail[i]] == way
            else:  # each permutation's word knows what comes of those so far, when as many layers have run
                for j in range(k):
                    so_far = trail[i - k + 1 + j]
                    assert (so_far[: j + 1] == IGNORED).all() and {world.words[w] for w in so_far[j + 1 :]} == {
                        way[j + 1]
                    }
            seen.add((kind, k))
    assert {kind for kind, _ in seen} == {FILLER, *world.kinds}
    assert all((kind, k) in seen for kind in world.kinds for k in range(kind == COMPOSE, world.hops + 1))


def test_every_pair_stands_before_the_one_it_leads_to():
    world = World()
    for ids in world.batch(50, 1).ids:
        pairs = [word.split(">") for word in world.text(ids).split() if ">" in word]
        place = {a: i for i, (a, _) in enumerate(pairs)}
        assert len(place) == len(pairs) == world.entities - 1
        for i, (_, b) in enumerate(pairs):
            assert i < place.get(b, len(pairs)) <= i + world.reach
        assert sum(b not in place for _, b in pairs) >= 1  # the last entity leads nowhere


def test_no_text_comes_twice_and_the_same_seed_makes_the_same():
    world = World()
    again = [world.batch(64, 3, step).ids for step in range(10)]
    assert len({row.tobytes() for ids in again for row in ids}) == 640
    assert (again[4] == world.batch(64, 3, 4).ids).all()
    assert (again[4] != world.batch(64, 4, 4).ids).any()


def test_no_question_is_asked_twice_while_there_are_others():
    world = World()
    for ids in world.batch(40, 5).ids:
        words = world.text(ids).split()
        for k in range(4):  # of many hops there may be fewer questions than are asked
            of = [word for word in words if word.startswith(f"{k}:")]
            assert len(set(of)) == len(of)


def test_weights_say_how_often_each_k_is_asked():
    batch = World().batch(50, 2, weights=np.array([1, 0, 3] + [0] * 6))
    k = batch.k[batch.kinds == HOP]
    assert set(k) == {0, 2} and (k == 2).mean() == pytest.approx(0.75, abs=0.04)


def test_needs_come_from_the_measured_table():
    world = World("mixture")
    batch = world.batch(4, 0)
    need = batch.needs({"hop": {k: k + 1 for k in range(9)}, "compose": dict.fromkeys(range(9), 2)})
    assert (need[batch.kinds == NONE] == -1).all() and (need[batch.kinds == FILLER] == 0).all()
    assert (need[batch.kinds == HOP] == batch.k[batch.kinds == HOP] + 1).all()
    assert (need[batch.kinds == COMPOSE] == 2).all()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"task": "sums"}, "unknown task 'sums'; choose one of hop, compose, mixture"),
        ({"hops": 12}, "12 hops go beyond the vocabulary.*at least 37 entities"),
        ({"questions": 0}, "questions must be at least 1"),
        ({"filler": -1}, "filler must be at least 0"),
    ],
)
def test_a_world_that_cannot_be_says_what_to_do(fields, line):
    with pytest.raises(ValueError, match=line):
        World(**fields)
