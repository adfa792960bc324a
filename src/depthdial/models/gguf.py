"""A GGUF file as a plain Hugging Face folder, de-quantised once into the cache.

This is not a GGUF runtime: nothing is computed in blocks. The folder is written in float32, so that a float32 load is
exact, and it is keyed by the sha256 of the GGUF file, so that a renamed copy is found again.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import transformers
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from depthdial.models.foreign import shown
from depthdial.models.gguf_file import Unsupported, parts_of_gguf, read_gguf
from depthdial.models.gguf_keys import Keys
from depthdial.models.gguf_model import architecture_of, config_of, model_of
from depthdial.models.gguf_tokenizer import tokenizer_of
from depthdial.models.modes import readable

RECIPE = 2  # raise it when the folder written here changes: older ones are then made again
NOTES = "notes.txt"
"""Beside the weights: what of the file is not used, a line each, said whenever the model is loaded."""


class Source(NamedTuple):
    """A GGUF file to convert (any part of one that is split), and the licence texts that travel with its weights."""

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

    What of the file is not used is said on stderr. Raises ValueError if the file cannot be read as a model, OSError if
    the cache cannot be written.
    """
    folder = cached_folder(sha256)
    if folder.is_dir():
        _say_notes(label, folder)
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
    _say_notes(label, folder)
    return folder


def _say_notes(label: str, folder: Path) -> None:
    if (folder / NOTES).is_file():
        for line in (folder / NOTES).read_text(encoding="utf-8").splitlines():
            print(f"{label}: this GGUF file {line}", file=sys.stderr)


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
        with _parsing(label), quiet():
            model, tokenizer, notes = _read(gguf)
        require_space(folder.parent, sum(weight.nbytes for weight in model.parameters()))
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        if notes:
            (folder / NOTES).write_text("".join(f"{note}\n" for note in notes), encoding="utf-8")
        readable(folder)


@contextlib.contextmanager
def _parsing(label: str) -> Iterator[None]:
    """Turn whatever a parser of foreign files raises into one line: the file is not what it should be."""
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Unsupported as exc:
        raise ValueError(f"{label}: this GGUF file cannot be used: {exc}") from exc
    except Exception as exc:
        reason = [shown(line, 300) for line in str(exc).strip().splitlines()] or [type(exc).__name__]
        raise ValueError(
            f"{label}: this GGUF file cannot be read as a model ({reason[0]}); download or export it again"
        ) from exc


def require_space(folder: Path, size: int) -> None:
    """Raise OSError (ENOSPC) unless the disk of `folder` has `size` free bytes."""
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, f"No space left on device, {size / 1e6:.0f} MB are needed")


def _read(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Model, tokenizer, and what of the file is not used. The cheap things come first, the weights last."""
    contents = read_gguf(parts_of_gguf(gguf))
    keys = Keys(contents.metadata)
    architecture_of(keys)
    words = tokenizer_of(keys, keys.whole("context_length"))
    config = config_of(keys, contents, len(words.tokenizer))
    unread = keys.unread()
    for role, index in words.special.items():
        setattr(config, role, index)
    model, strange = model_of(keys, contents, config)
    if len(words.ends) > 1:
        model.generation_config.eos_token_id = words.ends
    notes = [f"holds the tensor {shown(name)}, which is no part of the model and is left out" for name in strange]
    notes += [f"has the key {shown(key)}, which is not used" for key in unread]
    return model, words.tokenizer, [*words.notes, *notes]


def config_in(path: Path) -> PretrainedConfig:
    """The configuration that a GGUF file describes, without its special tokens; no weights are read."""
    with _parsing(path.name):
        contents = read_gguf(parts_of_gguf(path))
        keys = Keys(contents.metadata)
        return config_of(keys, contents, 0)


def parts_sha256(path: Path) -> str:
    """The sha256 of a file, or, where it is one of several parts of a model, of those of all parts in order."""
    with _parsing(path.name):
        files = parts_of_gguf(path)
    if len(files) == 1:
        return file_sha256(path)
    return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()


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
