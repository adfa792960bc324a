"""Training on several processes: who is who, sums over all of them, and each one's share of a batch.

Started by `torchrun` or `accelerate launch`, which tell it through the environment; alone, everything here is free.
What is told as `batch` and `accumulate` is the work of one optimizer step over all processes, so that a run gives the
same curve, and resumes, on any number of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor


def start(on_cpu: bool) -> None:
    """Join the other processes, if there are any."""
    if world() > 1 and not dist.is_initialized():
        PartialState(cpu=on_cpu)


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Is this the process that writes files and shows progress?"""
    return rank() == 0


def own_gpu(device: str, on_cpu: bool) -> str:
    """The device of this process: of several on one machine, each has a GPU of its own."""
    return device if on_cpu or world() == 1 else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def wait() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def total(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor (fp32, one device) by its sum over all processes, in place and in one message."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def any_process(vote: bool, device: torch.device | str = "cpu") -> bool:
    """Does any process ask?"""
    if world() == 1:
        return vote
    flag = torch.tensor(float(vote), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def share(batch: int, accumulate: int) -> tuple[int, int]:
    """(rows of a micro-batch, micro-batches of a step) of one process, so that all together do `batch` * `accumulate`.

    Raises ValueError, in one line, where the work cannot be divided evenly.
    """
    many = world()
    if batch % many == 0:  # before the other way: what is reduced over a pass of all processes stays the same
        return batch // many, accumulate
    if accumulate % many == 0:
        return batch, accumulate // many
    if batch * accumulate % many == 0:
        return batch * accumulate // many, 1
    raise ValueError(
        f"{batch} x {accumulate} rows a step cannot be shared by {many} processes; "
        "choose --batch or --accumulate divisible by their number"
    )


def parts(batch: int, accumulate: int) -> tuple[int, int]:
    """(items that each micro-batch is cut into, items of a step of one process): as `share`, where a micro-batch must
    not be mixed with another. Raises ValueError as `share`."""
    many = world()
    share(batch, accumulate)
    # before the smallest: what is reduced over a pass of all processes stays the same
    sizes = [n for n in (many, *range(1, batch + 1)) if batch % n == 0 and n * accumulate % many == 0]
    return sizes[0], sizes[0] * accumulate // many
