"""A fresh model whose layers are routed from the first step: from a line such as "12x4@256" to a Hugging Face model.

Base, routers and everything else are one model in one folder, of a type of its own (`own`). Equal cost is next door
(`equal_flops`).
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from depthdial.core.method import Method
from depthdial.methods import name_of
from depthdial.models.convert import base_weights, layers_of
from depthdial.models.own import own_types

_SPEC = re.compile(r"(?P<layers>\d+)x(?P<heads>\d+)@(?P<width>\d+)(?P<more>(,[a-z]+=[^,]+)*)")
_FORM = "LAYERSxHEADS@WIDTH, for example 12x4@256, and behind it ,kv=2 ,ffn=4x (or a width) ,vocab=4096 ,context=512"
FFN_STEP = 8
"""MLP widths are multiples of this."""


@dataclass(frozen=True)
class Spec:
    """The size of a Llama. Raises ValueError, with the remedy, for sizes that do not fit together."""

    layers: int
    heads: int
    width: int
    kv_heads: int | None = None
    """Heads of K and V; None: as many as of Q."""
    ffn: int | None = None
    """Width of the MLP; None: 8/3 of the model's, so that a gated MLP costs what a plain one of four times would."""
    vocabulary: int = 4096
    context: int = 512

    def __post_init__(self):
        sizes = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        if small := [f"{name} {size}" for name, size in sizes.items() if size < 1]:
            raise ValueError(f"size {self}: {small[0]} is below 1; write {_FORM}")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"size {self}: {self.heads} heads do not divide the width {self.width} into even sizes")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"size {self}: {self.kv_heads} heads of K and V do not divide {self.heads} heads")

    @classmethod
    def parse(cls, text: str, **others: Any) -> Spec:
        """A spec from LAYERSxHEADS@WIDTH[,kv=K][,ffn=Mx|W][,vocab=V][,context=C]; `others` are fields not in the text.

        Raises ValueError for a text that is not one.
        """
        if (found := _SPEC.fullmatch(text.replace(" ", ""))) is None:
            raise ValueError(f"size {text!r} cannot be read; write {_FORM}")
        width = int(found["width"])
        fields: dict[str, Any] = {"layers": int(found["layers"]), "heads": int(found["heads"]), "width": width}
        for pair in found["more"].split(",")[1:]:
            name, value = pair.split("=")
            key = {"kv": "kv_heads", "ffn": "ffn", "vocab": "vocabulary", "context": "context"}.get(name)
            if key is None or key in fields or re.fullmatch(r"\d+" if key != "ffn" else r"\d+|[\d.]+x", value) is None:
                raise ValueError(f"size {text!r}: {pair!r} cannot be read; write {_FORM}")
            fields[key] = _stepped(float(value[:-1]) * width) if value.endswith("x") else int(value)
        return cls(**{**others, **fields})

    def __str__(self) -> str:
        more = {"kv": self.kv_heads, "ffn": self.ffn, "vocab": self.vocabulary, "context": self.context}
        text = "".join(f",{name}={value}" for name, value in more.items() if value is not None)
        return f"{self.layers}x{self.heads}@{self.width}{text}"

    @property
    def intermediate(self) -> int:
        """Width of the MLP."""
        return self.ffn or _stepped(self.width * 8 / 3)

    def config(self, method: Method, **others: Any) -> LlamaConfig:
        """The configuration of a model of this size routed by `method`. others: further fields of `LlamaConfig`."""
        kind: Any = own_types("llama").config
        return kind(
            method={"name": name_of(method), **dataclasses.asdict(method)},  # pyright: ignore[reportArgumentType]
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            max_position_embeddings=self.context,
            rms_norm_eps=1e-5,
            **{"tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None, **others},
        )


def fresh(
    spec: Spec, method: Method, tokenizer: PreTrainedTokenizerBase | None = None, seed: int = 0, **others: Any
) -> PreTrainedModel:
    """A random fp32 model of a size, routed by `method`, base and all trainable; the same for the same seed.

    tokenizer: gives the vocabulary's size (the spec's is then not looked at) and the special tokens. others: further
    fields of `LlamaConfig`. Raises ValueError for layers that the method cannot route.
    """
    if tokenizer is not None:
        spec = dataclasses.replace(spec, vocabulary=len(tokenizer))
        special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        others = {**special, **others}
    config = spec.config(method, **others)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind: Any = own_types("llama").model
        model = kind(config).float()
    _calm(model)
    return model


@torch.no_grad()
def _calm(model: PreTrainedModel) -> None:
    """Scale what each half layer adds to the residual stream by 1 / sqrt(2 L), as GPT-2 does (Radford et al., 2019).

    transformers leaves that out. At its deviation of 0.02, what L layers add then drowns a token's own embedding, the
    more so the deeper a model is: an unfair handicap beside shallow ones (docs/log.md).
    """
    for name, weight in base_weights(model).items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_((2 * len(layers_of(model))) ** -0.5)


def _stepped(width: float) -> int:
    return max(FFN_STEP, round(width / FFN_STEP) * FFN_STEP)
