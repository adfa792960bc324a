"""Windows, heads and prompts of the families' real models, and what lies behind the mask, on every instruction set.

Models are two layers of few heads: what is tested is which places a token sees, and that is theirs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.kernels import definition
from torch import Tensor

from depthdial.kernels.cpu.build import all_isas
from depthdial.kernels.cpu.native import NativeModel
from depthdial.kernels.pack import packed
from depthdial.kernels.passing import PagedCache, PassOutput, PassTokens
from depthdial.kernels.tensors import MAX_TOKENS, PAGE, ModelTensors

SHAPES = {
    "gemma3-270m": ("gemma3_text", 256, 512, 1024),
    "gemma3-1b": ("gemma3_text", 256, 512, 1100),
    "gemma3-4b": ("gemma3_text", 256, 1024, 1536),
    "qwen3-windowed": ("qwen3", 64, 256, 1500),
    "qwen3": ("qwen3", 128, None, 1100),
    "smollm2": ("llama", 64, None, 1100),
    "qwen2": ("qwen2", 64, 100, 700),
    "window-of-one": ("llama", 64, 1, 600),
}
"""Family, width of a head, window, tokens of a prompt."""


def model_of(tiny_model: Any, tensors_of: Any, family: str, head_dim: int, window: int | None) -> ModelTensors:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": head_dim, "max_position_embeddings": 8192}
    made = tensors_of(tiny_model(family, **sizes).bfloat16())
    return made._replace(layers=tuple(layer._replace(window=window) for layer in made.layers))


def read(native: NativeModel, inputs: PassTokens, cache: PagedCache) -> Tensor:
    """Logits [N, V] of a prompt: in tiles where there are tiles, else in as many small passes as it takes."""
    count = len(inputs.ids)
    logits = torch.full((count, native.vocabulary), float("nan"))
    step = count if native.prefills else MAX_TOKENS
    for at in range(0, count, step):
        n = min(step, count - at)
        mine = PassTokens(*(part[at : at + n].contiguous() for part in inputs[:4]))
        keep, score = torch.empty(native.steps, n, dtype=torch.uint8), torch.empty(native.steps, n)
        run = native.prefill if native.prefills else native.forward
        run(mine, cache, PassOutput(keep, score, logits[at : at + n]), torch.arange(n, dtype=torch.int32))
    return logits


def blank(cache: PagedCache) -> PagedCache:
    return cache._replace(k=torch.zeros_like(cache.k), v=torch.zeros_like(cache.v))


def check_prompt(isa: str, made: ModelTensors, batch_for: Any, length: int) -> None:
    batch = batch_for(made, sequences=1, pages=-(-length // PAGE))
    native = NativeModel(made, isa=isa)
    inputs: PassTokens = batch.inputs([(0, place) for place in range(length)])
    logits = read(native, inputs, blank(batch.cache()))
    expected = definition.forward_pass(made, inputs, blank(batch.cache())).logits
    assert logits.isfinite().all()
    error = (logits - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-3)  # a pad token is 0
    assert error.max() < 0.08 and error.mean() < 0.02, (int(error.argmax()), float(error.max()))


@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize("shape", ["gemma3-270m", "qwen2", "window-of-one"])
@torch.no_grad()
def test_prompts_beyond_the_window(isa: str, shape: str, tiny_model, tensors_of, batch_for):
    family, head_dim, window, length = SHAPES[shape]
    check_prompt(isa, model_of(tiny_model, tensors_of, family, head_dim, window), batch_for, length)


@pytest.mark.slow
@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in ("gemma3-270m", "qwen2", "window-of-one")])
@torch.no_grad()
def test_prompts_of_all_sizes(isa: str, shape: str, tiny_model, tensors_of, batch_for):
    family, head_dim, window, length = SHAPES[shape]
    check_prompt(isa, model_of(tiny_model, tensors_of, family, head_dim, window), batch_for, length)


@pytest.mark.slow
@pytest.mark.parametrize("isa", all_isas())
@torch.no_grad()
def test_a_long_prompt_beyond_mistrals_window(isa: str, tiny_model, tensors_of, batch_for):
    check_prompt(isa, model_of(tiny_model, tensors_of, "mistral", 128, 4096), batch_for, 4200)


def poison(cache: Tensor) -> Tensor:
    """As wide as it is, with nothing in it that is a number."""
    spoilt = torch.full_like(cache, float("nan"))
    spoilt.view(-1)[::3] = float("inf")
    spoilt.view(-1)[1::7] = -float("inf")
    return spoilt


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize("isa", all_isas())
@torch.no_grad()
def test_what_lies_behind_the_mask_never_counts(isa, head_dim, window, tiny_model, tensors_of, batch_for):
    """Pages that others left full of NaN, places of the last page that nobody has written, and a text's own future."""
    made = model_of(tiny_model, tensors_of, "llama", head_dim, window)
    batch, native = batch_for(made, sequences=2, pages=3), NativeModel(made, isa=isa)
    inputs = batch.inputs([(0, place) for place in range(130)] + [(1, place) for place in range(5)])
    clean, foul = blank(batch.cache()), batch.cache()
    foul = foul._replace(k=poison(foul.k), v=poison(foul.v))
    expected = read(native, inputs, clean)
    assert torch.equal(read(native, inputs, foul), expected) and expected.isfinite().all()

    # a token of the text's own whose embedding is not a number: all before it are what they were
    assert isinstance(made.embed, Tensor)
    bad = int(inputs.ids[100])
    inputs.ids[:100][inputs.ids[:100] == bad] = (bad + 1) % native.vocabulary
    expected = read(native, inputs, clean)
    embed = made.embed.clone()
    embed[bad] = float("nan")
    spoilt = NativeModel(made._replace(embed=embed), isa=isa)
    found = read(spoilt, inputs, foul)
    assert torch.equal(found[:100], expected[:100])
    assert not found[100:130].isfinite().any()
    others = inputs.ids != bad
    assert torch.equal(found[130:][others[130:]], expected[130:][others[130:]]) or bool((~others[130:]).any())
    pages = batch.cache().table[:, 0, :2].long()
    for cache, other in zip(foul[:2], clean[:2], strict=True):
        mine, theirs = (part[pages].transpose(2, 3).flatten(1, 2)[:, :100] for part in (cache, other))
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
@pytest.mark.parametrize("isa", all_isas())
@torch.no_grad()
def test_no_token_is_chosen_from_logits_that_are_not_finite(isa, weights, tiny_model, tensors_of, batch_for):
    """In int8, where no whole number stands for NaN, too; whoever shares the pass keeps its token."""
    made = model_of(tiny_model, tensors_of, "llama", 64, None)
    batch = batch_for(made)
    inputs = batch.inputs([(0, 0), (1, 0), (2, 0)])
    inputs = inputs._replace(ids=torch.tensor([5, 6, 7]))
    found = []
    for value in (None, float("nan"), float("inf")):
        assert isinstance(made.embed, Tensor)
        embed = made.embed.clone()
        if value is not None:
            embed[6, 3] = value
        model = made._replace(embed=embed)
        if weights == "int8":
            model = packed(model._replace(embed=made.embed))._replace(embed=embed)
        best = torch.full((3,), 9)
        out = batch.output(3)._replace(argmax=best)
        NativeModel(model, isa=isa).forward(inputs, batch.cache(), out)
        found.append(best.tolist())
        assert out.logits[[0, 2]].isfinite().all()
        assert bool(out.logits[1].isfinite().all()) == (value is None)
    whole = found[0]
    assert -1 not in whole and found[1:] == [[whole[0], -1, whole[2]]] * 2
