"""FSDP2 through the Trainer: what is one group of weights, and the CPU, on which accelerate would copy instead."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import PreTrainedModel, Trainer

from depthdial.train import processes


def sharding(model: PreTrainedModel, method: str) -> dict[str, Any]:
    """TrainingArguments for FSDP2, each routed unit a group of weights. ValueError where it cannot be."""
    if processes.world() == 1:
        raise ValueError("--fsdp shards a model over several processes; start them with torchrun, or leave it out")
    if any(weight.ndim == 0 for weight in model.parameters()):
        raise ValueError(f"method {method!r} has single-number weights, which FSDP2 cannot shard; leave --fsdp out")
    group = "LlamaDecoderLayer"
    return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": [group]}}


def shard_on_cpu(trainer: Trainer) -> None:
    """Have a Trainer that was asked for FSDP2 shard on a CPU, too. accelerate takes the request there, and copies the
    model to each process (DDP) without a word; torch shards over gloo as over anything."""
    plugin_args: dict[str, Any] | None = trainer.args.fsdp_plugin_args
    if plugin_args is None or trainer.is_fsdp_enabled:
        return
    # what accelerate's own state does where there is a GPU; the shared state refills it from the partial one
    PartialState().distributed_type = trainer.accelerator.state.distributed_type = DistributedType.FSDP
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**plugin_args)
    trainer.is_fsdp_enabled = True
