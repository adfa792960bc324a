"""A Llama's forward pass under a program, token by token, from nothing but weights and the method's own `decide`: what
the reference must equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import rotate_half

from depthdial.core.decision import Decision
from depthdial.core.method import Seen
from depthdial.core.program import END
from depthdial.core.tokens import Tokens, Trace
from depthdial.models.converted import Converted, converted_of


@torch.no_grad()
def by_hand(model: Any, ids: Tensor, offset: float) -> Tensor:
    """Logits [T, V] of one row. ids: int64 [T]."""
    converted, decoder = converted_of(model), model.get_decoder()
    program, method, count = converted.program, converted.method, len(ids)
    position = torch.arange(count)
    tokens = Tokens(torch.full((count,), offset), position, id=ids, shape=(1, count))
    trace, x, at = Trace(program), decoder.embed_tokens(ids), torch.zeros(count, dtype=torch.long)
    turns = tuple(each[0] for each in decoder.rotary_emb(x[None], position[None]))
    for s, step in enumerate(program.steps):
        block, here = block_of(converted, decoder, step.block), at == s
        z = (block.post_attention_layernorm if step.unit == "mlp" else block.input_layernorm)(x)
        decision = Decision.hard(here)
        if step.routed != "no":
            parts = converted.routed[s].parts
            logits = model.lm_head(decoder.norm(x)).float()[:, : step.head_rows] if step.shows else None
            decision = method.decide(parts, Seen(z, logits), s, tokens, trace)
            decision = decision.within(here if step.base else here & ~tokens.full)
            trace.decisions[s] = decision
        trace.here[s], run, skip = here, decision.run[:, None], decision.skip[:, None]
        if step.unit == "mlp":
            update = fed_forward(block.mlp, z)
        else:
            update = attended(block.self_attn, z, turns, decision.keep | (step.absent == "project"))
            if step.unit == "layer":
                update = update + fed_forward(block.mlp, block.post_attention_layernorm(x + update))
        bypass = None if step.routed == "no" else method.bypass(converted.routed[s].parts, z, s)
        changed = x + run * update + (0 if bypass is None else skip * bypass)
        x = torch.where(here[:, None], changed, x)
        onward = [min(program.after(s, ran), END) for ran in (True, False)]
        at = torch.where(here, torch.where(decision.keep, *onward), at)
    assert (at == END).all()
    return model.lm_head(decoder.norm(x))


def block_of(converted: Converted, decoder: Any, block: int) -> Any:
    return decoder.layers[block] if block >= 0 else converted.own[-1 - block]


def fed_forward(mlp: Any, z: Tensor) -> Tensor:
    """Of modules below those that the conversion has hooks on."""
    return mlp.down_proj(nn.functional.silu(mlp.gate_proj(z)) * mlp.up_proj(z))


def attended(attn: nn.Module, z: Tensor, turns: tuple[Tensor, ...], leaves: Tensor) -> Tensor:
    """Attention's output of each token, [T, d], over itself and the earlier ones that leave K and V (bool [T])."""
    attn_: Any = attn
    cos, sin = (each[:, None] for each in turns)
    heads = (len(z), -1, attn_.head_dim)
    q, k, v = (project(z).view(heads) for project in (attn_.q_proj, attn_.k_proj, attn_.v_proj))
    q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
    k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
    rows = []
    for t in range(len(z)):
        seen = [u for u in range(t + 1) if u == t or leaves[u]]
        scores = torch.einsum("hd,uhd->hu", q[t], k[seen]) * attn_.head_dim**-0.5
        rows.append(torch.einsum("hu,uhd->hd", scores.softmax(-1), v[seen]).flatten())
    return attn_.o_proj(torch.stack(rows))
