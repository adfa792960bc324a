"""What the engine did, counted where it happens: rows and layers that ran, bytes that were read."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Stats:
    """Sums over all passes since the engine was made."""

    layers: int
    passes: int = 0
    tokens: int = 0
    """Tokens that ran, of prompts and of continuations."""
    native_tokens: int = 0
    """Those of them that native kernels ran."""
    cached_tokens: int = 0
    """Tokens that did not run, because an equal beginning was in the cache."""
    preemptions: int = 0
    """How often a row lost its pages and had to be computed again."""
    rows: np.ndarray = field(init=False)
    """Tokens for which each layer ran, or a part of it."""
    attn_rows: np.ndarray = field(init=False)
    """Tokens for which each layer's attention ran (Q, the keys, O)."""
    mlp_rows: np.ndarray = field(init=False)
    adapter_rows: np.ndarray = field(init=False)
    """Tokens whose bypass ran, by layer."""
    kv_rows: np.ndarray = field(init=False)
    """Tokens whose K and V were computed, by layer."""
    padded_rows: int = 0
    """Rows computed for nothing, by rounding row counts up."""
    layers_run: int = 0
    """Layers run for at least one token of a pass, summed over passes."""
    weight_bytes: int = 0
    """Bytes of weights read, once for each pass that used them."""
    kv_bytes: int = 0
    """Bytes of K and V read by attention."""

    def __post_init__(self):
        for name in ("rows", "attn_rows", "mlp_rows", "adapter_rows", "kv_rows"):
            setattr(self, name, np.zeros(self.layers, dtype=np.int64))

    @property
    def rows_run(self) -> int:
        """Tokens times layers that ran for them: the sum of all keeps."""
        return int(self.rows.sum())
