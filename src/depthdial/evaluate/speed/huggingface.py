"""Hugging Face's own `generate`: with default settings, and compiled with a static cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from depthdial.evaluate.speed.subjects import Regime, SpeedSubject, TimedRun


class Stamps(BaseStreamer):
    """Notes when each token came; of any batch."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(self._clock())

    def end(self) -> None:
        """Nothing is to be flushed."""


class HuggingFace(SpeedSubject):
    """model: a base of its own, whose end tokens this forgets. compiled: static cache and torch.compile, for decoding
    alone, since each length of prompt would be compiled anew."""

    kind = "baseline"

    def __init__(
        self, model: Any, precision: str, compiled: bool = False, clock: Callable[[], float] = time.perf_counter
    ):
        self.name = "Hugging Face, compiled, static cache" if compiled else "Hugging Face generate"
        self.precision, self.compiled, self.optional = precision, compiled, compiled
        self.warmups = 2 if compiled else 1
        self._model, self._clock = model, clock
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0

    def takes(self, regime: Regime) -> bool:
        return not self.compiled or regime.kind == "decode"

    @torch.no_grad()
    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> TimedRun:
        longest = max(map(len, prompts))
        pads = [longest - len(prompt) for prompt in prompts]
        device = self._model.device
        ids = torch.tensor([[0] * pad + list(p) for pad, p in zip(pads, prompts, strict=True)], device=device)
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads], device=device)
        config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens)
        if self.compiled:
            config.cache_implementation = "static"
            config.compile_config = CompileConfig(mode="default")
            vars(config.compile_config)["_compile_all_devices"] = True  # else transformers leaves a CPU uncompiled
        stamps = Stamps(self._clock)
        start = self._clock()
        self._model.generate(ids, attention_mask=mask, generation_config=config, streamer=stamps)
        times = stamps.times[1:]  # the prompt comes first
        steps = len(times) - 1
        return TimedRun(times[0] - start, times[-1] - times[0], steps * len(prompts), steps)
