"""One decoder layer in vLLM: attention and MLP for the tokens that run, the adapter for those that do not.

It must equal `core.routed`'s dense reference; the decision itself is the method's.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tp_group
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear

from depthdial.core.decision import Decision
from depthdial.core.method import Seen
from depthdial.serve.vllm.attention import Pass, RowAttention
from depthdial.serve.vllm.light import Norm, silu_and_mul
from depthdial.serve.vllm.shape import ModelShape, layer_parts


class MLP(nn.Module):
    """SiLU(gate(x)) * up(x), down; split over the ranks."""

    def __init__(self, config: VllmConfig, shape: ModelShape, prefix: str):
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

    def __init__(self, config: VllmConfig, shape: ModelShape, layer: int, prefix: str):
        super().__init__()
        self.method, self.program, self.steps = shape.method, shape.program, shape.program.visits[layer].steps
        self.self_attn = RowAttention(config, shape, layer, f"{prefix}.self_attn")
        self.mlp = MLP(config, shape, f"{prefix}.mlp")
        self.input_layernorm = Norm(shape.hidden, eps=shape.eps)
        self.post_attention_layernorm = Norm(shape.hidden, eps=shape.eps)
        self.parts = layer_parts(shape, layer)

    def forward(self, x: Tensor, running: Pass | None, positions: Tensor) -> Tensor:
        """x: the residual stream, [T, d] -> [T, d]. running: None while vLLM warms up; then all tokens run."""
        z, first = self.input_layernorm(x), self.steps[0]
        if not len(self.parts) or running is None or running.tokens is None:
            x = x + self.self_attn.whole(positions, z)
            return x + self.mlp(self.post_attention_layernorm(x))
        decision = self._decision(first, z, running)
        if self.program.steps[first].unit == "layer":
            rows = decision.keep.nonzero()[:, 0]
            h = x[rows] + self.self_attn.some(running, z, rows)
            h = h + self.mlp(self.post_attention_layernorm(h)) if len(rows) else h
            h = torch.lerp(x[rows], h, decision.run[rows, None].to(x.dtype))
            return self._add_bypass(first, x.index_copy(0, rows, h), z, decision)
        x = self._add_unit(first, x, z, decision, lambda rows: self.self_attn.some(running, z, rows))
        u, second = self.post_attention_layernorm(x), self.steps[1]
        decision = self._decision(second, u, running)
        return self._add_unit(second, x, u, decision, lambda rows: self.mlp(u[rows]) if len(rows) else u[rows])

    def _add_unit(self, s: int, x: Tensor, z: Tensor, decision: Decision, unit: Callable[[Tensor], Tensor]) -> Tensor:
        """x after attention or MLP, [T, d]. z: its normed input; unit: what it adds to some tokens, [n] -> [n, d]."""
        rows = decision.keep.nonzero()[:, 0]
        update = decision.run[rows, None].to(x.dtype) * unit(rows)
        return self._add_bypass(s, x.index_add(0, rows, update), z, decision)

    def _add_bypass(self, s: int, x: Tensor, z: Tensor, decision: Decision) -> Tensor:
        """x with what the tokens that are skipped get instead, [T, d]. z: the step's normed input."""
        skipped = (~decision.keep).nonzero()[:, 0]
        bypass = self.method.bypass(self._parts(s), z[skipped], s) if len(skipped) else None
        return x if bypass is None else x.index_add(0, skipped, decision.skip[skipped, None].to(x.dtype) * bypass)

    def _decision(self, s: int, z: Tensor, running: Pass) -> Decision:
        """The same on every rank, or they would wait for each other for ever. z: [T, d], normed."""
        assert running.tokens is not None
        if self.program.steps[s].routed == "no":
            decision = Decision.hard(torch.ones(len(z), dtype=torch.bool, device=z.device))
        else:
            decision = self.method.decide(self._parts(s), Seen(z), s, running.tokens, running.trace)
            decision = _broadcast(decision)
        running.trace.decisions[s] = decision
        return decision

    def _parts(self, s: int) -> nn.ModuleDict:
        parts = self.parts[self.program.steps[s].unit]
        assert isinstance(parts, nn.ModuleDict)
        return parts


def _broadcast(decision: Decision) -> Decision:
    """The first rank's."""
    group = get_tp_group()
    if group.world_size == 1:
        return decision
    score = decision.run if decision.score is None else decision.score
    fields = torch.stack([decision.keep.float(), decision.run.float(), decision.skip.float(), score.float()])
    keep, run, skip, score = group.broadcast(fields, src=0)
    return Decision(keep > 0, run, skip, score)
