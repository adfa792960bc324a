"""One decoder layer in vLLM: attention and MLP for the tokens that run, the adapter for those that do not.

It must equal `core.routed`'s dense reference; the decision itself is `core.gate`'s, on a logit that all ranks share.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tp_group
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear

from depthdial.core.decision import Decision
from depthdial.core.gate import Gate
from depthdial.serve.vllm.attention import RowAttention, Tokens
from depthdial.serve.vllm.depths import DepthLog
from depthdial.serve.vllm.light import Norm, silu_and_mul
from depthdial.serve.vllm.shape import Shape, gate_of, parts_of


class MLP(nn.Module):
    """SiLU(gate(x)) * up(x), down; split over the ranks."""

    def __init__(self, config: VllmConfig, shape: Shape, prefix: str):
        super().__init__()
        more: Any = {"bias": shape.mlp_bias, "quant_config": config.quant_config, "return_bias": False}
        sizes = [shape.intermediate] * 2
        self.gate_up_proj = MergedColumnParallelLinear(shape.hidden, sizes, prefix=f"{prefix}.gate_up_proj", **more)
        self.down_proj = RowParallelLinear(shape.intermediate, shape.hidden, prefix=f"{prefix}.down_proj", **more)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, d] -> [n, d]."""
        return self.down_proj(silu_and_mul(self.gate_up_proj(x)))


class RoutedLayer(nn.Module):
    """A Llama-like layer, routed or not. Routers and adapters are whole on every rank."""

    def __init__(self, config: VllmConfig, shape: Shape, layer: int, log: DepthLog, prefix: str):
        super().__init__()
        self._layer, self._log = layer, log
        self.self_attn = RowAttention(config, shape, layer, f"{prefix}.self_attn")
        self.mlp = MLP(config, shape, f"{prefix}.mlp")
        self.input_layernorm = Norm(shape.hidden, eps=shape.eps)
        self.post_attention_layernorm = Norm(shape.hidden, eps=shape.eps)
        self.parts = parts_of(shape.method, layer, shape.dims) if layer in shape.routed() else nn.ModuleDict()
        self.gate = gate_of(shape.method, self.parts, layer) if len(self.parts) else None
        self.folded: Tensor | None = None
        """The router's two maps as one, made in the first pass after weights were loaded."""

    def forward(self, positions: Tensor, x: Tensor, tokens: Tokens | None) -> Tensor:
        """x: the residual stream, [T, d] -> [T, d]. tokens: None while vLLM warms up; then all of them run."""
        z = self.input_layernorm(x)
        if self.gate is None or tokens is None or tokens.offsets is None:
            x = x + self.self_attn.whole(positions, z)
            return x + self.mlp(self.post_attention_layernorm(x))
        decision = self._decide(self.gate, z, tokens.offsets)
        keep = decision.keep[0]
        self._log.decided(self._layer, keep)
        kept, skipped = keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]
        if not len(skipped):
            x = x + self.self_attn.whole(positions, z)
            return self._add(x, self.mlp(self.post_attention_layernorm(x)), decision.run[0])
        self.self_attn.write(positions, z)
        y = x.clone()
        if len(kept):
            h = x[kept] + self.self_attn.rows(tokens, z[kept], kept)
            update = self.mlp(self.post_attention_layernorm(h))
            y.index_copy_(0, kept, self._add(h, update, decision.run[0, kept]))
        if self.gate.adapter is not None:
            before = x[skipped]
            update = self.gate.adapter(self.post_attention_layernorm(before))
            y.index_copy_(0, skipped, self._add(before, update, decision.skip[0, skipped]))
        return y

    def _decide(self, gate: Gate, z: Tensor, offsets: Tensor) -> Decision:
        """The MLP's decision, whose `keep` is attention's, too, [1, T]: the same on every rank, or they would wait for
        each other for ever. offsets: fp32 [1, T]."""
        assert gate.router is not None
        if self.folded is None:  # weights are there by now
            self.folded = gate.router.folded
        logit = gate.router(z[None], self.folded)
        group = get_tp_group()
        if group.world_size > 1:
            logit = group.broadcast(logit.contiguous(), src=0)
        return gate.of(logit, offsets)[1]

    def _add(self, x: Tensor, update: Tensor, weight: Tensor) -> Tensor:
        """x + weight * update. x, update: [n, d]; weight: float [n], all 1 where the gate is hard."""
        assert self.gate is not None
        return x + (update if self.gate.weights == "hard" else update * weight[:, None].to(x.dtype))
