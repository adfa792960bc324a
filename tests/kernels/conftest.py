"""Tensors of tiny random models for native passes, with routers and adapters that disagree from token to token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from depthdial.kernels.tensors import (
    PAGE,
    AdapterTensors,
    LayerTensors,
    ModelTensors,
    RouterTensors,
)
from depthdial.models.block import spine_of

Order = Literal["norm_tanh", "tanh_norm", "linear"]


@pytest.fixture(scope="session")
def tensors_of() -> Callable[[PreTrainedModel], ModelTensors]:
    """`tensors_of(model)`: its own tensors, every layer always run."""

    def read(model: PreTrainedModel) -> ModelTensors:
        spine = spine_of(model)
        layers = tuple(LayerTensors(**vars(block)) for block in spine.blocks)
        return ModelTensors(spine.embed, layers, spine.norm, spine.head, spine.ropes, spine.embed_scale, spine.softcap)

    return read


@pytest.fixture(scope="session")
def routed() -> Callable[..., ModelTensors]:
    """`routed(model, first=2, soft=False)`: a random router and adapter at every layer from `first` on."""

    def make(model: ModelTensors, first: int = 2, soft: bool = False, order: Order = "norm_tanh") -> ModelTensors:
        dim, dtype = model.norm.weight.shape[0], model.norm.weight.dtype
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int, scale: float = 0.3) -> Tensor:
            return torch.randn(shape, generator=generator) * scale

        def parts(layer: LayerTensors) -> LayerTensors:
            enc, norm, folded = random(7, dim).to(dtype), 1 + random(7), random(7, scale=0.7)
            router = RouterTensors(enc, norm, 1e-6, order, folded, 0.1, cut=0.2, soft=soft)
            adapter = AdapterTensors(random(6, dim).to(dtype), random(6, dim).to(dtype), random(dim, 6).to(dtype))
            return layer._replace(router=router, adapter=adapter)

        return model._replace(layers=(*model.layers[:first], *(parts(layer) for layer in model.layers[first:])))

    return make


class Batch:
    """Sequences of different lengths in a paged cache whose pages are shuffled, and the inputs of passes over them."""

    def __init__(self, model: ModelTensors, sequences: int = 4, pages: int = 3, seed: int = 0):
        layer, self.depth = model.layers[0], len(model.layers)
        self.generator = torch.Generator().manual_seed(seed)
        count = sequences * pages + 1
        shape = (self.depth, count, layer.kv_heads, PAGE, layer.head_dim)
        self.dtype = model.norm.weight.dtype
        self.k_cache, self.v_cache = (torch.randn(shape, generator=self.generator).to(self.dtype) for _ in range(2))
        order = torch.randperm(count, generator=self.generator)[: sequences * pages]
        self.page_table = order.view(sequences, pages).int()
        self.vocabulary = 300

    def inputs(self, places: Sequence[tuple[int, int]], offset: float = 0.0) -> dict[str, Any]:
        """Tokens at (sequence, position), their ids drawn anew."""
        rows = torch.tensor(places, dtype=torch.int32)
        return {
            "ids": torch.randint(0, self.vocabulary, (len(places),), generator=self.generator),
            "positions": rows[:, 1].contiguous(),
            "sequences": rows[:, 0].contiguous(),
            "page_table": self.page_table,
            "offsets": torch.full((len(places),), offset),
        }

    def caches(self) -> dict[str, Any]:
        return {"k_cache": self.k_cache.clone(), "v_cache": self.v_cache.clone()}

    def outputs(self, tokens: int) -> dict[str, Any]:
        return {
            "logits_out": torch.full((tokens, self.vocabulary), float("nan")),
            "keep_out": torch.full((self.depth, tokens), 9, dtype=torch.uint8),
            "score_out": torch.full((self.depth, tokens), float("nan")),
        }


@pytest.fixture(scope="session")
def batch_for() -> type[Batch]:
    return Batch
