"""Import and export of the released FlexiDepth checkpoint's naming (arXiv 2503.23798, the authors' own weights).

The authors keep seven tensors per adaptive layer beside an untouched Llama, under `model.layers.16.`:

    router.router_enc.weight        [d/r, d]        router_proj.gate_proj.weight    [d_ff/r, d]
    router.router_norm.weight       [d/r]           router_proj.down_proj.weight    [d_ff/r, d]
    router.router_dec.weight        [d, d/r]        router_proj.up_proj.weight      [d, d_ff/r]
    router.router_head.weight       [1, d]

Beware: their down_proj maps *into* the adapter and up_proj out of it, the reverse of Llama's naming and of ours. Their
gate has no bias, their weights are soft and their threshold is 0.5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from depthdial.core.method import Dims
from depthdial.methods import FlexiDepth
from depthdial.models.checkpoint import parts_of
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of, is_converted
from depthdial.models.families import family_of

OURS = {
    "router.router_enc.weight": "attn.router.enc.weight",
    "router.router_norm.weight": "attn.router.norm.weight",
    "router.router_dec.weight": "attn.router.dec.weight",
    "router.router_head.weight": "attn.router.head.weight",
    "router_proj.gate_proj.weight": "mlp.adapter.gate.weight",
    "router_proj.down_proj.weight": "mlp.adapter.up.weight",
    "router_proj.up_proj.weight": "mlp.adapter.down.weight",
}
"""The authors' name of each tensor of a layer, and ours."""
BIAS = "attn.router.bias"
RELEASED_RATIO = 16
INDEX_FILE = "model.safetensors.index.json"
_PART = re.compile(r"model\.layers\.(\d+)\.(router(?:_proj)?\..+)")


def import_released(tensors: Mapping[str, Tensor], depth: int, dims: Dims) -> tuple[FlexiDepth, dict[str, Tensor]]:
    """The method and the parts (named as in a plug-in) that `tensors` hold, for a base of `depth` layers and `dims`.

    tensors: the authors' names; those of the base may be among them and are left out. The parts are the tensors given,
    not copies, and a zero bias for each gate. A layer without any of them, between two that have them, always runs.
    Raises ValueError, one line, when there is no such tensor, one is missing, unknown or misshapen, or belongs to a
    layer that the base does not have.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _PART.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = tensor
    if not found:
        raise ValueError("no tensor is named model.layers.N.router...: this is not a released FlexiDepth checkpoint")
    first, last = min(found), max(found) + 1
    if last > depth:
        raise ValueError(f"the checkpoint routes layer {last - 1} and this model has {depth} layers: wrong base")
    for layer, given in sorted(found.items()):
        if missing := OURS.keys() - given.keys():
            raise ValueError(f"the checkpoint lacks {_theirs(layer, min(missing))}; get it again")
        if extra := given.keys() - OURS.keys():
            raise ValueError(f"the checkpoint has {_theirs(layer, min(extra))}, which no released form has")
    enc, gate = (found[first][name] for name in ("router.router_enc.weight", "router_proj.gate_proj.weight"))
    method = FlexiDepth(
        first=first,
        last=last,
        but=tuple(layer for layer in range(first, last) if layer not in found),
        router_ratio=_ratio(dims.hidden, enc, _theirs(first, "router.router_enc.weight")),
        adapter_ratio=_ratio(dims.intermediate, gate, _theirs(first, "router_proj.gate_proj.weight")),
        weights="soft",
        gate_gradient="soft_scale",
        start=0.0,
    )
    shapes = _shapes(method, dims)
    parts: dict[str, Tensor] = {}
    for layer, given in sorted(found.items()):
        for name, ours in OURS.items():
            if given[name].shape != shapes[name]:
                said = f"{_theirs(layer, name)} has shape {list(given[name].shape)}, not {list(shapes[name])}"
                raise ValueError(f"{said}: the checkpoint belongs to another base, or is damaged")
            parts[f"layers.{layer}.{ours}"] = given[name]
        parts[f"layers.{layer}.{BIAS}"] = torch.zeros(())
    return method, parts


def export_released(model: PreTrainedModel) -> dict[str, Tensor]:
    """The parts of a model converted by FlexiDepth under the authors' names; the tensors themselves, not copies.

    The dial is not part of it: what is exported is the method at offset 0. Raises ValueError for what the released form
    cannot express: another method, hard weights, another threshold or router order, a gate with a bias.
    """
    method = converted_of(model).method if is_converted(model) else None
    if not isinstance(method, FlexiDepth):
        raise ValueError("only a model converted by flexidepth has a released form")
    for field, needed in {"weights": "soft", "router_order": "norm_tanh", "tau": 0.5}.items():
        if (value := getattr(method, field)) != needed:
            raise ValueError(f"the released form has {field} {needed!r}, not {value!r}; train with that to export")
    theirs = {ours: name for name, ours in OURS.items()}
    released: dict[str, Tensor] = {}
    for name, tensor in parts_of(model).items():
        _, layer, ours = name.split(".", 2)
        if ours != BIAS:
            released[_theirs(int(layer), theirs[ours])] = tensor
        elif tensor.item() != 0:
            raise ValueError(
                f"the gate of layer {layer} has a bias of {tensor.item():.3g}, which the released form cannot hold; "
                "save the plug-in in depthdial's own form instead"
            )
    return released


def convert_released(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """Convert a base in place with the parts that `tensors` hold (see `import_released`); returns the same model.

    Raises ValueError, and leaves the model as it was, when they do not fit it.
    """
    dims = family_of(model.config).dims(model.config)
    method, parts = import_released(tensors, model.config.num_hidden_layers, dims)
    convert(model, method)
    with torch.no_grad():
        for name, tensor in parts_of(model).items():
            tensor.copy_(parts[name])
    return model


def load_released(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Convert a base in place with the parts in a folder of safetensors files, as the authors publish them.

    Only the parts are read; the base's weights may lie beside them. Raises ValueError, one line, for a folder without
    such files, one that is incomplete or damaged, and as `convert_released` does.
    """
    tensors: dict[str, Tensor] = {}
    for file in _files(Path(folder)):
        try:
            with safe_open(file, framework="pt") as opened:
                names = [name for name in opened.keys() if _PART.fullmatch(name)]  # noqa: SIM118 (no mapping)
                tensors |= {name: opened.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} cannot be read ({error}); get it again") from error
    try:
        return convert_released(model, tensors)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _files(folder: Path) -> list[Path]:
    """The checkpoint's files: those its index names, or all that there are."""
    index = folder / INDEX_FILE
    try:
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a safetensors index ({error}); get it again") from error
    files = sorted(folder.glob("*.safetensors") if names is None else (folder / name for name in names))
    if not files:
        raise ValueError(f"{folder} has no safetensors files; give the folder of a released FlexiDepth checkpoint")
    if absent := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{folder} is incomplete: its index names {absent[0]}, which is not there; get it again")
    return files


def _theirs(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{name}"


def _ratio(size: int, weight: Tensor, name: str) -> int:
    """The whole ratio that makes `size // ratio` this weight's rows; several may, so the released one goes first."""
    rows = weight.shape[0] if weight.ndim == 2 else 0
    for ratio in (RELEASED_RATIO, size // max(rows, 1)):
        if ratio and size // ratio == rows:
            return ratio
    raise ValueError(f"{name} has shape {list(weight.shape)}, whose rows are no whole fraction of {size}: wrong base")


def _shapes(method: FlexiDepth, dims: Dims) -> dict[str, tuple[int, ...]]:
    rank, width = dims.hidden // method.router_ratio, dims.intermediate // method.adapter_ratio
    return {
        "router.router_enc.weight": (rank, dims.hidden),
        "router.router_norm.weight": (rank,),
        "router.router_dec.weight": (dims.hidden, rank),
        "router.router_head.weight": (1, dims.hidden),
        "router_proj.gate_proj.weight": (width, dims.hidden),
        "router_proj.down_proj.weight": (width, dims.hidden),
        "router_proj.up_proj.weight": (dims.hidden, width),
    }
