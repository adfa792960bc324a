"""Tensors of tiny random models for native passes, with routers and adapters that disagree from token to token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from depthdial.kernels.passing import PagedCache, PassOutput, PassTokens
from depthdial.kernels.tensors import (
    PAGE,
    Act,
    AdapterTensors,
    Branch,
    Dense,
    LayerTensors,
    ModelTensors,
    Norm,
    Op,
    RouterTensors,
)
from depthdial.models.block import spine_of

Order = Literal["norm_tanh", "tanh_norm", "linear"]


@pytest.fixture(scope="session")
def tensors_of() -> Callable[[PreTrainedModel], ModelTensors]:
    """`tensors_of(model)`: its own tensors, every layer always run."""

    return spine_of


@pytest.fixture(scope="session")
def routed() -> Callable[..., ModelTensors]:
    """`routed(model, first=2, soft=False)`: a random router and adapter at every layer from `first` on."""

    def make(model: ModelTensors, first: int = 2, soft: bool = False, order: Order = "norm_tanh") -> ModelTensors:
        dim, dtype = model.norm.weight.shape[0], model.norm.weight.dtype
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int, scale: float = 0.3) -> Tensor:
            return torch.randn(shape, generator=generator) * scale

        def ops() -> tuple[Op, ...]:
            if order == "linear":
                return (Dense(random(1, dim)),)
            enc, norm, folded = Dense(random(7, dim).to(dtype)), Norm(1 + random(7), 1e-6), random(1, 7, scale=0.7)
            between = (norm, Act("tanh")) if order == "norm_tanh" else (Act("tanh"), norm)
            return (enc, *between, Dense(folded, torch.tensor([0.1])))

        def parts(layer: LayerTensors) -> LayerTensors:
            branch = Branch("ops", RouterTensors(ops(), cut=0.2, soft=soft))
            adapter = AdapterTensors(random(6, dim).to(dtype), random(6, dim).to(dtype), random(dim, 6).to(dtype))
            return layer._replace(branch=branch, adapter=adapter)

        return model._replace(layers=(*model.layers[:first], *(parts(layer) for layer in model.layers[first:])))

    return make


class Batch:
    """Sequences of different lengths in a paged cache whose pages are shuffled, and the inputs of passes over them."""

    def __init__(self, model: ModelTensors, sequences: int = 4, pages: int = 3, seed: int = 0):
        layer, self.steps, caches = model.layers[0], len(model.steps), model.caches
        self.query_scale = model.query_scale
        self.generator = torch.Generator().manual_seed(seed)
        count = caches * sequences * pages + 1
        shape = (count, layer.kv_heads, PAGE, layer.head_dim)
        dtype = model.norm.weight.dtype
        k, v = (torch.randn(shape, generator=self.generator).to(dtype) for _ in range(2))
        order = torch.randperm(count, generator=self.generator)[: count - 1]
        held = None  # else some of the entries of before are there, and of a page that others had
        if _gaps(model):
            held = torch.randint(0, 2, (count, PAGE), generator=self.generator, dtype=torch.uint8)
        self._cache = PagedCache(k, v, order.view(caches, sequences, pages).int(), held)
        self.vocabulary = 300

    def inputs(self, places: Sequence[tuple[int, int]], offset: float = 0.0) -> PassTokens:
        """Tokens at (sequence, position), their ids drawn anew."""
        rows = torch.tensor(places, dtype=torch.int32)
        ids = torch.randint(0, self.vocabulary, (len(places),), generator=self.generator)
        positions, offsets = rows[:, 1].contiguous(), torch.full((len(places),), offset)
        scale = None if self.query_scale is None else self.query_scale(positions)
        return PassTokens(ids, positions, rows[:, 0].contiguous(), offsets, query_scale=scale)

    def cache(self) -> PagedCache:
        return PagedCache(*(None if part is None else part.clone() for part in self._cache))  # pyright: ignore

    def output(self, tokens: int) -> PassOutput:
        keep = torch.full((self.steps, tokens), 9, dtype=torch.uint8)
        score, logits = (
            torch.full((rows, width), float("nan")) for rows, width in ((self.steps, tokens), (tokens, self.vocabulary))
        )
        return PassOutput(keep, score, logits)


def _gaps(model: ModelTensors) -> bool:
    return any(layer.absent == "nothing" for layer in model.layers)


@pytest.fixture(scope="session")
def batch_for() -> type[Batch]:
    return Batch


@pytest.fixture(scope="session")
def base(tiny_model: Callable[..., PreTrainedModel], tensors_of: Callable[..., ModelTensors]) -> ModelTensors:
    """A model whose sizes are whole tiles, so that the same programs over it can run in tiles."""
    return tensors_of(tiny_model("llama", hidden_size=64, intermediate_size=160, head_dim=32))
