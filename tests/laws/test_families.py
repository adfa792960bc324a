"""What each family must do, whatever is odd about it: texts of the engine that are Hugging Face's, token for token, a
step of training, a map; and that the tiny models of these tests have what is odd about their families.

That saved and exported folders open again is tested in `models`; lossless texts and all methods in `engine`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.laws.cover import MIXTURES

from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.native import NativeRunner
from depthdial.kernels.tensors import LayerTensors, ModelTensors
from depthdial.maps.record import Recorder
from depthdial.maps.texts import MapText
from depthdial.models.block import spine_of
from depthdial.models.converted import converted_of
from depthdial.models.families import FAMILIES, family_of
from depthdial.models.halves import Halves
from depthdial.train.lesson import Lesson

each_family = pytest.mark.parametrize("family", FAMILIES)
PROMPTS = [[5, 17, 200, 9, 31, 7, 7, 120, 44, 260, 3, 99, 150], [8, 21], [n % 290 + 5 for n in range(0, 700, 17)]]


def layers(spine: ModelTensors, holds: Callable[[LayerTensors], bool]) -> int:
    return sum(holds(layer) for layer in spine.layers)


ODD: dict[str, Callable[[ModelTensors], bool]] = {
    "mistral": lambda m: layers(m, lambda a: a.window == 8) == 6,
    "ministral": lambda m: layers(m, lambda a: a.window == 8) == 6,
    "qwen2": lambda m: m.layers[0].q.bias is not None and m.layers[0].o.bias is None,
    "qwen3": lambda m: m.layers[0].q_norm is not None,
    "granite": lambda m: m.embed_scale == 3.0 and m.layers[0].residual == 0.6 and m.logit_scale != 1.0,
    "cwm": lambda m: layers(m, lambda a: a.window == 8) in range(1, 6),
    "iquestcoder": lambda m: m.layers[0].q.bias is not None,
    "internlm3": lambda m: m.layers[0].q.bias is not None and m.layers[0].down.bias is not None,
    "mixtral": lambda m: layers(m, lambda a: a.experts is not None and a.window == 8) == 6,
    "olmoe": lambda m: m.layers[0].q_norm.weight.numel() == 32 and m.layers[0].experts is not None,  # pyright: ignore
    "helium": lambda m: m.layers[0].pairs == "neighbours" and m.norm.once,
    "glm": lambda m: m.layers[0].pairs == "neighbours" and len(m.ropes["default"].inv_freq) == 2,
    "arcee": lambda m: m.layers[0].up is None and m.layers[0].activation == "relu2",
    "seed_oss": lambda m: m.layers[0].q.bias is not None and m.layers[0].o.bias is None,
    "phi3": lambda m: len(m.ropes["default"].inv_freq) == 2 and m.layers[0].window == 8,
    "qwen3_moe": lambda m: layers(m, lambda a: a.experts is not None) == 5,
    "smollm3": lambda m: layers(m, lambda a: not m.ropes[a.rope].inv_freq.any()) == 2,
    "ministral3": lambda m: m.query_scale is not None and m.query_scale(torch.tensor([20])).item() > 1.2,
    "olmo2": lambda m: m.layers[0].bare and m.layers[0].q_norm.weight.numel() == 32,  # pyright: ignore
    "olmo3": lambda m: len(m.ropes) == 2 and layers(m, lambda a: a.window == 8) == 5,
    "exaone4": lambda m: layers(m, lambda a: a.bare and not m.ropes[a.rope].inv_freq.any()) == 2,
    "ernie4_5": lambda m: m.layers[0].pairs == "neighbours" and m.layers[0].down.bias is not None,
    "hunyuan_v1_dense": lambda m: m.layers[0].norms_turned and m.layers[0].q_norm is not None,
    "gemma": lambda m: m.norm.plus_one and 5.65 < m.embed_scale < 5.66,
    "gemma2": lambda m: m.layers[0].softcap == 2.0 and m.softcap == 4.0 and layers(m, lambda a: a.window == 8) == 3,
    "gemma3_text": lambda m: m.layers[0].after_mlp is not None and len(m.ropes) == 2,
    "gpt_oss": lambda m: m.layers[0].sinks is not None and layers(m, lambda a: a.experts is not None) == 6,
}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])
def test_tiny_models_are_as_odd_as_their_family(tiny_model: Callable, family: str):
    assert ODD[family](spine_of(tiny_model(family)))


@each_family
def test_a_text_is_hugging_faces_token_for_token(tiny_model, tiny_tokenizer, adaptive, family: str):
    base, texts = tiny_model(family), []
    for ids in PROMPTS:
        prompt = torch.tensor([ids])
        how = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        texts.append(base.generate(prompt, attention_mask=torch.ones_like(prompt), **how)[0].tolist())
    llm = LLM.of(adaptive(base), tiny_tokenizer, budget=1.0)
    assert isinstance(llm.engine.runner, NativeRunner) == (family not in MIXTURES)
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    for ids, text, out in zip(PROMPTS, texts, llm.generate(PROMPTS, params), strict=True):
        assert ids + out.token_ids == text and out.cost == 1.0


@pytest.mark.parametrize("family", MIXTURES)
def test_what_runs_in_torch_says_so_in_one_line(tiny_model, tiny_tokenizer, adaptive, caplog, family: str):
    with caplog.at_level(logging.WARNING):
        LLM.of(adaptive(tiny_model(family)), tiny_tokenizer)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("decoding in PyTorch") and "mixture of experts" in line and "\n" not in line


@pytest.mark.parametrize("family", MIXTURES)
def test_a_skipped_layer_skips_its_experts(tiny_model, tiny_tokenizer, adaptive, family: str):
    model: Any = adaptive(tiny_model(family), weights="hard")
    llm, rows = LLM.of(model, tiny_tokenizer, prompt_budget="same"), []
    experts = [layer.mlp.experts for layer in model.model.layers if "experts" in dict(layer.mlp.named_children())]
    hooks = [each.register_forward_hook(lambda _module, args, _out: rows.append(len(args[0]))) for each in experts]
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=9, ignore_eos=True))
    for hook in hooks:
        hook.remove()
    mixed = {i for i, layer in enumerate(model.model.layers) if "experts" in dict(layer.mlp.named_children())}
    kept = sum(int(count) for i, count in enumerate(llm.stats.mlp_rows) if i in mixed)
    assert sum(rows) == kept < len(mixed) * llm.stats.tokens, "experts see the tokens that run their layer alone"
    assert all(out.cost < 1.0 for out in outputs)


@each_family
@torch.no_grad()
def test_both_halves_are_the_whole(tiny_model: Callable, adaptive: Callable, family: str):
    model: Any = adaptive(tiny_model(family))
    ids, places, halves = torch.tensor([PROMPTS[0]]), torch.arange(13)[None], Halves(model)
    hidden = halves.upper(halves.lower(ids, position_ids=places), position_ids=places)
    assert halves.first == 2
    torch.testing.assert_close(hidden, model.get_decoder()(ids).last_hidden_state, rtol=1e-5, atol=1e-5)


@each_family
@pytest.mark.parametrize("shortlist", [None, 8])
def test_a_step_of_training_learns(tiny_model, adaptive, packed, family: str, shortlist: int | None):
    model = adaptive(tiny_model(family))
    lesson, batch = Lesson(model, "distill", None, shortlist=shortlist), packed()
    converted_of(model).set(offset=0.0)
    losses = []
    optimizer = torch.optim.AdamW(lesson.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(8):
        loss = lesson(**batch)["loss"]
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] and all(math.isfinite(loss) for loss in losses)
    converted_of(model).set(offset=math.inf)
    (base,) = lesson._base
    hidden = model.get_decoder()(batch["input_ids"]).last_hidden_state.flatten(0, 1)
    logits = model(batch["input_ids"]).logits.flatten(0, 1)
    target = torch.ones(1, len(hidden))
    torch.testing.assert_close(
        base.loss.ce(hidden[None], batch["input_ids"].flatten(), target)[0],
        torch.nn.functional.cross_entropy(logits, batch["input_ids"].flatten(), reduction="none"),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@each_family
def test_the_loss_has_the_models_own_gradient(tiny_model, adaptive, family: str):
    """At a head whose products are scaled and capped, too."""
    model: Any = adaptive(tiny_model(family))
    (base,) = Lesson(model, "lm", None)._base
    hidden = torch.randn(20, 32, requires_grad=True)
    target = torch.randint(300, (20,))
    base.loss.ce(hidden[None], target, torch.ones(1, 20)).sum().backward()
    mine, hidden.grad = hidden.grad, None
    scale, cap = base.loss.shape
    logits = model.lm_head(hidden) * scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    torch.nn.functional.cross_entropy(logits, target, reduction="sum").backward()
    torch.testing.assert_close(mine, hidden.grad, rtol=1e-4, atol=1e-5)


@each_family
def test_a_map_of_the_engine_is_the_references(tiny_model, tiny_tokenizer, adaptive, family: str):
    model = adaptive(tiny_model(family), weights="hard")
    llm = LLM.of(model, tiny_tokenizer)
    texts = [MapText(ids, [t > 1 for t in range(len(ids))], str(i), "t") for i, ids in enumerate(PROMPTS)]
    fast = list(Recorder(model, tiny_tokenizer, 0.2, engine=llm.engine).rows(texts))
    slow = list(Recorder(model, tiny_tokenizer, 0.2).rows(texts))
    assert 2 <= min(row.layers_used.min() for row in slow) < 6
    for a, b in zip(fast, slow, strict=True):
        assert (a.ran == b.ran).mean() > 0.98
        torch.testing.assert_close(torch.tensor(a.entropy), torch.tensor(b.entropy), rtol=1e-3, atol=1e-3)


def test_every_family_says_what_it_is():
    assert set(ODD) == set(FAMILIES) - {"llama"}
    for family in FAMILIES.values():
        assert family_of(family.example()) is family
