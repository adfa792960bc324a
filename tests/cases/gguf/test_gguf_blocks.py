"""A GGUF model runs from its own blocks: `weights="file"`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quantize

from depthdial import LLM, SamplingParams
from depthdial.engine.native import NativeRunner
from depthdial.engine.weights import size_of
from depthdial.kernels.blocks import Blocks

Write = Callable[..., Path]
LONG = SamplingParams(max_tokens=20, ignore_eos=True, budget=1.0, logprobs=20)
PROMPT = [7, 8, 9, 10] * 8


@pytest.fixture
def quantised(write: Write, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`quantised(kinds)`: a file whose matrices have these types of blocks, by what their names hold; others Q8_0."""

    def make(**kinds: str) -> Path:
        plain = GGUFWriter.add_tensor

        def add(out: GGUFWriter, name: str, tensor: np.ndarray) -> None:
            kind = next((kind for part, kind in kinds.items() if part in name), "Q8_0")
            if tensor.ndim < 2 or kind == "F32":
                return plain(out, name, tensor)
            its = GGMLQuantizationType[kind]
            size = GGML_QUANT_SIZES[its]
            zeros = np.zeros((len(tensor), tensor.shape[1] // size[0] * size[1]), np.uint8)
            plain(out, name, zeros if kind == "IQ4_NL" else quantize(tensor, its), raw_dtype=its)

        monkeypatch.setattr(GGUFWriter, "add_tensor", add)
        return write("blocks.gguf")

    return make


def answered(path: Path, **engine: Any) -> tuple[LLM, list[int], torch.Tensor]:
    llm = LLM(str(path), None, dtype="float32", device="cpu", **engine)
    (out,) = llm.generate([PROMPT], LONG)
    assert out.logprobs is not None
    return llm, out.token_ids, torch.tensor([sorted(row.values())[-20:] for row in out.logprobs])


def test_it_writes_what_the_unpacked_model_writes(quantised: Write):
    path = quantised(attn="Q4_1", ffn_down="Q5_0", output="Q4_0")
    _, tokens, logprobs = answered(path)
    llm, ours, theirs = answered(path, weights="file", activations="exact")
    assert ours == tokens
    torch.testing.assert_close(theirs, logprobs, rtol=1e-4, atol=1e-4)
    assert isinstance(llm.engine.runner, NativeRunner)
    kinds = {name: getattr(llm.engine.runner.plain.spine.layers[0], name).weight.kind for name in ("q", "gate", "down")}
    assert kinds == {"q": "Q4_1", "gate": "Q8_0", "down": "Q5_0"}
    assert not sum(p.numel() for n, p in llm.model.named_parameters() if "norm" not in n), "matrices are given back"
    _, _, near = answered(path, weights="file")
    assert 0 < (near - logprobs)[0].abs().max() < 0.1, "activations in int8"


def test_it_is_as_large_as_the_file(quantised: Write):
    path = quantised(ffn="Q4_1")
    llm, _, _ = answered(path, weights="file")
    assert isinstance(llm.engine.runner, NativeRunner)
    spine = llm.engine.runner.plain.spine
    held = [spine.embed, spine.head, *(getattr(layer, name).weight for layer in spine.layers
                                       for name in ("q", "k", "v", "o", "gate", "up", "down"))]  # fmt: skip
    assert all(isinstance(weight, Blocks) for weight in held)
    assert sum(map(size_of, held)) < 1.15 * path.stat().st_size


def test_what_the_file_holds_unquantised_stays_so(quantised: Write):
    """attn_v alone would take other packed tokens than attn_k, so that both are unpacked."""
    path = quantised(attn_v="F32", ffn="Q4_0")
    _, tokens, _ = answered(path)
    llm, ours, _ = answered(path, weights="file", activations="exact")
    assert ours == tokens and isinstance(llm.engine.runner, NativeRunner)
    layer = llm.engine.runner.plain.spine.layers[0]
    assert isinstance(layer.k.weight, torch.Tensor) and isinstance(layer.v.weight, torch.Tensor)
    assert isinstance(layer.q.weight, Blocks)


def test_blocks_that_do_not_run_are_named(quantised: Write):
    path = quantised(ffn_up="IQ4_NL")
    with pytest.raises(ValueError, match=r"blk.0.ffn_up.weight of blocks.gguf has blocks of type IQ4_NL, .*Q4_0, Q4_1"):
        answered(path, weights="file")
