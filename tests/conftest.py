"""Tiny random models and a tiny tokenizer, built in code: no test needs a network or a download."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# Triton reads it when it is first imported, which transformers does. On a GPU: TRITON_INTERPRET=0.
os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from depthdial.core.dial import Curve
from depthdial.core.method import Method
from depthdial.methods import method_named
from depthdial.models.checkpoint import Plugin, parts_of, save
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of
from depthdial.models.families import FAMILIES
from depthdial.models.fingerprint import fingerprint

settings.register_profile("timeless", deadline=None)  # no test depends on time
settings.load_profile("timeless")

VOCABULARY = 300
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,  # large enough for decided, varied logits
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
AS_MADE = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
"""Families whose tiny models have norms of 1 and biases of 0; others are as after training."""
ModelMaker = Callable[..., PreTrainedModel]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws without a seed of its own is the same every time."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_model() -> ModelMaker:
    """`tiny_model(family, seed=0, **config)`: a fresh random fp32 model of 6 layers, in inference mode."""

    def make(family: str = "llama", seed: int = 0, **config) -> PreTrainedModel:
        kind = FAMILIES[family]
        settings = kind.example(**{**SIZES, **kind.tiny, **config})
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
            for weight in model.parameters() if family not in AS_MADE else ():
                if weight.ndim == 1:
                    weight.data += torch.randn_like(weight) * 0.2
            return model
        finally:
            torch.set_rng_state(state)

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 tokens with the special tokens and the chat template of ChatML."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog and the other foxes"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )


@pytest.fixture(scope="session")
def tiny_folder(tiny_model: ModelMaker, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory) -> Path:
    """A folder with a tiny Llama and its tokenizer, as Hugging Face saves them."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adaptive() -> Callable[..., PreTrainedModel]:
    """`adaptive(model, **fields)`: by FlexiDepth, with routers that disagree and adapters that do something."""

    def make(model: PreTrainedModel, **fields) -> PreTrainedModel:
        fields = {"first": 2, "router_ratio": 4, "adapter_ratio": 4, "start": 0.0, **fields}
        model = convert(model, method_named("flexidepth", fields))
        generator = torch.Generator().manual_seed(1)
        for tensor in parts_of(model).values():
            if tensor.ndim == 2:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_plugin(tiny_model: ModelMaker, adaptive: Callable[..., PreTrainedModel], tmp_path_factory) -> Path:
    """A plug-in for the model of `tiny_folder`, with a made-up curve from 0.7 to 0.95 and 0.8 recommended."""
    model = adaptive(tiny_model("llama"), weights="hard")
    curve = Curve((-2.0, 0.0, 2.0), (0.7, 0.8, 0.95), (0.5, 0.2, 0.05))
    plugin = Plugin(
        "tiny", converted_of(model).method, fingerprint(model), {"text": curve, "generated": curve}, recommended=0.8
    )
    return save(model, tmp_path_factory.mktemp("plugins") / "tiny", plugin)


@pytest.fixture(scope="session")
def adapted() -> Callable[..., PreTrainedModel]:
    """`adapted(model, method)`: converted, with random weights in every part, so that routers disagree and adapters do
    something."""

    def make(model: PreTrainedModel, method: Method, seed: int = 1) -> PreTrainedModel:
        generator = torch.Generator().manual_seed(seed)
        for tensor in parts_of(convert(model, method)).values():
            if tensor.ndim == 2:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
        return model

    return make


@pytest.fixture(scope="session")
def packed() -> Callable[..., dict[str, torch.Tensor]]:
    """`packed(rows, length)`: a batch as training makes it, int64 [rows, length] each: two documents a row, whose
    positions start at 0, some of their tokens no targets."""

    def make(rows: int = 4, length: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
        cuts = torch.randint(2, length - 2, (rows, 1), generator=generator)
        places = torch.arange(length).expand(rows, length)
        positions = torch.where(places < cuts, places, places - cuts)
        silent = (torch.rand(rows, length, generator=generator) < 0.2) | (positions == 0)
        return {"input_ids": ids, "labels": ids.masked_fill(silent, -100), "position_ids": positions}

    return make
