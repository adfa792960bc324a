"""A second device without a machine that has one: `other`, whose tensors hold theirs on the CPU and will not meet it.

What a GPU refuses is refused here: an operation over tensors of two devices, but for copies, index tensors and CPU
scalars; a generator of another device; `numpy` without a copy first. So a mix of devices fails in a test on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

NAME = "other"


class _Backend(_DummyBackendModule):
    """Nobody who looks for an accelerator finds this one: it is there for those who name it."""

    def is_available(self) -> bool:
        return False


class _Hooks(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return False


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend(), hook=_Hooks())
OTHER = torch.device(NAME, 0)
aten: Any = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default, aten.set_data.default}
"""May join two devices."""
INDEXED = {
    aten.index.Tensor: 1,
    aten.index_put.default: 1,
    aten.index_put_.default: 1,
    aten._index_put_impl_.default: 1,
}
"""Argument that may stand on the CPU: index tensors."""


class There(Tensor):
    """A tensor on `other`. here: its numbers, on the CPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor, requires_grad: bool = False) -> There:
        assert not isinstance(here, There) and here.device.type == "cpu"
        made = Tensor._make_wrapper_subclass(
            cls, here.size(), here.stride(), here.storage_offset(), dtype=here.dtype, device=OTHER,
            requires_grad=requires_grad,
        )  # fmt: skip
        made.here = here
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"There({self.here})"

    def tolist(self) -> Any:
        return self.here.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.here.detach().numpy()
        raise TypeError(f"can't convert {OTHER} device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def untyped_storage(self) -> Any:
        return self.here.untyped_storage()

    def storage(self) -> Any:
        return self.here.storage()

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _there, (self.here.detach().clone(), self.requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _there(here: Tensor, requires_grad: bool) -> There:
    return There(here.detach(), requires_grad)


def _mixed(func: Any, args: Any, kwargs: dict[str, Any]) -> str | None:
    """What of a call stands on another device than the rest, in words."""
    if func in COPIES:
        return None
    args = [a for i, a in enumerate(args) if i != INDEXED.get(func)]
    tensors = [t for t in tree_flatten([args, kwargs])[0] if isinstance(t, Tensor)]
    if not any(isinstance(t, There) for t in tensors):
        return None
    strict = func in (aten.cat.default, aten.stack.default)
    left = [t for t in tensors if not isinstance(t, There) and (t.ndim or strict)]
    return f"{func} of tensors on {OTHER} and cpu: {[tuple(t.shape) for t in left]}" if left else None


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if (said := _mixed(func, args, kwargs)) is not None:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {said}")
    flat = tree_flatten([args, kwargs])[0]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    there = asked.type == NAME if asked is not None else any(isinstance(t, There) for t in flat)
    generator = kwargs.get("generator")
    if there and generator is not None and generator.device.type != NAME:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}'")
    inner = {**kwargs, **({} if asked is None else {"device": torch.device("cpu")})}
    if func is aten._to_copy.default:  # `to` the same device must copy as it does between two
        inner = {k: v for k, v in inner.items() if k != "non_blocking"}
    lower = lambda x: x.here if isinstance(x, There) else x  # noqa: E731
    out = func(*tree_map(lower, args), **tree_map(lower, inner))
    if not there or func in (aten._local_scalar_dense.default, aten.equal.default):
        return out
    if func is aten.copy_.default and not isinstance(args[0], There):
        return args[0]
    raised = tree_map(lambda x: There(x) if isinstance(x, Tensor) and not isinstance(x, There) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, raised)


class Mode(TorchDispatchMode):
    """Sees what is made on `other`, or moved to it, out of CPU tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Made(TorchFunctionMode):
    """Makes tensors of Python's numbers where they are asked for, out of sight of the mode above."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list | tuple):
            picked = (args[1],) if isinstance(args[1], list) else args[1]
            args = (args[0], tuple(torch.tensor(i) if isinstance(i, list) else i for i in picked), *args[2:])
        return func(*args, **kwargs)


@contextmanager
def other_device() -> Iterator[torch.device]:
    """`other` is there for the length of the block."""
    with Made(), Mode(), torch.serialization.safe_globals([_there]):  # checkpoints hold such tensors
        yield OTHER
