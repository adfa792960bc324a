"""How coming passes of a model run: the dial, which tokens are read, and what training says. Replaced as a whole, never
changed in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from depthdial.core.tokens import Tokens


@dataclass(frozen=True)
class Settings:
    """Of the passes to come over rows [B, T]."""

    offset: float | Tensor = 0.0
    """The dial: added to every router's logit; one number, one per row, float [B], or one per token, float [B, T].
    `inf` is the untouched base. Where a batch holds each row several times, side by side, as `generate` with beams
    makes it, each time has its offset."""
    read: Tensor | None = None
    """bool [B, T]: which tokens are read, as a prompt is, and not written (or scored as if they had been); None: none
    of them. `generate` knows by itself."""
    read_offset: float | None = None
    """The dial of tokens that are read; None: theirs is `offset`, too (the form of the papers)."""
    prompt: Tensor | None = None
    """int64 [B]: the position at which each row's answer begins, where the passes to come see a part of the row; None:
    as `read` says."""
    training: bool | None = None
    """None: as the module that runs them says, `train()` or `eval()`."""
    progress: float = 0.0
    """How far training is, 0 to 1."""
    key: Tensor | None = None
    """int64 [B]: of each row's random choices; only in training. None: drawn for each pass by torch's generator."""
    density: Mapping[int, Tensor] | None = None
    """See `Tokens.density`."""

    def tokens(
        self, position: Tensor, ids: Tensor | None, real: Tensor | None, shape: tuple[int, int], device: torch.device
    ) -> Tokens:
        """The tokens of a pass over B rows of T. position: int64 [B or 1, T]; ids: int64 [B, T]; real: bool [B, T].

        ValueError where `offset` or `read` is for other tokens.
        """

        def flat(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device).expand(shape).reshape(-1)

        position = position.to(device).expand(shape)
        key = None if self.key is None else self.key[:, None]
        return Tokens(
            offset=self._offsets(shape, device).reshape(-1),
            position=position.reshape(-1),
            id=flat(ids),
            prompt=flat(self._prompts(position)),
            real=flat(real),
            key=flat(key),
            shape=shape,
            training=bool(self.training),
            progress=self.progress,
            density=self.density,
        )

    def _prompts(self, position: Tensor) -> Tensor | None:
        """int64 [B, T] or [B, 1]: where the written stretch that a token belongs to begins; of one that is read, the
        next place."""
        if self.read is not None:
            return torch.where(self.read.to(position.device), position + 1, 0).cummax(1).values
        if self.prompt is None:
            return None
        return self.prompt.repeat_interleave(position.shape[0] // len(self.prompt), 0)[:, None]

    def _offsets(self, shape: tuple[int, int], device: torch.device) -> Tensor:
        """fp32 [B, T]. ValueError where `offset` has another number of rows and not each of them the same number of
        times, and where it or `read` has another number of tokens."""
        (rows, length), offset = shape, torch.as_tensor(self.offset, dtype=torch.float32, device=device)
        if offset.ndim:
            per_token = offset.ndim == 2 and offset.shape[1] == length
            if not (offset.ndim == 1 or per_token) or not len(offset) or rows % len(offset):
                raise ValueError(
                    f"the dial's offset has shape {list(offset.shape)}, the batch {rows} rows of {length} tokens; give "
                    "one number, one per row, or one per token"
                )
            offset = offset.repeat_interleave(rows // len(offset), 0)
            offset = offset if per_token else offset[:, None]
        offset = offset.expand(shape)
        if self.read is None:
            return offset
        if self.read.shape != shape:
            raise ValueError(
                f"`read` has shape {list(self.read.shape)}, the batch {rows} rows of {length} tokens; say of each "
                "token whether it is read, or set it to None"
            )
        return offset if self.read_offset is None else torch.where(self.read.to(device), self.read_offset, offset)

    @property
    def dense(self) -> bool:
        """Do all passes run the untouched base, whatever their tokens?"""
        reads_less = self.read is not None and self.read_offset not in (None, math.inf)
        return not isinstance(self.offset, Tensor) and self.offset == math.inf and not reads_less
