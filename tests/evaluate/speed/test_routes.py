"""Routes as the dense reference tells them, and the passes they make up."""

from __future__ import annotations

import math

import torch

from depthdial.evaluate.speed.routes import decode_passes, keeps, prefill_pass


def test_keeps_are_those_of_each_text_alone(tiny_llm):
    model = tiny_llm().model
    texts = [[5, 6, 7, 8, 9], [11, 12], [20] * 9]
    before = model.route.offset
    found = keeps(model, texts, [[0.5] * len(text) for text in texts], at_once=2)
    assert model.route.offset == before
    for text, keep in zip(texts, found, strict=True):
        model.route.offset = 0.5
        with torch.no_grad():
            model(torch.tensor([text]))
        assert torch.equal(keep, model.route.keep()[:, 0])
    model.route.offset = before
    assert not torch.cat(found, 1).all()
    assert torch.cat(keeps(model, texts, [[math.inf] * len(text) for text in texts]), 1).all()


def test_each_token_is_asked_at_its_own_place_of_the_dial(tiny_llm):
    """A prompt that is read in full, and what is written after it at offsets that change."""
    model = tiny_llm().model
    text = list(range(30, 50))
    (found,) = keeps(model, [text], [[math.inf] * 8 + [0.0] * 6 + [-1.0] * 6])
    model.route.offset = torch.tensor([[math.inf] * 8 + [0.0] * 6 + [-1.0] * 6])
    with torch.no_grad():
        model(torch.tensor([text]))
    assert torch.equal(found, model.route.keep()[:, 0]) and found[:, :8].all() and not found[:, 8:].all()
    (other,) = keeps(model, [text], [[math.inf] * 8 + [0.0] * 12])
    assert torch.equal(other[:, :14], found[:, :14]) and not torch.equal(other, found)


def test_a_prompt_is_one_pass():
    a, b = torch.tensor([[1, 0, 1]], dtype=torch.bool), torch.tensor([[0, 1]], dtype=torch.bool)
    (pass_,) = prefill_pass([a, b], decided=True)
    assert pass_.keep.tolist() == [[True, False, True, False, True]]
    assert pass_.positions.tolist() == [0, 1, 2, 0, 1] and pass_.texts.tolist() == [0, 0, 0, 1, 1]
    assert pass_.logits == 2 and pass_.decided


def test_steps_take_each_text_at_its_own_place():
    a, b = torch.tensor([[0, 0, 1, 0]], dtype=torch.bool), torch.tensor([[1, 1, 0]], dtype=torch.bool)
    first, second = decode_passes([a, b], [2, 1], 2, decided=False)
    assert first.keep.tolist() == [[True, True]] and first.positions.tolist() == [2, 1]
    assert second.keep.tolist() == [[False, False]] and second.positions.tolist() == [3, 2]
    assert first.texts.tolist() == [0, 1] and not first.decided
