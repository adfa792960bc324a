"""Open a base model: a stock Hugging Face causal LM and its tokenizer, from a name.

A name is a short name, a GGUF file, a local folder or a hub id, looked for in this order (`./name` always means a
path). Nothing here knows of routes or plug-ins, and whether the family can be converted is not asked here.
"""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from depthdial.models.families import text_part
from depthdial.models.fingerprint import cast_from, weights_hash
from depthdial.models.folder import (
    check_finite,
    check_folder,
    notes_of_folder,
    notes_of_model,
    pointer_of,
    without_adapters,
)
from depthdial.models.foreign import shown
from depthdial.models.gguf import Source, cached_folder, dequantised, parts_sha256, progress, quiet
from depthdial.models.short_names import SHORT_NAMES, weights

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
HUB_SECONDS = 5.0  # how long the hub may take for its first answer
NO_LENGTH = 10**9  # a tokenizer that knows no limit says 1e30
TEXT_PART = {r"^(model\.)?language_model\.lm_head\.": "lm_head.", r"^(model\.)?language_model\.(model\.)?": "model."}
"""What tensors of a language model are called in one that sees, too, and alone."""
LARGE_FILE = 2 * 10**9  # bytes; hashing more than this takes long enough to be announced


class Place(NamedTuple):
    """Where a model is: a folder or hub id, whether to do without the network, and whether it is in our own cache."""

    where: str
    local: bool
    cached: bool = False


def load_base(
    name: str, dtype: str | torch.dtype = "bfloat16", device: str = "auto", attn_implementation: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model called `name`, in eval mode, and its tokenizer.

    `name`: a short name (see SHORT_NAMES), the path of a GGUF file, the folder of a model saved by Hugging Face, or a
    hub id. `dtype`: bfloat16, float32, float16, a torch.dtype of these, or "auto" for the one it was saved in (float32
    for what comes from a GGUF file). `device`: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".
    `attn_implementation`: as in `from_pretrained`; None leaves its default.

    Raises ValueError, in one line that says what to do, if any of these is unknown or cannot be had or read; OSError if
    the cache cannot be written.
    """
    kind, target = _dtype(dtype), _device(device)
    half = kind is torch.float16  # its range is smaller than that of what models are saved in
    model, tokenizer = _open(name, _resolve(name), "auto" if half else kind, attn_implementation)
    if half:
        _halve(model, name)
    limit = model.config.get_text_config().to_dict().get("max_position_embeddings")
    if limit and tokenizer.model_max_length > NO_LENGTH:
        tokenizer.model_max_length = limit
    return model.to(target).eval(), tokenizer  # pyright: ignore[reportArgumentType]


def _halve(model: PreTrainedModel, name: str) -> None:
    """Cast to float16. The model stays, for plug-ins, the base that it was before. ValueError where it does not fit."""
    before = model.dtype, weights_hash(model)
    model.to(torch.float16)  # pyright: ignore[reportArgumentType]
    lost = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if lost:
        raise ValueError(f"model {name}: {lost[0]} does not fit the range of float16; use bfloat16 or float32")
    if before[0] is not torch.float16:
        cast_from(model, before[1])


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model called `name`, or one saved alone in a folder. Raises ValueError as `load_base`."""
    folder = Path(os.path.expanduser(name))
    alone = folder.is_dir() and not (folder / "config.json").is_file()
    place = Place(str(folder), local=True) if alone else _resolve(name)
    with one_line(name, place, "tokenizer", "save or download it again"), quiet():
        return AutoTokenizer.from_pretrained(place.where, local_files_only=place.local, trust_remote_code=False)


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype == "auto" or dtype in (*DTYPES.values(), torch.float64):
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise ValueError(f"dtype {dtype!r} is not known: give one of {', '.join(DTYPES)}, auto")


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ValueError(f"device {device!r} is not known: give auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not there: PyTorch sees {torch.cuda.device_count()} GPUs; give cpu or auto"
        )
    return torch.device(kind, int(index or 0)) if kind == "cuda" else torch.device("cpu")


def _resolve(name: str) -> Place:
    if name in SHORT_NAMES:
        folder = dequantised(name, SHORT_NAMES[name].sha256, partial(weights, name))
        return Place(str(folder), local=True, cached=True)
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        check_folder(Path(path))
        return Place(path, local=True)
    if os.path.isfile(path):
        return Place(str(_from_gguf(Path(path))), local=True, cached=True)
    if name.startswith(("/", ".", "~")) or name.endswith(".gguf"):
        raise ValueError(f"model {name}: there is no such file or folder")
    return Place(name, local=not _on_hub(name))


def resolve_config(name: str) -> Place | None:
    """Where the configuration of a model that is no GGUF file is; None for a short name that must be fetched first."""
    if name in SHORT_NAMES:
        folder = cached_folder(SHORT_NAMES[name].sha256)
        return Place(str(folder), local=True, cached=True) if folder.is_dir() else None
    return _resolve(name)


def _from_gguf(path: Path) -> Path:
    if (instead := pointer_of(path)) is not None:
        raise ValueError(f"model {path}: {instead}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"model {path}: not a GGUF file; give a .gguf file, or the folder that holds config.json")
    large = path.stat().st_size > LARGE_FILE
    with progress(f"{path.name}: looking for it in the cache") if large else contextlib.nullcontext():
        sha256 = parts_sha256(path)
    return dequantised(path.name, sha256, lambda scratch: Source(path.absolute()))


def _on_hub(name: str) -> bool:
    """Ask the hub once whether it has `name`; False if it cannot be asked, so that its local cache must do.

    transformers itself would try for 23 s when there is no network, and then for every file again.
    """
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_SECONDS)
    except GatedRepoError as exc:
        raise ValueError(
            f"model {name} is gated: accept its terms at https://huggingface.co/{name} and log in with `hf auth login`"
        ) from exc
    except HFValidationError as exc:
        raise _unknown(name, "it cannot be a hub id") from exc
    except RepositoryNotFoundError as exc:
        raise _unknown(name, "the hub has no such model, or it is private: then log in with `hf auth login`") from exc
    except EntryNotFoundError as exc:
        raise ValueError(
            f"model {name}: its hub page has no config.json; if it holds .gguf files, download one; "
            "if it holds a LoRA adapter, merge that into its base first"
        ) from exc
    except OfflineModeIsEnabled:
        return False
    except Exception:  # no network, a time-out, a server error: each HTTP library names them in its own way
        return False
    return True


def _unknown(name: str, reason: str) -> ValueError:
    return ValueError(
        f"model {name[:80]!r} is not known ({reason}): give a short name ({', '.join(sorted(SHORT_NAMES))}), "
        "a GGUF file, a local folder, or a hub id such as org/model"
    )


def _open(
    name: str, place: Place, dtype: str | torch.dtype, attn_implementation: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    remedy = f"remove {place.where} and try again" if place.cached else "save or download it again"
    # trust_remote_code=False: refuse code from the hub, without asking on the terminal
    common = {"local_files_only": place.local, "trust_remote_code": False}
    with _announced(name, place), without_adapters(place.where) as where:
        with one_line(name, place, "config", remedy):
            whole: Any = AutoConfig.from_pretrained(where, **common)
        config = text_part(whole)
        with one_line(name, place, "tokenizer", remedy):
            tokenizer = AutoTokenizer.from_pretrained(where, **common)
        with one_line(name, place, "model", remedy):
            opened: Any = AutoModelForCausalLM.from_pretrained(  # a pair, which its type does not say
                where,
                config=config,
                key_mapping=None if config is whole else TEXT_PART,
                dtype=dtype,
                attn_implementation=attn_implementation,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, with the other wrong ones
                **common,
            )
    model, report = opened
    # transformers would fill these with random numbers
    wrong = sorted(report["missing_keys"]) + sorted(entry[0] for entry in report["mismatched_keys"])
    if wrong:
        said = f"{len(wrong)} of the tensors that config.json asks for are missing or of another shape"
        raise ValueError(f"model {name}: {said} ({wrong[0]} for one); {remedy}")
    check_finite(f"model {name}", model.named_parameters())
    if extra := sorted(report["unexpected_keys"]):
        _say(f"model {name}: {len(extra)} tensors are not part of it and are left out ({shown(extra[0])} ...)")
    for note in [*(notes_of_folder(Path(place.where)) if place.local else []), *notes_of_model(model, tokenizer)]:
        _say(f"model {name}: {note}")
    return model, tokenizer


@functools.cache
def _say(line: str) -> None:
    """Once: a run may open its base several times."""
    print(line, file=sys.stderr)


@contextlib.contextmanager
def _announced(name: str, place: Place) -> Iterator[None]:
    """Our own line in place of the bars and reports of transformers, if it takes long; those of a download stay."""
    if not place.local:
        yield
        return
    size = sum(file.stat().st_size for file in Path(place.where).glob("*.safetensors"))
    with progress(f"{name}: reading {size / 1e9:.1f} GB") if size > LARGE_FILE else contextlib.nullcontext(), quiet():
        yield


@contextlib.contextmanager
def one_line(name: str, place: Place, what: str, remedy: str) -> Iterator[None]:
    """Turn whatever foreign files or settings make transformers raise into a ValueError of one line.

    what: is read ("config"); remedy: said where it is damaged.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as exc:
        if place.local and not os.path.isdir(place.where):
            raise _unknown(name, "the hub cannot be reached, and its local cache has no such model") from exc
        lines = [shown(line.strip(), 400) for line in str(exc).splitlines() if line.strip()] or [type(exc).__name__]
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        # a ValueError of transformers: not damaged, but made or asked for in a way that is not supported
        damaged = not isinstance(exc, (ValueError, ImportError)) or isinstance(exc, json.JSONDecodeError)
        raise ValueError(
            f"model {name}: the {what} cannot be {'read' if damaged else 'used'} ({reason})" + f"; {remedy}" * damaged
        ) from exc
