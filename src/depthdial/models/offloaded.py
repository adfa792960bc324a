"""Weights that accelerate keeps elsewhere (another device, a disk) and brings when their module is called."""

from __future__ import annotations

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import Tensor, nn


def brought(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The values of a model's parameter or buffer, on the CPU where they are not in its own place. tensor: as the
    model has it. Raises ValueError for one that has no values and nobody who brings them."""
    if tensor.device.type != "meta":
        return tensor
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if not has_offloaded_params(module):
        raise ValueError(f"{name} holds no values (it is on the meta device); load the model's weights first")
    with align_module_device(module, torch.device("cpu")):
        return getattr(module, leaf).detach().clone()


def device_of(layer: nn.Module) -> torch.device:
    """Where a layer's input is: where its weights are, or are brought when it runs."""
    for module in layer.modules():
        hook = getattr(module, "_hf_hook", None)
        if (device := getattr(hook, "execution_device", None)) is not None:
            return torch.device(device)
    return next(layer.parameters()).device
