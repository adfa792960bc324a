"""The metadata of a GGUF file, asked for key by key, so that what nobody asked for can be named in the end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gguf.constants

from depthdial.models.foreign import shown
from depthdial.models.gguf_file import Damaged, Unsupported

_DESCRIBES = ("general.", "quantize.", "split.", "imatrix.")
"""Beginnings of keys about the file or its making: nothing is computed by them."""
_HARMLESS = frozenset(
    f"tokenizer.ggml.{name}_token_id"
    # words for tokens that the templates and the user write themselves
    for name in ("prefix", "suffix", "middle", "seperator", "separator", "mask", "cls", "fim_pre", "fim_suf", "fim_mid",
                 "fim_pad", "fim_rep", "fim_sep", "nl")
)  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.layer_norm_epsilon": (...,),  # of a norm with a mean; these families have none
    "attention.max_alibi_bias": (0,),
    "attention.shared_kv_layers": (0,),
    "attn_logit_softcapping": (0,),
    "decoder_start_token_id": (...,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.finetuned": (...,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "tensor_data_layout": (...,),
    "use_parallel_residual": (False,),
}
"""Hyper-parameters that change nothing at these values (... is any), by what stands behind the architecture."""


def _templates(of: type) -> Iterator[str]:
    for value in vars(of).values():
        if isinstance(value, str) and value.startswith("{arch}."):
            yield value.removeprefix("{arch}.")
        elif isinstance(value, type):
            yield from _templates(value)


HYPERPARAMETERS = frozenset(_templates(gguf.constants.Keys))
"""All that the format gives a name to, over all architectures."""


class Keys:
    """The metadata of one file. Each read is noted; `unread` names the rest."""

    def __init__(self, metadata: dict[str, Any]):
        self._metadata, self._read = metadata, set()
        self.arch = self.text("general.architecture")

    def get(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        return self._metadata.get(key, default)

    def text(self, key: str, default: str | None = None) -> str:
        """Raises Damaged where the key is missing or holds something else."""
        found = self.get(key, default)
        if not isinstance(found, str):
            raise Damaged(f"{key} is {_said(found)}, not a text")
        return found

    def whole(self, name: str, default: int | None = None) -> int:
        """A size of the architecture, above 0. A list of one value for all layers is that value."""
        key = f"{self.arch}.{name}"
        found = self.get(key, default)
        if isinstance(found, list) and len(set(found)) == 1:
            found = found[0]
        if isinstance(found, list):
            raise Unsupported(f"{key} differs from layer to layer")
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise Damaged(f"{key} is {_said(found)}, not a whole number above 0")
        return found

    def number(self, name: str, default: float | None = None) -> float:
        """A number of the architecture, finite and above 0."""
        key = f"{self.arch}.{name}"
        found = self.get(key, default)
        if isinstance(found, bool) or not isinstance(found, int | float) or not (0 < found < math.inf):
            raise Damaged(f"{key} is {_said(found)}, not a number above 0")
        return float(found)

    def flag(self, key: str, default: bool) -> bool:
        found = self.get(key, default)
        if not isinstance(found, bool):
            raise Damaged(f"{key} is {_said(found)}, not true or false")
        return found

    def unread(self) -> list[str]:
        """The keys that were neither read nor are known to change nothing.

        Raises Unsupported, naming it, for a hyper-parameter among them: the model would be another one without it.
        """
        left = []
        for key, value in self._metadata.items():
            if key in self._read or key in _HARMLESS or key.startswith(_DESCRIBES):
                continue
            arch, _, name = key.partition(".")
            if arch == self.arch and name in _NEUTRAL and (... in _NEUTRAL[name] or value in _NEUTRAL[name]):
                continue
            if arch == self.arch and (name in HYPERPARAMETERS or name in _NEUTRAL):
                raise Unsupported(f"{shown(key)} is {_said(value)}, which is not supported for {shown(self.arch)}")
            left.append(key)
        return left


def _said(value: object) -> str:
    if value is None:
        return "missing"
    return f"a list of {len(value)}" if isinstance(value, list) else shown(repr(value))
