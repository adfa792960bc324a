"""A plug-in on disk: `method.json` and `parts.safetensors` beside an untouched base.

method.json holds the method's fields, the curves of the dial, a fingerprint of the base and `format_version`; tensors
are named layer.unit.part.parameter, for example `layers.16.attn.router.enc.weight`; where a program visits blocks
beside the base's layers, step.part.parameter (`steps.16.router.enc.weight`), and `own.0.` are its own blocks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.core.dial import Curve, PromptBudget
from depthdial.core.method import Method
from depthdial.core.whole import sync
from depthdial.methods import method_named, name_of
from depthdial.models.convert import INNER, revert, take_on
from depthdial.models.converted import Converted, converted_of, is_converted, unwrapped
from depthdial.models.fingerprint import Fingerprint, fingerprint
from depthdial.models.folder import check_finite, pointer_of
from depthdial.models.foreign import shown
from depthdial.models.modes import readable
from depthdial.models.offloaded import brought
from depthdial.models.plugin_json import check_curves, check_plugin, read_json

FORMAT_VERSION = 1
METHOD_FILE, PARTS_FILE, CARD_FILE = "method.json", "parts.safetensors", "README.md"
NEXT_FILE = f".{PARTS_FILE}.next"
"""Parts on their way over older ones: they count once method.json names their sha256."""


@dataclasses.dataclass(frozen=True)
class Plugin:
    """What is known of a plug-in beside its weights."""

    name: str
    method: Method
    base: Fingerprint
    curves: dict[str, Curve] = dataclasses.field(default_factory=dict)
    """By kind of token: "text" (prompts, scoring) and "generated"."""
    recommended: float | None = None
    """The budget used when none is asked for."""
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How it was trained: for people, never read by code."""
    prompt_budget: PromptBudget | None = None
    """What prompts might cost in its training; "same" is the form of the papers, that of plug-ins of before there was a
    choice. None where it is not known."""

    @property
    def form(self) -> str:
        """How prompts were read in its training, in words; empty where it is not known."""
        if self.prompt_budget is None:
            return ""
        if self.prompt_budget == "same":
            return "trained in the form of the papers: prompts skip layers as answers do"
        how = "in full, by the untouched base" if self.prompt_budget == 1.0 else f"at a cost of {self.prompt_budget:g}"
        return f"trained with prompts that are read {how}"

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "method": {"name": name_of(self.method), **dataclasses.asdict(self.method)},  # pyright: ignore
            "base": dataclasses.asdict(self.base),
            "recommended_budget": self.recommended,
            "prompt_budget": self.prompt_budget,
            "curves": {kind: dataclasses.asdict(curve) for kind, curve in self.curves.items()},
            "training": self.training,
        }


def save(model: nn.Module, path: str | Path, plugin: Plugin | None = None, card: str | None = None) -> Path:
    """Write the plug-in of a converted model to the folder `path`; whole or not at all. Returns the folder.

    model: converted; what accelerate, DDP or peft put around it does not matter, and no LoRA of the base is written.
    plugin: its metadata; by default that of the model's loaded plug-in or of `calibrate`, or without a curve. Tensors
    are saved in bf16 if the loaded parts are exact in it, else in fp32. Raises ValueError for a model without
    a method and for a folder whose files are not a plug-in's, OSError when the disk refuses.
    """
    inner, path = unwrapped(model), Path(path)
    converted = converted_of(inner)
    plugin = plugin or plugin_of(inner) or Plugin("", converted.method, fingerprint(inner))
    plugin = plugin if plugin.name else dataclasses.replace(plugin, name=path.name)
    tensors = {
        f"{start}{name}": brought(parts, name, tensor).detach().cpu().contiguous()
        for start, parts in _modules(converted)
        for name, tensor in parts.state_dict().items()
    }
    if any(INNER in name for name in tensors):
        raise ValueError("a LoRA is on the plug-in's own parts: merge it into them first (model.merge_and_unload())")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        save_file(tensors, scratch / PARTS_FILE, metadata={"format": "pt"})
        metadata = {**plugin.to_json(), "parts_sha256": _sha256(scratch / PARTS_FILE)}
        (scratch / METHOD_FILE).write_text(json.dumps(metadata, indent=1) + "\n")
        if card is not None:
            (scratch / CARD_FILE).write_text(card)
        readable(scratch)
        _swap(scratch, path)
    except SafetensorError as error:  # how the writer reports a full disk
        raise OSError(f"could not write the plug-in to {path}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def read(path: str | Path) -> Plugin:
    """The metadata of the plug-in in the folder `path`. Raises ValueError, one line, for anything that is not one."""
    path = Path(path)
    file = path / METHOD_FILE
    if not file.is_file():
        raise ValueError(f"{path} is not a plug-in: it has no {METHOD_FILE}")
    data = read_json(file)
    try:
        if (version := data.get("format_version")) is None:
            raise ValueError("format_version is missing")
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise ValueError(
                f"format version {shown(version)}; this depthdial reads {FORMAT_VERSION}: upgrade one of the two"
            )
        check_plugin(data)
        fields = dict(data["method"])
        return Plugin(
            name=data["name"],
            method=method_named(fields.pop("name"), fields),
            base=Fingerprint(**data["base"]),
            curves=curves_from(data["curves"]),
            recommended=data["recommended_budget"],
            training=data["training"],
            prompt_budget=data.get("prompt_budget", "same"),
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}; get the plug-in again") from None


def attach(model: PreTrainedModel, path: str | Path, allow_other_weights: bool = False) -> PreTrainedModel:
    """Convert `model` with the plug-in in the folder `path`; returns the same model, with `model.converted.plugin` set.
    A model of one of our types has its method already: the plug-in's parts take the place of its own.

    Raises ValueError when the plug-in belongs to a base of another configuration, or to other weights of the same one
    (unless allowed: a LoRA-tuned base, say), or when its tensors are corrupt, missing, of the wrong shape or too many.
    """
    plugin, file = read(path), parts_file(path)
    plugin.base.check(fingerprint(model), str(path), allow_other_weights)
    tensors, own = read_parts(file), is_converted(model)
    take_on(model, plugin.method)
    try:
        parts = parts_of(model)
        _check_same(parts, tensors, str(file))
        _check_of_one_save(Path(path), file)
    except ValueError:
        if not own:
            revert(model)  # a refused plug-in leaves the base as it was
        raise
    with torch.no_grad():
        for name, tensor in parts.items():
            tensor.copy_(tensors[name])
    converted_of(model).plugin = plugin
    return model


def parts_file(path: str | Path) -> Path:
    """The file of tensors that belongs to the method.json of a plug-in's folder; it need not be there.

    A process that is killed while it saves over an older plug-in may leave the new parts under the name they had on
    their way.
    """
    file, coming = Path(path) / PARTS_FILE, Path(path) / NEXT_FILE
    return coming if coming.is_file() and _sha256(coming) == _noted_sha256(Path(path)) else file


def read_parts(file: Path) -> dict[str, Tensor]:
    """The tensors of a plug-in by name, finite. Raises ValueError, one line, for a file that does not hold such."""
    if not file.is_file():
        raise ValueError(f"{file.parent} is incomplete: it has no {file.name}; get the plug-in again")
    if (instead := pointer_of(file)) is not None:
        raise ValueError(f"{file} is {instead}")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError, OverflowError, RuntimeError) as error:  # as torch has it
        raise ValueError(f"{file} is corrupt ({shown(error, 200)}); get the plug-in again") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ValueError(f"{file}: {shown(name)} is of {tensor.dtype}, no type of weights; get the plug-in again")
    check_finite(str(file), iter(tensors.items()))
    return tensors


def parts_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """All tensors of a converted model's parts under their names on disk; the tensors themselves, not copies."""
    return {
        f"{start}{name}": tensor
        for start, parts in _modules(converted_of(model))
        for name, tensor in parts.state_dict().items()
    }


def plugin_of(model: PreTrainedModel) -> Plugin | None:
    """The plug-in that a converted model was loaded with; None where there is none. ValueError as `converted_of`."""
    plugin = converted_of(model).plugin
    assert plugin is None or isinstance(plugin, Plugin)
    return plugin


def _modules(converted: Converted) -> list[tuple[str, nn.Module]]:
    """What a plug-in brings, each with what its names begin with on disk."""
    steps, plain = converted.program.steps, converted.program.plain
    parts: list[tuple[str, nn.Module]] = [
        (f"layers.{steps[s].block}.{steps[s].unit}." if plain else f"steps.{s}.", unit.parts)
        for s, unit in sorted(converted.parted.items())
        if steps[s].block >= 0  # an own block holds its step's parts
    ]
    return parts + [(f"own.{k}.", block) for k, block in enumerate(converted.own)]


def curves_from(data: dict[str, Any]) -> dict[str, Curve]:
    """Curves by kind of token from their JSON. Raises ValueError for anything else."""
    check_curves(data)

    def curve(fields: dict[str, Any]) -> Curve:
        columns: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
        return Curve(**columns)

    return {kind: curve(fields) for kind, fields in data.items()}


def _check_same(own: dict[str, Tensor], given: dict[str, Tensor], where: str) -> None:
    """ValueError where tensors of a file are not those of a method's parts, by name and shape."""
    if missing := sorted(own.keys() - given.keys()):
        raise ValueError(f"{where} lacks {len(missing)} tensors ({missing[0]}, ...); get the plug-in again")
    if extra := sorted(given.keys() - own.keys()):
        raise ValueError(f"{where} has {len(extra)} tensors its method does not know ({shown(extra[0])}, ...)")
    for name, tensor in own.items():
        if tensor.shape != given[name].shape:
            raise ValueError(f"{where}: {name} has shape {list(given[name].shape)}, not {list(tensor.shape)}")


def _swap(scratch: Path, path: Path) -> None:
    """Put the finished folder in place. Over an older plug-in method.json is what decides: until it is replaced the old
    parts belong to it, from then on the new ones, which are there already."""
    for file in scratch.iterdir():
        sync(file)
    if not path.exists():
        os.replace(scratch, path)
        sync(path.parent)
        return
    if not path.is_dir():
        raise ValueError(f"{path} is a file; choose a folder for the plug-in")
    taken = sorted(file.name for file in scratch.iterdir() if (path / file.name).exists())
    if taken and not (path / METHOD_FILE).is_file():
        raise ValueError(f"{path} holds a {taken[0]} that is not a plug-in's; choose another folder for the plug-in")
    try:
        os.replace(scratch / PARTS_FILE, path / NEXT_FILE)
        sync(path)
        os.replace(scratch / METHOD_FILE, path / METHOD_FILE)
    except OSError:
        (path / NEXT_FILE).unlink(missing_ok=True)
        raise
    sync(path)
    os.replace(path / NEXT_FILE, path / PARTS_FILE)
    for file in scratch.iterdir():
        os.replace(file, path / file.name)
    sync(path)


def _noted_sha256(path: Path) -> str | None:
    """That of the parts, as method.json has it; None in plug-ins of before it was written there."""
    return json.loads((path / METHOD_FILE).read_text()).get("parts_sha256")


def _check_of_one_save(path: Path, file: Path) -> None:
    """ValueError for parts that another save wrote, or that were damaged later."""
    if _noted_sha256(path) not in (None, _sha256(file)):
        raise ValueError(
            f"{file} is not the file that {METHOD_FILE} was written with (its sha256 differs); get the plug-in again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cast_parts(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round all parts to `dtype`: what is shipped is what was measured."""
    for _, parts in _modules(converted_of(model)):
        parts.to(dtype)
