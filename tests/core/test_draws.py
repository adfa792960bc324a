"""Random numbers of a place: uniform, strictly inside (0, 1), and apart for other layers, rows, positions and units."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.core.draws import drawn, drawn_at_once, fading, uniform
from depthdial.core.program import Program, Step, plain
from depthdial.core.tokens import Tokens

POSITIONS = torch.arange(20_000)
ZERO = torch.zeros(1, dtype=torch.long)
PROGRAM = plain(4, (0, 1, 3), ("attn", "mlp"))


def tokens(key: int | None = None, id: int | None = None) -> Tokens:
    every = (None if value is None else torch.full_like(POSITIONS, value) for value in (id, key))
    ids, keys = every
    return Tokens(torch.zeros(len(POSITIONS)), POSITIONS, id=ids, key=keys)


def draws(layer: int, unit: str, seed: int = 0, program: Program = PROGRAM, **of_token: int) -> torch.Tensor:
    return drawn(seed, program, program.step(layer, unit), tokens(**of_token))  # pyright: ignore[reportArgumentType]


def test_every_step_seed_row_and_token_draws_its_own_numbers():
    numbers = [
        draws(0, "attn"),
        draws(0, "mlp"),
        draws(1, "attn"),
        draws(1, "mlp"),
        draws(0, "attn", seed=1),
        draws(0, "attn", key=5),
        draws(0, "attn", id=9),
    ]
    for i, a in enumerate(numbers):
        for b in numbers[:i]:
            together = torch.corrcoef(torch.stack([a, b]))[0, 1]
            assert abs(float(together)) < 5 / math.sqrt(20_000)
    whole = plain(4, (0, 1, 3))
    assert torch.equal(numbers[0], draws(0, "layer", program=whole)), "attention stands for its layer"
    assert torch.equal(draws(0, "attn", key=5, id=9), numbers[5]), "in training the row's key stands for the token"


def test_a_second_visit_of_a_block_draws_anew():
    program = Program((Step(0, routed="skip"), Step(0, routed="skip", base=False)))
    first, second = (drawn(0, program, s, tokens()) for s in program.routed)
    assert not torch.equal(first, second)


def test_all_steps_at_once_are_what_each_draws():
    each = [draws(layer, "attn") for layer in (0, 1, 3)]
    assert torch.equal(drawn_at_once(0, PROGRAM, tokens()), torch.stack(each))


@given(st.integers(0, 2**31 - 1), st.integers(0, 200), st.integers(0, 2**31 - 1), st.integers(0, 2**20))
def test_uniform_lies_strictly_between_zero_and_one(seed: int, layer: int, sample: int, position: int):
    draw = uniform(seed, layer, torch.tensor([sample]), torch.tensor([position]))
    assert draw.shape == (1,) and 0 < float(draw) < 1


@pytest.mark.parametrize("last", [0, 1, 2**31 - 1, 2**31 - 64])
def test_uniform_stays_inside_at_the_ends_of_its_hash(last: int):
    """The position whose hash ends in `last`, found by undoing the hash: a draw of 1 would be skipped at any rate."""
    mask, key = 2**31 - 1, last
    key = key ^ (key >> 16)
    for factor in (0x27D4EB2D, 0x119DE1F3, 0x45D9F3B):
        key = key * pow(factor, -1, 2**31) & mask
        key = key ^ (key >> 15) ^ (key >> 30)
    position = key * pow(0x2C1B3C6D, -1, 2**31) & mask
    draw = uniform(0, 0, ZERO, torch.tensor([position]))
    assert abs(float(draw) - (last + 0.5) / 2**31) < 1e-6, "the hash was undone"
    assert 0 < float(draw) < 1


def test_uniform_is_uniform():
    draws = uniform(3, 4, ZERO, POSITIONS).double()
    tenths = torch.histc(draws, 10, 0, 1) / 20_000
    assert (tenths - 0.1).abs().max() < 0.011
    assert abs(float(draws.mean()) - 0.5) < 0.01


def test_fading_is_a_ramp_between_two_shares_of_training():
    assert [fading(p, 0.6, 0.85) for p in (0.0, 0.6, 0.725, 0.85, 1.0)] == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])
