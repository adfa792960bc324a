"""A plug-in on disk: `method.json` and `parts.safetensors` beside an untouched base.

method.json holds the method's fields, the curves of the dial, a fingerprint of the base and `format_version`; tensors
are named layer.unit.part.parameter, for example `layers.16.attn.router.enc.weight`.
"""

from __future__ import annotations

import dataclasses
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

from depthdial.core.dial import Curve
from depthdial.core.method import Method
from depthdial.methods import method_named, name_of
from depthdial.models.convert import convert, method_of, revert, routed
from depthdial.models.fingerprint import Fingerprint, fingerprint
from depthdial.models.folder import check_finite, pointer_of
from depthdial.models.foreign import shown
from depthdial.models.modes import readable
from depthdial.models.plugin_json import check_curves, check_plugin, read_json

FORMAT_VERSION = 1
METHOD_FILE, PARTS_FILE, CARD_FILE = "method.json", "parts.safetensors", "README.md"


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

    @property
    def curve(self) -> Curve | None:
        return self.curves.get("text")

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "method": {"name": name_of(self.method), **dataclasses.asdict(self.method)},  # pyright: ignore
            "base": dataclasses.asdict(self.base),
            "recommended_budget": self.recommended,
            "curves": {kind: dataclasses.asdict(curve) for kind, curve in self.curves.items()},
            "training": self.training,
        }


def save(model: PreTrainedModel, path: str | Path, plugin: Plugin | None = None, card: str | None = None) -> Path:
    """Write the plug-in of a converted model to the folder `path`; whole or not at all.

    plugin: its metadata; by default that of the model's loaded plug-in, or fresh metadata without a curve. Tensors are
    saved in bf16 if the loaded parts are exact in it, else in fp32. Returns the folder. Raises ValueError for a model
    without a method, OSError when the disk refuses.
    """
    method, path = method_of(model), Path(path)
    if plugin is None:
        loaded = getattr(model, "plugin", None)
        plugin = loaded if isinstance(loaded, Plugin) else Plugin(path.name, method, fingerprint(model))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in parts_of(model).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        save_file(tensors, scratch / PARTS_FILE, metadata={"format": "pt"})
        (scratch / METHOD_FILE).write_text(json.dumps(plugin.to_json(), indent=1) + "\n")
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
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}; get the plug-in again") from None


def attach(model: PreTrainedModel, path: str | Path, allow_other_weights: bool = False) -> PreTrainedModel:
    """Convert `model` with the plug-in in the folder `path`; returns the same model, with `model.plugin` set.

    Raises ValueError when the plug-in belongs to a base of another configuration, or to other weights of the same one
    (unless allowed: a LoRA-tuned base, say), or when its tensors are corrupt, missing, of the wrong shape or too many.
    """
    plugin, file = read(path), Path(path) / PARTS_FILE
    plugin.base.check(fingerprint(model), str(path), allow_other_weights)
    tensors = read_parts(file)
    convert(model, plugin.method)
    try:
        _fill(parts_of(model), tensors, str(file))
    except ValueError:
        revert(model)  # a refused plug-in leaves the base as it was
        raise
    vars(model).update(plugin=plugin)
    return model


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
        f"layers.{site.layer}.{site.unit}.{name}": tensor
        for site, unit in sorted(routed(model).items())
        for name, tensor in unit.parts.state_dict().items()
    }


def curves_from(data: dict[str, Any]) -> dict[str, Curve]:
    """Curves by kind of token from their JSON. Raises ValueError for anything else."""
    check_curves(data)

    def curve(fields: dict[str, Any]) -> Curve:
        told: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in fields.items()}
        return Curve(**told)

    return {kind: curve(fields) for kind, fields in data.items()}


def _fill(own: dict[str, Tensor], given: dict[str, Tensor], where: str) -> None:
    if missing := sorted(own.keys() - given.keys()):
        raise ValueError(f"{where} lacks {len(missing)} tensors ({missing[0]}, ...); get the plug-in again")
    if extra := sorted(given.keys() - own.keys()):
        raise ValueError(f"{where} has {len(extra)} tensors its method does not know ({shown(extra[0])}, ...)")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != given[name].shape:
                raise ValueError(f"{where}: {name} has shape {list(given[name].shape)}, not {list(tensor.shape)}")
            tensor.copy_(given[name])


def _swap(scratch: Path, path: Path) -> None:
    """Put the finished folder in place; the old one, if any, goes only once the new one is there."""
    if not path.exists():
        os.replace(scratch, path)
        return
    if not path.is_dir():
        raise ValueError(f"{path} is a file; choose a folder for the plug-in")
    for file in scratch.iterdir():
        os.replace(file, path / file.name)


def cast_parts(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round all parts to `dtype`: what is shipped is what was measured."""
    for unit in routed(model).values():
        module: nn.Module = unit.parts
        module.to(dtype)
