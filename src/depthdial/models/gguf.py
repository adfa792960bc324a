"""A GGUF file as a plain Hugging Face folder, de-quantised once into the cache.

This is not a GGUF runtime: nothing is computed in blocks. The folder is written in float32, so that a float32 load is
exact, and it is keyed by the sha256 of the GGUF file, so that a renamed copy is found again.
"""

import contextlib
import errno
import hashlib
import io
import mmap
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

RECIPE = 1  # raise it when the folder written here changes: older ones are then made again

# transformers (5.23) splits text for these vocabularies as GPT-2 does, but they cut each digit off first: without that
# "\n\n1." becomes tokens that the model never saw there in training (16 nats worse on a list of five lines).
SINGLE_DIGIT_VOCABULARIES = frozenset({"smollm", "starcoder", "refact", "codeshell"})


class Source(NamedTuple):
    """A GGUF file to convert, and the licence texts that must travel with its weights."""

    gguf: Path
    notices: tuple[Path, ...] = ()


def cache_root() -> Path:
    """Where everything derived is kept: $DEPTHDIAL_CACHE, else $XDG_CACHE_HOME/depthdial, else ~/.cache/depthdial."""
    if own := os.environ.get("DEPTHDIAL_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "depthdial"


def cached_folder(sha256: str) -> Path:
    """The folder that holds, or will hold, the model of the GGUF file with this sha256."""
    return cache_root() / "models" / f"{sha256}-{RECIPE}"


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file (about 1 s per GB)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def progress(line: str) -> Iterator[Progress]:
    """Say `line` on stderr, and on a terminal show a bar with the time taken until the block ends."""
    console = Console(file=sys.stderr)
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield bars


def dequantised(label: str, sha256: str, source: Callable[[Path], Source]) -> Path:
    """The cached Hugging Face folder of a GGUF file, made now if it is not there yet.

    `source` is called only then, with an empty scratch folder that is removed afterwards. One process works at a time;
    the folder appears whole, by a rename, or not at all.

    Raises ValueError if the file cannot be read as a model, OSError if the cache cannot be written.
    """
    folder = cached_folder(sha256)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder, label):
            if not folder.is_dir():
                _build(label, folder, source)
    except (OSError, SafetensorError) as exc:
        reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc).splitlines()[0]
        if "os error 28" in reason:  # safetensors reports a full disk in its own class, with the number in the text
            reason = "No space left on device"
        raise OSError(
            f"{label}: cannot write the cache {folder.parent}: {reason}; free some space there "
            "or set DEPTHDIAL_CACHE to another folder"
        ) from exc
    return folder


def _build(label: str, folder: Path, source: Callable[[Path], Source]) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed: the lock is ours now
    try:
        scratch, model = partial / "source", partial / "model"
        scratch.mkdir(parents=True)
        made = source(scratch)
        _convert(label, made.gguf, model)
        for notice in made.notices:
            shutil.copyfile(notice, model / notice.name)
        os.replace(model, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path, label: str) -> Iterator[None]:
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with progress(f"{label}: another process is preparing this model, waiting for it"):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _convert(label: str, gguf: Path, folder: Path) -> None:
    """Write the model of `gguf` to `folder` (which need not exist) as float32 safetensors, config and tokenizer."""
    line = f"{label}: de-quantising to float32 in {cache_root()}, once (a model of 135M takes half a minute)"
    with progress(line) as bars:
        bars.add_task("converting", total=None)
        # the GGUF loader of transformers draws a bar that no setting turns off
        with _parsing(label), quiet(), contextlib.redirect_stderr(io.StringIO()):
            model, tokenizer = _read(gguf)
        require_space(folder.parent, sum(weight.nbytes for weight in model.parameters()))
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _parsing(label: str) -> Iterator[None]:
    """Turn whatever a parser of foreign files raises into one line: the file is not what it should be."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as exc:
        reason = str(exc).strip().splitlines() or [type(exc).__name__]
        raise ValueError(
            f"{label}: this GGUF file cannot be read as a model ({reason[0]}); download or export it again"
        ) from exc


def require_space(folder: Path, size: int) -> None:
    """Raise OSError (ENOSPC) unless the disk of `folder` has `size` free bytes."""
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, f"No space left on device, {size / 1e6:.0f} MB are needed")


def _read(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    opened: Any = AutoModelForCausalLM.from_pretrained(  # a pair, which its type does not say
        **place, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), output_loading_info=True
    )
    packed, report = opened
    tokenizer = AutoTokenizer.from_pretrained(**place)
    if report["missing_keys"]:
        raise ValueError(f"tensors are missing: {', '.join(sorted(report['missing_keys'])[:3])} ...")
    # What was read calls itself quantised and refuses to be saved: move its tensors to a plain model of its config.
    settings = packed.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path"):
        settings.pop(key, None)
    with torch.device("meta"):
        model = type(packed)(type(packed.config).from_dict(settings))
    model.load_state_dict(packed.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = packed.generation_config
    tokenizer.model_max_length = packed.config.max_position_embeddings  # a GGUF tokenizer knows none: it says 1e30
    for role in ("bos", "eos", "pad"):  # transformers 5.17 takes the first for the second and leaves out the third
        if isinstance(index := settings.get(f"{role}_token_id"), int):
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(index))
    if _vocabulary(gguf) in SINGLE_DIGIT_VOCABULARIES:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return model, tokenizer


def _vocabulary(gguf: Path) -> str:
    """The file's `tokenizer.ggml.pre`, or "". (A full parse of the metadata, as gguf.GGUFReader does it, takes 3 s.)"""
    key = b"tokenizer.ggml.pre" + struct.pack("<I", 8)  # 8: the type of a string, which is its length and its bytes
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(key)
        if start < 0:
            return ""
        (length,) = struct.unpack_from("<Q", data, start + len(key))
        return data[start + len(key) + 8 : start + len(key) + 8 + length].decode()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars, warnings and reports to itself while it reads what we wrote, announced or check."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
