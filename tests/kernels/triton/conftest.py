"""Passes of a few tokens over pages in a shuffled order, for the tests of each kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from depthdial.kernels.passing import PagedCache
from depthdial.kernels.tensors import (
    PAGE,
    Act,
    AdapterTensors,
    Branch,
    Dense,
    LayerTensors,
    Linear,
    ModelTensors,
    Norm,
    Rope,
    RouterTensors,
)
from depthdial.kernels.triton.rope import Angles
from depthdial.kernels.triton.route import Place
from depthdial.kernels.triton.rows import Rows

D, F, A, R, V, HD = 32, 48, 8, 4, 50, 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Scene(NamedTuple):
    """N tokens of some sequences, caches of one layer that hold what came before, and what lies in no page is NaN."""

    place: Place
    k_cache: Tensor
    v_cache: Tensor
    angles: Angles
    rope: Rope


@pytest.fixture(scope="session")
def device() -> torch.device:
    return DEVICE


@pytest.fixture(scope="session")
def close() -> Callable[[Tensor, Tensor], None]:
    """`close(got, wanted)`: 1e-4 in fp32; in bfloat16 a few of its steps (the interpreter rounds towards 0)."""

    def check(got: Tensor, wanted: Tensor) -> None:
        bound = 4e-2 if got.dtype == torch.bfloat16 else 1e-4
        finite = wanted[wanted.isfinite()].float()
        scale = max(1.0, float(finite.square().mean().sqrt())) if finite.numel() else 1.0
        torch.testing.assert_close(got, wanted, rtol=bound, atol=bound * scale, equal_nan=True)

    return check


@pytest.fixture(scope="session")
def some_rows() -> Callable[[list[int]], Rows]:
    """`some_rows([2, 5])`: a list with room to spare, filled up with rows that must not be touched."""

    def make(index: list[int]) -> Rows:
        padded = torch.tensor([*index, 0, 1], dtype=torch.int32, device=DEVICE)
        return Rows(torch.tensor([len(index)], dtype=torch.int32, device=DEVICE), padded)

    return make


@pytest.fixture(scope="session")
def scene() -> Callable[..., Scene]:
    """`scene(tokens)`: tokens as (sequence, position), any order; `live` of them (the others are padding)."""

    def make(
        tokens: list[tuple[int, int]], kv_heads=2, head_dim=8, dtype=torch.float32, live: int | None = None
    ) -> Scene:
        generator = torch.Generator().manual_seed(0)
        sequences = 1 + max(s for s, _ in tokens)
        pages = 1 + max(p for _, p in tokens) // PAGE
        table = torch.randperm(sequences * pages + 1, generator=generator)[: sequences * pages].view(sequences, pages)
        caches = torch.full((2, sequences * pages + 1, kv_heads, PAGE, head_dim), float("nan"), dtype=dtype)
        for sequence, position in tokens:
            for p in range(position + 1):
                row = torch.randn(2, kv_heads, head_dim, generator=generator).to(dtype)
                caches[:, table[sequence, p // PAGE], :, p % PAGE] = row
        rope = Rope(10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim).to(DEVICE), 1.25)
        positions = torch.tensor([p for _, p in tokens], dtype=torch.int32, device=DEVICE)
        angles = Angles({"full": rope}, len(tokens), dtype, DEVICE)
        angles.turn(positions)
        count = torch.tensor([len(tokens) if live is None else live], dtype=torch.int32, device=DEVICE)
        place = Place(
            Rows(count),
            torch.tensor([s for s, _ in tokens], dtype=torch.int32, device=DEVICE),
            positions,
            table.to(torch.int32).contiguous().to(DEVICE),
        )
        return Scene(place, caches[0].clone().to(DEVICE), caches[1].clone().to(DEVICE), angles, rope)

    return make


@pytest.fixture(scope="session")
def tiny_tensors() -> Callable[..., ModelTensors]:
    """`tiny_tensors(dtype, routed=(1, 2), soft, gemma, bias, kv_heads)`: 3 layers, d 32, a vocabulary of 50."""
    return lambda *args, **settings: _tiny(DEVICE, *args, **settings)


@pytest.fixture(scope="session")
def filled() -> Callable[..., PagedCache]:
    """`filled(model, table, pages, dtype)`: a cache full of the same random numbers each time; each of the three layers
    has the pages of `table` ([sequences, pages of one]), of `pages` of its own."""
    return lambda model, table, pages, dtype: _cache(model, table, pages, DEVICE, dtype)


def _tiny(device, dtype=torch.float32, routed=(1, 2), soft=False, gemma=False, bias=False, kv_heads=2) -> ModelTensors:
    """3 layers; those in `routed` have a router and an adapter."""
    generator = torch.Generator().manual_seed(7)

    def make(*shape: int, scale: float = 1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(device)

    def norm(size: int = D) -> Norm:
        return Norm(make(size, scale=0.2) + (0 if gemma else 1), 1e-5, gemma)

    def layer(index: int) -> LayerTensors:
        linears = {
            name: Linear(make(out, size, scale=size**-0.5), make(out) if bias and name in "qkv" else None)
            for name, out, size in (
                ("q", 4 * HD, D), ("k", kv_heads * HD, D), ("v", kv_heads * HD, D), ("o", D, 4 * HD),
                ("gate", F, D), ("up", F, D), ("down", D, F),
            )
        }  # fmt: skip
        branch, adapter = Branch("table"), None
        if index in routed:
            enc, scale = Dense(make(R, D)), torch.rand(R, generator=generator).to(device) + 0.5
            folded = torch.randn(1, R, generator=generator).to(device) * 3
            last = Dense(folded, torch.tensor([0.1], device=device))
            branch = Branch("ops", RouterTensors((enc, Norm(scale, 1e-5), Act("tanh"), last), soft=soft))
            adapter = AdapterTensors(make(A, D, scale=0.2), make(A, D, scale=0.2), make(D, A, scale=0.4))
        extra: dict[str, Any] = {}
        if gemma:
            extra = {"after_attn": norm(), "after_mlp": norm(), "q_norm": norm(HD), "k_norm": norm(HD)}
            extra |= {"window": 5 if index else None, "activation": "gelu_tanh", "rope": "wide" if index else "full"}
        sizes: dict[str, Any] = {"heads": 4, "kv_heads": kv_heads, "head_dim": HD, "scale": HD**-0.5, "rope": "full"}
        parts: dict[str, Any] = {**linears, "branch": branch, "adapter": adapter}
        return LayerTensors(before_attn=norm(), before_mlp=norm(), **(sizes | parts | extra))

    bases = {"full": 1e4, "wide": 10.0}
    ropes = {name: Rope((base ** (-torch.arange(0, HD, 2) / HD)).to(device)) for name, base in bases.items()}
    return ModelTensors(
        make(V, D), tuple(layer(i) for i in range(3)), norm(), make(V, D), ropes, 5.5 if gemma else 1.0,
        7.0 if gemma else None,
    )  # fmt: skip


def _cache(model: ModelTensors, table: Tensor, pages: int, device, dtype) -> PagedCache:
    generator = torch.Generator().manual_seed(1)
    shape = (3 * pages, model.layers[0].kv_heads, PAGE, HD)
    k, v = (torch.randn(shape, generator=generator).to(dtype).to(device) for _ in range(2))
    first = torch.arange(0, 3 * pages, pages, dtype=torch.int32, device=device)
    return PagedCache(k, v, first[:, None, None] + table)
