"""Routes as the dense reference tells them, and the passes they make up."""

from __future__ import annotations

import math

import torch

from depthdial.core.work import Path
from depthdial.evaluate.speed.routes import decode_passes, paths, prefill_pass
from depthdial.methods import Static
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of


def kept(model) -> torch.Tensor:
    """bool [steps, T] of the last pass over one text."""
    trace, count = model.route.last.trace, model.route.last.tokens.count
    every = torch.ones(count, dtype=torch.bool)
    return torch.stack([every if trace.ran(s) is None else trace.ran(s) for s in range(len(trace.program.steps))])


def test_paths_are_those_of_each_text_alone(tiny_llm):
    model = tiny_llm().model
    texts = [[5, 6, 7, 8, 9], [11, 12], [20] * 9]
    before = converted_of(model).settings
    ways = paths(model, texts, [[0.5] * len(text) for text in texts], [1, 1, 1], at_once=2)
    assert converted_of(model).settings == before
    for number, (text, way) in enumerate(zip(texts, ways, strict=True)):
        with torch.no_grad(), converted_of(model).using(offset=0.5):
            model(torch.tensor([text]))
        assert torch.equal(way.ran, kept(model)) and way.here.all()
        assert way.positions.tolist() == list(range(len(text))) and set(way.texts.tolist()) == {number}
        assert torch.equal(way.keys, (way.positions + 1).expand(len(way.ran), -1)), "each leaves its K and V everywhere"
    assert not torch.cat([way.ran for way in ways], 1).all()
    full = paths(model, texts, [[math.inf] * len(text) for text in texts], [1, 1, 1])
    assert torch.cat([way.ran for way in full], 1).all()


def test_each_token_is_asked_at_its_own_place_of_the_dial(tiny_llm):
    """A prompt that is read in full, and what is written after it at offsets that change."""
    model = tiny_llm().model
    text, offsets = list(range(30, 50)), [math.inf] * 8 + [0.0] * 6 + [-1.0] * 6
    (way,) = paths(model, [text], [offsets], [8])
    with torch.no_grad(), converted_of(model).using(offset=torch.tensor([offsets])):
        model(torch.tensor([text]))
    assert torch.equal(way.ran, kept(model)) and way.ran[:, :8].all() and not way.ran[:, 8:].all()
    (other,) = paths(model, [text], [[math.inf] * 8 + [0.0] * 12], [8])
    assert torch.equal(other.ran[:, :14], way.ran[:, :14]) and not torch.equal(other.ran, way.ran)


def test_a_key_that_a_step_left_nothing_of_is_not_attended_to(tiny_model):
    model = convert(tiny_model(), Static(order=(3,), count=1, adapter_ratio=0))
    text = list(range(30, 36))
    (way,) = paths(model, [text], [[1.0] * 2 + [0.0] * 4], [2])
    dropped = converted_of(model).program.step(3, "attn")
    assert way.keys[dropped].tolist() == [1, 2, 2, 2, 2, 2] and way.keys[0].tolist() == [1, 2, 3, 4, 5, 6]


def way(ran: list[int], text: int) -> Path:
    """Of one text through one step."""
    places = torch.arange(len(ran))
    of = torch.tensor([ran], dtype=torch.bool)
    return Path(of, torch.ones_like(of), (places + 1)[None], places, torch.full_like(places, text))


def test_a_prompt_is_one_pass():
    (pass_,) = prefill_pass([way([1, 0, 1], 0), way([0, 1], 1)], routed=True)
    assert pass_.ran.tolist() == [[True, False, True, False, True]]
    assert pass_.positions.tolist() == [0, 1, 2, 0, 1] and pass_.texts.tolist() == [0, 0, 0, 1, 1]
    assert pass_.logits == 2 and pass_.decided


def test_steps_take_each_text_at_its_own_place():
    first, second = decode_passes([way([0, 0, 1, 0], 0), way([1, 1, 0], 1)], [2, 1], 2, routed=False)
    assert first.ran.tolist() == [[True, True]] and first.positions.tolist() == [2, 1]
    assert second.ran.tolist() == [[False, False]] and second.positions.tolist() == [3, 2]
    assert first.texts.tolist() == [0, 1] and first.keys.tolist() == [[3, 2]] and not first.decided
