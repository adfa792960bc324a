"""A local model folder, looked at before anything heavy is done with it: what is missing, in the way, or left out."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthdial.models.foreign import shown

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTERS = "adapter_config.json", ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_POINTERS = (
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
    b"/annex/objects/",
)
_PAGES = (b"<!doctype", b"<html")
_READ = ("*.json", "*.safetensors", "*.bin", "*.model", "*.jinja", "merges.txt", "vocab.txt")
_UNUSED = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "length_penalty": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "top_h": (),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "penalty_alpha": (0.0,),
    "guidance_scale": (1.0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "stop_strings": (),
}
"""Fields of a generation_config that change a text and are not applied, with the values that change nothing."""


def pointer_of(path: Path) -> str | None:
    """What stands in a file's place, in words; None for one that may be itself."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(_POINTERS):
        return "a pointer of git LFS, not the file itself; fetch it with `git lfs pull`, or download it again"
    if start.lower().startswith(_PAGES):
        return "a web page, not the file itself; download it again"
    return None


def check_folder(path: Path) -> None:
    """Say plainly what is wrong, before transformers says it at length. Raises ValueError."""
    where = f"model {path}"
    if not (path / "config.json").is_file():
        if (path / ADAPTER).is_file():
            raise ValueError(f"{where}: a LoRA adapter without its base{_base_of(path)}; {merge(str(path))}")
        if (path / "method.json").is_file():
            raise ValueError(f"{where}: a plug-in, not a model; give it as --plugin, and its base as --model")
        if found := sorted(path.glob("*.gguf")):
            raise ValueError(f"{where}: the folder has no config.json; give the GGUF file itself ({found[0].name})")
        raise ValueError(f"{where}: the folder has no config.json; give a folder written by save_pretrained")
    for file in sorted({file for pattern in _READ for file in path.glob(pattern) if file.is_file()}):
        if (instead := pointer_of(file)) is not None:
            raise ValueError(f"{where}: {shown(file.name)} is {instead}")
        if not file.stat().st_size:
            raise ValueError(f"{where}: {shown(file.name)} is empty; save or download it again")
    if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
        raise ValueError(f"{where}: the folder has no weights (*.safetensors); save or download it again")
    if not (path / WHOLE).is_file():
        for name in _shards(path):
            if not (path / name).is_file():
                raise ValueError(f"{where}: {INDEX} names {shown(name)}, which is not there; download it again")
    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ValueError(f"{where}: the folder has no tokenizer; save one there with tokenizer.save_pretrained")


def notes_of_folder(path: Path) -> list[str]:
    """What in the folder is not used although it might be taken for a part of the model."""
    notes = []
    if (path / ADAPTER).is_file():
        notes.append(f"the LoRA adapter beside its weights is left out; {merge(str(path))}")
    if (path / WHOLE).is_file() and (path / INDEX).is_file() and set(_shards(path)) - {WHOLE}:
        notes.append(f"{WHOLE} is read, and not the shards of {INDEX} beside it; remove the one that is old")
    return notes


def notes_of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What its tokenizer and its generation_config ask for that it does not have, or that is not done here."""
    notes = []
    rows, added = model.get_input_embeddings().weight.shape[0], tokenizer.added_tokens_decoder  # pyright: ignore
    beyond = sorted(index for index in {*added, *range(rows, len(tokenizer))} if index >= rows)
    if beyond:
        name = shown(tokenizer.convert_ids_to_tokens(beyond[0]))
        notes.append(
            f"its tokenizer has {len(beyond)} tokens that its embedding of {rows} rows does not have ({name}, "
            f"{beyond[0]}, is the first); texts that hold them are refused"
        )
    config: Any = model.generation_config
    for field, neutral in _UNUSED.items():
        value = getattr(config, field, None)
        if value is not None and value not in neutral:
            notes.append(f"generation_config.json asks for {field} {shown(value)}, which is not used")
    return notes


def check_finite(name: str, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Raise ValueError, naming the first, for a tensor that holds nan or inf: one such row reaches every text."""
    for tensor_name, tensor in tensors:
        if tensor.device.type != "meta" and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{name}: {shown(tensor_name)} is not finite (it holds nan or inf); save or download it again"
            )


@contextlib.contextmanager
def without_adapters(path: str) -> Iterator[str]:
    """The folder as it is without a LoRA adapter beside its weights, which transformers applies where peft is there."""
    if not Path(path, ADAPTER).is_file():
        yield path
        return
    with tempfile.TemporaryDirectory() as plain:
        for file in Path(path).iterdir():
            if file.name not in ADAPTERS:
                Path(plain, file.name).symlink_to(file.absolute())
        yield plain


def merge(adapter: str) -> str:
    return (
        f"merge it: PeftModel.from_pretrained(base, {adapter!r}).merge_and_unload().save_pretrained(folder), and save "
        "the tokenizer there, too"
    )


def _base_of(path: Path) -> str:
    try:
        base = json.loads((path / ADAPTER).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f" ({shown(base)})" if base else ""


def _shards(path: Path) -> list[str]:
    """The files that the index names; none where there is no index."""
    if not (path / INDEX).is_file():
        return []
    try:
        names = json.loads((path / INDEX).read_text())["weight_map"].values()
        return sorted({name for name in names if isinstance(name, str)})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"model {path}: {INDEX} cannot be read ({type(error).__name__}); download it again") from error
