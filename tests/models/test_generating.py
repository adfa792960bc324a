"""`generate` with two dials: the prompt is read by one, the rest written by the other and held, whatever the cache."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from depthdial.core.cost import exact_cost
from depthdial.core.hold import BLOCK, Hold
from depthdial.models.checkpoint import attach
from depthdial.models.dial import dials_for, set_budget

IDS = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(4))
MASK = torch.tensor([[1] * 12, [0] * 5 + [1] * 7, [0] + [1] * 11])
MANY, FEW = 5 * BLOCK + 5, 2 * BLOCK + 5


@pytest.fixture
def model(tiny_model: Callable, tiny_plugin: Path) -> Any:
    """With a curve from 0.7 at -2 over 0.8 at 0 to 0.95 at 2."""
    return attach(tiny_model("llama"), tiny_plugin)


def write(model: Any, ids: Tensor = IDS[:1], tokens: int = FEW, **kwargs: Any) -> Tensor:
    """Greedy; what follows the prompt, int64 [B, tokens]."""
    told = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, **kwargs}
    return model.generate(ids, **told)[:, ids.shape[1] :]


@torch.no_grad()
def by_hand(model: Any, ids: Tensor, read: float, hold: Hold, tokens: int = MANY) -> tuple[Tensor, list[float]]:
    """What `write` gives for one row, pass by pass, and what each written token costs."""
    cache, state, made, costs = DynamicCache(config=model.config), hold.begin(), [], []
    step, offset = ids, read
    for _ in range(tokens):
        with model.converted.using(offset=offset, read_offset=None):
            logits = model(step, past_key_values=cache).logits[:, -1].clone()
        if made:
            costs.append(last_cost(model))
            state = hold.after(state, costs[-1:])
        logits[:, model.generation_config.eos_token_id] = -math.inf
        step = logits.argmax(-1, keepdim=True)
        made.append(step)
        offset = hold.offset(state)
    return torch.cat(made, 1), costs


def last_cost(model: Any) -> float:
    """That of the only token of the last pass."""
    last = model.route.last
    return float(exact_cost(model.converted.ledger, last.tokens, last.trace))


def last_offsets(model: Any) -> Tensor:
    """fp32 [B, T]: where the dial stood in the last pass."""
    tokens = model.route.last.tokens
    return tokens.rows(tokens.offset).clone()


def noted(model: Any, into: list[Tensor]) -> Any:
    """Notes the offsets of each pass until it is removed."""
    return model.register_forward_hook(lambda *_: into.append(last_offsets(model)))


@pytest.mark.parametrize("prompt", [1.0, 0.75, "same"])
@pytest.mark.parametrize("budget", [0.75, 0.85])
def test_it_is_what_passes_by_hand_give(model: Any, budget: float, prompt: Any):
    set_budget(model, budget, prompt=prompt)
    dials = dials_for(model, budget, prompt)
    assert dials.hold is not None
    assert dials.reading == {1.0: math.inf, 0.75: -1.0, "same": dials.written}[prompt]
    expected, costs = by_hand(model, IDS[:1], dials.reading, dials.hold)
    found: list[Tensor] = []
    handle = noted(model, found)
    assert torch.equal(write(model, tokens=MANY), expected)
    handle.remove()
    assert float(found[0].max()) == dials.reading, "all of the prompt, its last token too"
    assert len({float(offset) for offset in found[1:]}) > 2, "the dial moved"
    assert sum(costs) / len(costs) == pytest.approx(budget, abs=0.02)
    free = Hold(budget, dials.written, 1e9)  # which never moves
    loose = by_hand(model, IDS[:1], dials.reading, free)[1]
    assert abs(sum(loose) / len(loose) - budget) > 0.02, "nothing to hold here: the law would say nothing"


def test_rows_are_held_each_by_its_own(model: Any):
    set_budget(model, 0.8)
    alone = [write(model, IDS[i : i + 1, 12 - int(MASK[i].sum()) :]) for i in range(3)]
    assert torch.equal(write(model, IDS * MASK, attention_mask=MASK), torch.cat(alone))
    found: list[Tensor] = []
    handle = noted(model, found)
    write(model, IDS * MASK, attention_mask=MASK)
    handle.remove()
    assert any(len(set(offset.flatten().tolist())) > 1 for offset in found[1:]), "they differ"


@pytest.mark.parametrize(
    "how",
    [
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"prefill_chunk_size": 5},
        {"prompt_lookup_num_tokens": 1},
        {"num_beams": 1, "num_return_sequences": 1},
    ],
    ids=str,
)
def test_the_way_it_is_computed_makes_no_difference(model: Any, how: dict[str, Any]):
    set_budget(model, 0.8)
    assert torch.equal(write(model, **how), write(model))


def test_beams_take_their_state_with_them(model: Any):
    set_budget(model, 0.8)
    rows: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "attention_mask": MASK, "tokens": FEW}
    both = [write(model, IDS * MASK, use_cache=cached, **rows) for cached in (True, False)]
    assert torch.equal(*both) and len(both[0]) == 9


@torch.no_grad()
def scored(model: Any, ids: Tensor, prompt: int, budget: float) -> list[float]:
    """Offsets of a text's written tokens but the last, in one pass a token."""
    dials, cache = dials_for(model, budget), DynamicCache(config=model.config)
    assert dials.hold is not None
    state, offsets = dials.hold.begin(), []
    with model.converted.using(offset=dials.reading, read_offset=None):
        model(ids[:, :prompt], past_key_values=cache)
    for token in ids[0, prompt:-1]:
        offsets.append(dials.hold.offset(state))
        with model.converted.using(offset=offsets[-1], read_offset=None):
            model(token.view(1, 1), past_key_values=cache)
        state = dials.hold.after(state, [last_cost(model)])
    return torch.tensor(offsets).tolist()  # as fp32


def test_each_beam_runs_at_the_offsets_of_its_text(model: Any):
    set_budget(model, 0.8)
    found: list[tuple[Tensor, Tensor]] = []

    def note(_module: Any, _args: Any, kwargs: dict[str, Any], _out: Any) -> None:
        found.append((kwargs["input_ids"].clone(), last_offsets(model)))

    handle = model.register_forward_hook(note, with_kwargs=True)
    write(model, IDS[:2], tokens=2 * BLOCK + 2, num_beams=3, use_cache=False)
    handle.remove()
    ids, dial = found[-1]
    assert ids.shape == (6, 12 + 2 * BLOCK + 1) and dial.shape == ids.shape
    for row, offsets in zip(ids, dial, strict=True):
        assert offsets[:12].eq(math.inf).all()
        assert offsets[12:].tolist() == scored(model, torch.cat([row, row[:1]])[None], 12, 0.8)
    assert len({tuple(row) for row in dial.tolist()}) > 1


def test_a_cache_is_continued_with_a_prompt_that_is_read(model: Any):
    set_budget(model, 0.8)
    cache = DynamicCache(config=model.config)
    first = model.generate(IDS[:1], past_key_values=cache, max_new_tokens=20, min_new_tokens=20, do_sample=False)
    second = torch.cat([first, IDS[1:2]], 1)
    found: list[Tensor] = []
    handle = noted(model, found)
    model.generate(second, past_key_values=cache, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    handle.remove()
    assert model.route.shape == (1, 1) and found[0].eq(math.inf).all() and len(found) == 3
    assert found[1].item() == dials_for(model, 0.8).written, "held anew"


def test_a_dial_set_by_hand_is_not_held(model: Any):
    set_budget(model, 0.8, prompt="same")
    model.converted.set(offset=-0.5)
    found: list[Tensor] = []
    handle = noted(model, found)
    write(model)
    model.converted.set(read_offset=math.inf)
    write(model)
    handle.remove()
    offsets = [float(one.max()) for one in found]
    assert set(offsets[:FEW]) == {-0.5} and offsets[FEW] == math.inf and set(offsets[FEW + 1 :]) == {-0.5}
    assert model.converted.settings.offset == -0.5


def test_rows_by_hand_read_in_full(model: Any):
    model.converted.set(offset=torch.tensor([-0.5, 0.5]), read_offset=math.inf)
    both = write(model, IDS[:2])
    for i, offset in enumerate((-0.5, 0.5)):
        model.converted.set(offset=offset)
        assert torch.equal(both[i : i + 1], write(model, IDS[i : i + 1]))


def test_at_one_it_is_the_base(model: Any, tiny_model: Callable):
    set_budget(model, 1.0)
    assert torch.equal(write(model), write(tiny_model("llama")))
    assert model.route.cost() == 1.0
    set_budget(model, 0.8)
    assert torch.equal(write(model, tokens=1), write(tiny_model("llama"), tokens=1)), "the prompt's pass gives it"
    assert model.route.cost() == 1.0


def test_an_error_leaves_the_dials_alone(model: Any):
    set_budget(model, 0.8)

    def fail(*_: Any) -> None:
        raise RuntimeError("in a layer")

    layer = model.get_decoder().layers[3].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in a layer"):
        write(model)
    layer.remove()
    assert model.converted.settings.offset == model.converted.turned.offset and model.converted.settings.read is None
    assert model.converted.threads.dials is None
    assert write(model).shape == (1, FEW)


def test_a_copy_generates_by_its_own_dials(model: Any):
    set_budget(model, 0.8)
    own = copy.deepcopy(model)
    set_budget(own, 0.75)
    hold = dials_for(model, 0.75).hold
    assert hold is not None
    expected = by_hand(model, IDS[:1], math.inf, hold, FEW)[0]
    found: list[Tensor] = []
    handle = noted(model, found)
    assert torch.equal(write(own), expected) and not found, "the first model did not run"
    handle.remove()
    assert not torch.equal(write(model), expected)
    assert torch.equal(write(pickle.loads(pickle.dumps(own))), expected)


def test_embeddings_are_a_prompt_too(model: Any):
    set_budget(model, 0.8)
    embeds = model.get_input_embeddings()(IDS[:1])
    told: dict[str, Any] = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(inputs_embeds=embeds, **told), write(model, tokens=40))


def test_without_a_prompt_the_first_token_is_read(model: Any):
    set_budget(model, 0.8)
    found: list[Tensor] = []
    handle = noted(model, found)
    model.generate(max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    handle.remove()
    assert found[0].eq(math.inf).all() and math.isfinite(found[1].item())
