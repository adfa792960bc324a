"""Attention for some of a pass's tokens, in vLLM's own cache and by its own kernels: K and V of all, queries of a few.

Q has a projection of its own, so that it can run for fewer rows than K and V. A backend's metadata is made anew for the
queries that run: each becomes a request of one token that sees its own text up to its place.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention.attention import unified_kv_cache_update
from vllm.model_executor.layers.linear import ColumnParallelLinear, MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.v1.attention.backend import CommonAttentionMetadata

from depthdial.core.tokens import Tokens, Trace
from depthdial.serve.vllm.light import Norm, rotate
from depthdial.serve.vllm.shape import ModelShape


@dataclass(frozen=True)
class Pass:
    """One forward pass over T tokens of several requests."""

    positions: Tensor
    """int64 [T]: the place of each token in its text."""
    requests: Tensor
    """int64 [T]: which of the pass's requests it belongs to."""
    tokens: Tokens | None
    """As methods know them; None: all of them run the untouched base."""
    trace: Trace


class RowAttention(nn.Module):
    """One layer's attention, for all tokens or for those that run. The names of its weights are Hugging Face's."""

    def __init__(self, config: VllmConfig, shape: ModelShape, layer: int, prefix: str):
        super().__init__()
        ranks, quant = get_tensor_model_parallel_world_size(), config.quant_config
        shape.split(ranks)
        self._config = config
        self.heads, self.kv_heads, self.head_dim = shape.heads // ranks, shape.kv_heads // ranks, shape.head_dim
        self.q_proj = ColumnParallelLinear(
            shape.hidden,
            shape.heads * shape.head_dim,
            bias=shape.qkv_bias,
            quant_config=quant,
            prefix=f"{prefix}.q_proj",
            return_bias=False,
        )
        self.kv_proj = MergedColumnParallelLinear(
            shape.hidden,
            [shape.kv_heads * shape.head_dim] * 2,
            bias=shape.qkv_bias,
            quant_config=quant,
            prefix=f"{prefix}.kv_proj",
            return_bias=False,
        )
        self.o_proj = RowParallelLinear(
            shape.heads * shape.head_dim,
            shape.hidden,
            bias=shape.o_bias,
            quant_config=quant,
            prefix=f"{prefix}.o_proj",
            return_bias=False,
        )
        self.q_norm = Norm(shape.head_dim, eps=shape.eps) if shape.head_norms else None
        self.k_norm = Norm(shape.head_dim, eps=shape.eps) if shape.head_norms else None
        self.rotary_emb = get_rope(shape.head_dim, max_position=shape.max_position, rope_parameters=shape.rope)
        self.attn = Attention(
            self.heads,
            shape.head_dim,
            shape.head_dim**-0.5,
            num_kv_heads=self.kv_heads,
            cache_config=config.cache_config,
            quant_config=quant,
            per_layer_sliding_window=shape.windows[layer],
            prefix=f"{prefix}.attn",
        )
        self.attn.attn_backend = telling(self.attn.attn_backend)
        self._builder: Any = None

    def whole(self, positions: Tensor, z: Tensor) -> Tensor:
        """Attention of all tokens. positions: int64 [T]; z: [T, d], normed -> [T, d]."""
        q = self._norm_heads(self.q_proj(z), self.q_norm)
        k, v = self._kv(z)
        q, k = rotate(self.rotary_emb, positions, q, k)
        return self.o_proj(self.attn(q, k, v))

    def write(self, positions: Tensor, z: Tensor) -> None:
        """Put K and V of all tokens into the cache. z: [T, d], normed."""
        k, v = self._kv(z)
        k, _ = rotate(self.rotary_emb, positions, k)
        shape = (-1, self.kv_heads, self.head_dim)
        unified_kv_cache_update(k.view(shape), v.view(shape), self.attn.layer_name)

    def some(self, running: Pass, z: Tensor, rows: Tensor) -> Tensor:
        """Attention of the tokens `rows`; K and V of all are written.

        z: the normed input of all, [T, d]; rows: int64 [n], rising -> [n, d].
        """
        if len(rows) == len(z):
            return self.whole(running.positions, z)
        self.write(running.positions, z)
        if not len(rows):
            return z[rows]
        positions, z = running.positions[rows], z[rows]
        q = self._norm_heads(self.q_proj(z), self.q_norm)
        q, _ = rotate(self.rotary_emb, positions, q)
        out = torch.empty(len(rows), self.heads, self.head_dim, dtype=z.dtype, device=z.device)
        metadata = self._metadata(positions, running.requests[rows], rows)
        q = q.reshape(-1, self.heads, self.head_dim)
        none = q.new_empty(0, self.kv_heads, self.head_dim)
        self.attn.impl.forward(self.attn, q, none, none, self.attn.kv_cache, metadata, output=out)
        return self.o_proj(out.view(len(rows), -1))

    def _kv(self, z: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.kv_proj(z).chunk(2, dim=-1)
        return self._norm_heads(k, self.k_norm), v.contiguous()

    def _norm_heads(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """x: [n, heads * hd], its heads normed one by one where the family does that; contiguous."""
        x = x.contiguous()
        return x if norm is None else norm(x.view(-1, self.head_dim)).view(x.shape)

    def _metadata(self, positions: Tensor, requests: Tensor, rows: Tensor) -> Any:
        """What the backend must know of a pass in which each of these tokens is a request of its own."""
        name = self.attn.layer_name
        whole: Any = metadata_of(name)
        count = len(rows)
        starts = torch.arange(count + 1, dtype=torch.int32)
        lengths = (positions + 1).to(torch.int32)
        common = CommonAttentionMetadata(
            query_start_loc=starts.to(rows.device),
            query_start_loc_cpu=starts,
            seq_lens=lengths,
            num_reqs=count,
            num_actual_tokens=count,
            max_query_len=1,
            max_seq_len=whole.max_seq_len,
            block_table_tensor=whole.block_table[requests].contiguous(),
            slot_mapping=whole.slot_mapping[rows],
        )
        if self._builder is None:  # vLLM's own choices (block size, instruction set) are made by now
            spec = self.attn.get_kv_cache_spec(self._config)
            make = self.attn.attn_backend.get_builder_cls()
            self._builder = make(spec, [name], self._config, rows.device)
        return self._builder.build(0, common)


@functools.cache
def telling(backend: Any) -> Any:
    """The same attention backend, whose metadata also have what vLLM tells its builder: `is_prefilling`, bool
    [requests], true of those whose prompts are not read yet."""

    class Builder(backend.get_builder_cls()):
        def build(self, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any) -> Any:
            metadata = super().build(common_prefix_len, common_attn_metadata, *args, **kwargs)
            metadata.is_prefilling = common_attn_metadata.is_prefilling
            return metadata

    class Backend(backend):
        @staticmethod
        def get_builder_cls() -> Any:
            return Builder

    return Backend


def metadata_of(name: str) -> Any:
    """The backend's metadata of this pass for the layer called so; None while vLLM measures and warms up."""
    metadata = get_forward_context().attn_metadata
    if isinstance(metadata, list):
        metadata = metadata[0]
    return metadata[name] if isinstance(metadata, dict) else metadata
