"""The causal LM that vLLM runs for every exported model: embedding, routed layers, head, and the names of the weights.

It is eager: how many tokens run a layer changes from pass to pass.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.platforms import current_platform

from depthdial.core.tokens import Tokens, Trace
from depthdial.serve.vllm.attention import Pass, metadata_of
from depthdial.serve.vllm.depths import DepthLog
from depthdial.serve.vllm.layer import RoutedLayer
from depthdial.serve.vllm.light import Norm
from depthdial.serve.vllm.shape import ModelShape

log = init_logger(f"vllm.{__name__}")

PACKED = {"gate_up_proj": ["gate_proj", "up_proj"], "kv_proj": ["k_proj", "v_proj"]}
"""Projections that are one matrix here and several on disk."""
_PART = re.compile(r"^(.*\.layers\.\d+)\.(?:(self_attn|mlp)\.)?parts\.(.*)$")
_UNIT = {"self_attn": "attn", "mlp": "mlp", None: "layer"}


class RoutedModel(nn.Module):
    """Everything but the head."""

    def __init__(self, config: VllmConfig, shape: ModelShape, prefix: str):
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(
            shape.vocabulary, shape.hidden, quant_config=config.quant_config, prefix=f"{prefix}.embed_tokens"
        )
        self.layers = nn.ModuleList(
            RoutedLayer(config, shape, layer, f"{prefix}.layers.{layer}") for layer in range(len(shape.windows))
        )
        self.norm = Norm(shape.hidden, eps=shape.eps)


class RoutedForCausalLM(nn.Module):
    """vLLM's interface of a text-generation model. Raises ValueError, before weights are read, for what cannot run."""

    packed_modules_mapping = PACKED
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={f".{name}": (f".{one}", i) for one, of in PACKED.items() for i, name in enumerate(of)}
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        if not current_platform.is_cpu():
            if not vllm_config.model_config.enforce_eager:
                raise ValueError("the number of tokens that run a layer varies, and a CUDA graph's does not; "
                                 "pass --enforce-eager")  # fmt: skip
            log.warning("depthdial's models have been verified on vLLM's CPU backend only, not on this one")
        self.config = vllm_config.model_config.hf_config
        shape = ModelShape.of(self.config)
        self.log, self.program = DepthLog(), shape.program
        start = f"{prefix}." if prefix else ""
        self.model = RoutedModel(vllm_config, shape, f"{start}model")
        self.lm_head = ParallelLMHead(
            shape.vocabulary, shape.hidden, quant_config=vllm_config.quant_config, prefix=f"{start}lm_head"
        )
        if shape.tied:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(shape.vocabulary)
        self._first = f"{start}model.layers.0.self_attn.attn"
        self.offsets = torch.tensor([shape.prompt_offset, shape.offset], dtype=torch.float32)
        """Of tokens that are read and of those that are written. These stay: a budget is not held per text here."""
        log.info("depthdial: %s, offsets %.3f (prompts), %.3f", type(shape.method).__name__, *self.offsets.tolist())

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """input_ids: int [T] -> [T, d]."""
        return self.model.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """One pass over the tokens of several requests. input_ids, positions: int [T] -> [T, d]."""
        assert intermediate_tensors is None, "no pipeline parallelism: vLLM refuses it for this model"
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_input_ids(input_ids)
        x, running = inputs_embeds, self._pass(input_ids, positions)
        for layer in self.model.layers:
            x = layer(x, running, positions)
        if running is not None:
            self.log.record(positions, running.requests, running.trace)
        return self.model.norm(x)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """hidden_states: [n, d] -> [n, V]; None on ranks that do not gather."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Weights under the names of the exported folder; gives the names of those that were filled."""
        named = ((stock_name(name), weight) for name, weight in weights)
        return AutoWeightsLoader(self).load_weights(named, mapper=self.hf_to_vllm_mapper)

    def _pass(self, ids: Tensor | None, positions: Tensor) -> Pass | None:
        metadata = metadata_of(self._first)
        if metadata is None:
            return None
        starts = metadata.query_start_loc.to(torch.int64)
        counts = starts[1:] - starts[:-1]
        requests = torch.repeat_interleave(torch.arange(len(counts), device=positions.device), counts)
        assert len(requests) == len(positions), "a padded pass: pass --enforce-eager"
        offsets = self._dials(metadata.is_prefilling, requests)
        tokens = None if offsets is None else Tokens(offsets, positions, None if ids is None else ids.long())
        return Pass(positions, requests, tokens, Trace(self.program))

    def _dials(self, reads: Tensor | None, requests: Tensor) -> Tensor | None:
        """The dial of each token, fp32 [T]; None: `inf` for all. reads: bool [requests]; requests: int64 [T]."""
        assert reads is not None, "vLLM tells which requests still read their prompts"
        of_request = torch.where(reads.cpu(), *self.offsets)
        return None if bool((of_request == torch.inf).all()) else of_request.to(requests.device)[requests]


def stock_name(name: str) -> str:
    """A tensor's name as this model has it: what routing wraps around a unit is left out, its parts stand by unit."""
    name = name.replace(".unit.", ".")
    if (match := _PART.match(name)) is None:
        return name
    layer, unit, rest = match.groups()
    return f"{layer}.parts.{_UNIT[unit]}.{rest}"
