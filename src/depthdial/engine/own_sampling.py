"""How a model draws where nobody says: what its own generation_config asks for, as Hugging Face reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from depthdial.engine.sampling import SamplingParams


class OwnSampling:
    """The temperature, top_p and top_k of a model. config: a `GenerationConfig`; without `do_sample` it is greedy.

    Raises ValueError, one line, for a file whose values make no sense.
    """

    def __init__(self, config: Any):
        drawn = bool(config.do_sample)
        given = {
            "temperature": (1.0 if config.temperature is None else config.temperature) if drawn else 0.0,
            "top_p": 1.0 if config.top_p is None else config.top_p,
            "top_k": 0 if config.top_k is None else config.top_k,
        }
        try:
            self.params = SamplingParams(**given)
        except ValueError as error:
            raise ValueError(f"the model's generation_config.json: {error}") from None

    def fill(self, params: SamplingParams) -> SamplingParams:
        """The parameters with the model's own where they say nothing."""
        own = self.params
        return replace(
            params,
            temperature=own.temperature if params.temperature is None else params.temperature,
            top_p=own.top_p if params.top_p is None else params.top_p,
            top_k=own.top_k if params.top_k is None else params.top_k,
        )
