"""Parameters are checked, and a draw depends on its key alone."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from depthdial.engine.sampling import SamplingParams, choose, draw_key, uniform

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"stop": 5}, "stop"),
        ({"ignore_eos": "no"}, "ignore_eos must be True or False"),
        ({"lossless": 1}, "lossless must be True or False"),
        ({"max_tokens": np.float32(3)}, "max_tokens"),
        ({"n": np.bool_(True)}, "n must"),
        ({"n": 0}, "n must"),
        ({"n": True}, "n must"),
        ({"logprobs": -1}, "logprobs"),
        ({"seed": "abc"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 3]}, "stop"),
        ({"budget": 0.0}, "budget"),
        ({"budget": 1.2}, "budget"),
        ({"lossless": True, "budget": 0.8}, "draft_budget sets what drafts may cost"),
        ({"draft_budget": 0.8}, "is for lossless=True"),
        ({"lossless": True, "draft_budget": 1.5}, "draft_budget must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(wrong, says):
    with pytest.raises(ValueError, match=says) as caught:
        SamplingParams(**wrong)
    assert "\n" not in str(caught.value)


def test_unknown_arguments_are_refused_and_parameters_are_frozen():
    with pytest.raises(TypeError):
        SamplingParams(beams=3)  # pyright: ignore[reportCallIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().seed = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("max_new_tokens", "max_tokens"), ("num_return_sequences", "n"), ("do_sample", "temperature"), ("topk", "top_k")],
)
def test_an_unknown_name_is_answered_with_the_one_that_was_meant(name, meant):
    with pytest.raises(ValueError, match=f"no argument '{name}'; did you mean {meant}\\?"):
        SamplingParams(**{name: 1})  # pyright: ignore[reportArgumentType]
    assert copy.deepcopy(pickle.loads(pickle.dumps(SamplingParams(3)))) == SamplingParams(3)


def test_numbers_of_numpy_and_torch_are_numbers():
    numbers: Any = np.int64(3), np.float32(0.5), torch.tensor(0.5), np.int8(4), np.uint64(7), None, False, np.array(2)
    theirs = SamplingParams(*numbers)
    assert theirs == SamplingParams(3, 0.5, 0.5, 4, 7, n=2)
    assert [type(v) for v in (theirs.max_tokens, theirs.temperature, theirs.seed)] == [int, float, int]


def test_minus_one_is_what_the_server_takes_it_for():
    assert SamplingParams(top_k=-1) == SamplingParams(top_k=0)
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    drawn = [choose(logits, [SamplingParams(temperature=1.0, top_k=k)], [5]) for k in (-1, 0)]
    assert torch.equal(*drawn)
    assert SamplingParams(seed=-1).seed == -1 and draw_key(-1, 0, 3) == draw_key(2**64 - 1, 0, 3)


def test_stop_strings_of_an_iterator_are_kept():
    params = SamplingParams(stop=(sign for sign in "ab"))  # pyright: ignore[reportArgumentType]
    assert params.stops == params.stops == ("a", "b")


def test_greedy_is_the_argmax():
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(choose(logits, [SamplingParams()] * 5, range(5)), logits.argmax(-1))


def test_a_row_draws_the_same_alone_and_in_any_batch():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(temperature=t, top_k=k, top_p=p) for t, k, p in [(1.0, 0, 1.0), (0.7, 9, 0.8)] * 3]
    keys = [draw_key(seed=3, sample=i, position=7) for i in range(6)]
    together = choose(logits, params, keys)
    for i in range(6):
        assert choose(logits[i : i + 1], [params[i]], [keys[i]]).item() == together[i]
    assert torch.equal(choose(logits.flip(0), params[::-1], keys[::-1]).flip(0), together)


def test_keys_tell_seed_sample_and_position_apart():
    keys = {draw_key(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    assert len(keys) == 12**3
    assert draw_key(2**64 + 5, 0, 0) == draw_key(5, 0, 0)  # any whole number is a seed


def test_the_hash_is_splitmix64():
    # first outputs of the reference implementation for the seed 1234567
    words = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert uniform(1234567, 3, CPU).tolist() == pytest.approx([word / 2**64 for word in words], abs=1e-15)


def test_uniform_numbers_are_uniform_and_never_0_or_1():
    draws = torch.cat([uniform(draw_key(0, 0, i), 5000, CPU) for i in range(20)])
    assert draws.min() > 0 and draws.max() < 1
    share = torch.histc(draws.float(), 20, 0, 1) / len(draws)
    assert (share - 0.05).abs().max() < 0.003
    assert abs(torch.corrcoef(draws.view(20, -1)[:2])[0, 1]) < 0.05


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    params = SamplingParams(temperature=0.8)
    draws = [choose(logits, [params], [draw_key(1, 0, i)]).item() for i in range(4000)]
    share = torch.bincount(torch.tensor(draws), minlength=4) / 4000
    torch.testing.assert_close(share, (logits[0] / 0.8).softmax(-1), atol=0.025, rtol=0)


def test_top_k_and_top_p_leave_the_likeliest():
    logits = torch.tensor([[0.1, 3.0, 2.0, 1.0, -1.0]])

    def drawn(**kwargs) -> set[int | float]:
        params = SamplingParams(temperature=2.0, **kwargs)
        return {choose(logits, [params], [draw_key(0, 0, i)]).item() for i in range(300)}

    probability = (logits[0] / 2).softmax(-1)
    assert drawn() == {0, 1, 2, 3, 4}
    assert drawn(top_k=2) == {1, 2}
    assert drawn(top_k=50) == {0, 1, 2, 3, 4}
    assert drawn(top_p=1e-6) == {1}
    assert drawn(top_p=float(probability[1]) + 0.01) == {1, 2}
    assert drawn(top_k=2, top_p=0.99) == {1, 2}
