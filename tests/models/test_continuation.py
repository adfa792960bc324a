"""Written tokens over what the base read: the same as reading the prompt in full and then writing on its cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from depthdial.methods import method_named
from depthdial.models.continuation import STEP, Continuation
from depthdial.models.halves import Halves

FAMILIES = ["llama", "qwen3", "mistral", "gemma3_text"]
FIELDS = {"first": 2, "router_ratio": 4, "adapter_ratio": 4, "start": 0.0}


def documents() -> tuple[Tensor, Tensor, Tensor]:
    """ids, positions, written: two rows of 24 tokens; documents of 14 + 10 and 24 tokens."""
    ids = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(3))
    places = torch.arange(24)
    positions = torch.stack([torch.where(places < 14, places, places - 14), places])
    written = torch.zeros(2, 24, dtype=torch.bool)
    written[0, 6:14] = written[0, 17:24] = written[1, 5:20] = True
    return ids, positions, written


def by_cache(model, ids: Tensor, written: int, offset: float) -> Tensor:
    """Hidden states of the tokens from `written` on, [W, d]: the prompt by the base, then the rest by the dial."""
    cache, found = DynamicCache(config=model.config), []
    for at in range(len(ids)):
        model.converted.set(offset=math.inf if at < written else offset)
        out = model.get_decoder()(
            input_ids=ids[None, at : at + 1], position_ids=torch.tensor([[at]]), past_key_values=cache, use_cache=True
        )
        found.append(out.last_hidden_state[0, 0])
    return torch.stack(found[written:])


@pytest.mark.parametrize("by_document", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_base_reads_and_the_dial_writes(family: str, by_document: bool, tiny_model: Callable, adapted: Callable):
    model = adapted(tiny_model(family, attn_implementation="eager"), method_named("flexidepth", FIELDS))
    ids, positions, written = documents()
    halves = Halves(model)
    text = Continuation(model, halves, positions, written, by_document)
    lower = halves.lower(ids, position_ids=positions)
    model.converted.set(offset=math.inf)
    read = text.read(lower)
    offsets = torch.tensor([-0.5, 0.7, 0.0, 1.0])
    model.converted.set(offset=offsets)
    hidden = text.write(lower, copies=2)
    keep = model.route.keep()[2:].permute(1, 2, 0)  # [rows, W, layers]
    real = text.real.repeat_interleave(2, 0)
    assert hidden.shape[:2] == (4, STEP) and int(text.real.sum()) == 30
    assert 0.1 < keep[real].float().mean() < 0.9
    for row, copy in ((0, 0), (0, 1), (1, 0), (1, 1)):
        i = row * 2 + copy
        parts = [(0, 6, 14), (14, 17, 24)] if row == 0 else [(0, 5, 20)]
        expected = torch.cat([by_cache(model, ids[row, a:c], b - a, float(offsets[i])) for a, b, c in parts])
        torch.testing.assert_close(hidden[i][text.real[row]], expected, rtol=1e-4, atol=1e-4)
    # what was read is the base's own, and what is taken stands in the order of its places
    model.converted.set(offset=math.inf)
    torch.testing.assert_close(read, halves.upper(lower, position_ids=positions))
    assert text.taken(ids)[0][text.real[0]].tolist() == ids[0][written[0]].tolist()


def test_written_tokens_are_filled_up_to_a_step():
    positions = torch.arange(300).expand(2, 300)
    written = torch.zeros(2, 300, dtype=torch.bool)
    written[0, 100:170] = True
    text = Continuation(None, None, positions, written)  # type: ignore[arg-type]
    assert text.places.shape == (2, -(-70 // STEP) * STEP) and text.real.sum(-1).tolist() == [70, 0]
    assert text.places[0, :70].tolist() == list(range(100, 170)) and (text.places[~text.real] == 300).all()


@torch.no_grad()
def test_attention_by_document_has_the_gradients_of_the_mask(tiny_model: Callable, adapted: Callable):
    model = adapted(tiny_model("gemma3_text", attn_implementation="eager"), method_named("flexidepth", FIELDS))
    ids, positions, written = documents()
    halves, grads = Halves(model), []
    for by_document in (False, True):
        text = Continuation(model, halves, positions, written, by_document)
        lower = halves.lower(ids, position_ids=positions)
        model.converted.set(offset=math.inf)
        text.read(lower)
        model.converted.set(offset=torch.tensor([-0.5, 0.7, 0.0, 1.0]))
        with torch.enable_grad():
            text.write(lower, copies=2)[text.real.repeat_interleave(2, 0)].sin().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        model.zero_grad()
    assert grads[0]
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=lambda m, n=name: f"{n}: {m}")
    assert model.config._attn_implementation == "eager"


@torch.no_grad()
def test_gradients_reach_parts_through_written_tokens_alone(tiny_model: Callable, adapted: Callable):
    model = adapted(tiny_model("llama", attn_implementation="eager"), method_named("flexidepth", FIELDS))
    ids, positions, written = documents()
    halves = Halves(model)
    text = Continuation(model, halves, positions, written)
    lower = halves.lower(ids, position_ids=positions)
    model.converted.set(offset=math.inf)
    text.read(lower)
    model.converted.set(offset=0.0)
    with torch.enable_grad():
        hidden = text.write(lower, copies=1)
        hidden[text.real].square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert grads and all(g is not None and g.isfinite().all() and g.any() for g in grads)
