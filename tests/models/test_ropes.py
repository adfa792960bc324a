"""Ropes that follow from the length of a text: an engine's text is Hugging Face's, alone and in company, natively and
in torch, and no text lends another its K."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.native import NativeRunner
from depthdial.models.block import spine_of
from depthdial.models.ropes import check_ropes

DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 24,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 3.0, 5.0, 9.0],
}
FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("llama", {"max_position_embeddings": 32, "rope_parameters": DYNAMIC}),
    "longrope": ("llama", {"rope_parameters": LONG}),
    "phi3": (
        "phi3",
        {
            "original_max_position_embeddings": 24,
            "rope_parameters": {**LONG, "partial_rotary_factor": 0.5, "short_factor": [1, 1.2], "long_factor": [2, 6]},
        },
    ),
}
each_kind = pytest.mark.parametrize("kind", FIELDS)


def model_of(tiny_model: Callable, kind: str) -> Any:
    family, fields = FIELDS[kind]
    return tiny_model(family, **fields)


def by_hugging_face(model: Any, ids: list[int], count: int) -> list[int]:
    prompt = torch.tensor([ids])
    how = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)[0].tolist()[len(ids) :]


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@each_kind
@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
def test_a_text_is_hugging_faces(tiny_model, tiny_tokenizer, adaptive, kind: str, native: bool):
    """Below the length that the model was trained at, and past it; a dynamic rope may also go past it on its way."""
    lengths = [(5, 10), (60, 20), (33, 20), *([(20, 30)] if kind == "dynamic" else [])]
    base = model_of(tiny_model, kind)
    # a fresh model for each text: it remembers the longest one
    expected = [by_hugging_face(model_of(tiny_model, kind), prompt(n), count) for n, count in lengths]
    llm = LLM.of(adaptive(base), tiny_tokenizer, budget=1.0)
    assert isinstance(llm.engine.runner, NativeRunner) and spine_of(base).stretches
    if not native:
        llm.engine.runner = llm.engine.runner.plain
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for _, count in lengths]
    together = llm.generate([prompt(n) for n, _ in lengths], params)
    assert [out.token_ids for out in together] == expected
    alone = [llm.generate(prompt(n), each)[0].token_ids for (n, _), each in zip(lengths, params, strict=True)]
    assert alone == expected


@each_kind
def test_lengths_matter(tiny_model: Callable, kind: str):
    (rope,) = spine_of(model_of(tiny_model, kind)).ropes.values()
    assert rope.stretch is not None
    short, grown, longer = rope.stretch(torch.tensor([[10, 40, 80], [20, 90, 90]]))
    assert torch.equal(short, rope.inv_freq) and not torch.allclose(short, grown)
    assert torch.equal(grown, longer) == (kind != "dynamic")


@each_kind
def test_a_pass_over_a_long_text_leaves_nothing_behind(tiny_model: Callable, kind: str):
    model = model_of(tiny_model, kind)
    before = spine_of(model).ropes["default"].inv_freq.clone()
    with torch.no_grad():
        model(torch.tensor([prompt(70)]))
    assert torch.equal(spine_of(model).ropes["default"].inv_freq, before)


def test_a_text_that_may_grow_long_is_long_from_its_beginning(tiny_model, tiny_tokenizer, adaptive):
    """K of short factors means nothing to queries of long ones; Hugging Face reads such a text again where it passes
    the length, if the model is a Phi-3."""
    base = model_of(tiny_model, "phi3")
    llm = LLM.of(adaptive(base), tiny_tokenizer, budget=1.0)
    (out,) = llm.generate(prompt(20), SamplingParams(max_tokens=30, ignore_eos=True))
    ids = torch.tensor([prompt(20) + out.token_ids])
    with torch.no_grad():
        logits = model_of(tiny_model, "phi3")(ids, use_cache=False).logits[0]
    assert out.token_ids == logits[19:-1].argmax(-1).tolist()


@each_kind
def test_no_text_has_the_beginning_of_another(tiny_model, tiny_tokenizer, adaptive, kind: str):
    llm = LLM.of(adaptive(model_of(tiny_model, kind)), tiny_tokenizer, budget=1.0)
    begin = prompt(70)
    for length in (66, 70):
        (out,) = llm.generate(begin[:length], SamplingParams(max_tokens=4, ignore_eos=True))
        assert out.token_ids == by_hugging_face(model_of(tiny_model, kind), begin[:length], 4)
        assert len(out.prompt_depths) == length and llm.stats.cached_tokens == 0


def test_a_rope_that_is_not_known_is_refused(tiny_model: Callable):
    config = tiny_model("llama").config
    config.rope_parameters = {"rope_type": "spiral", "rope_theta": 1e4}
    with pytest.raises(ValueError, match=r"rope type 'spiral' is not known to the engine; it has default, .*longrope"):
        check_ropes(config)
