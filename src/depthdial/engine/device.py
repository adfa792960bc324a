"""Is a device still there? Some of its errors stick: every later call fails, until the process is another one."""

from __future__ import annotations

import torch


class DeviceLost(RuntimeError):
    """The device answers no more; nothing but a new process helps."""


def alive(device: torch.device) -> bool:
    """Can a number still be made on `device` and read from it? A device that is merely full is alive."""
    if device.type == "cpu":
        return True
    try:
        return float(torch.zeros(1, device=device).add_(1)) == 1.0
    except torch.OutOfMemoryError:
        return True
    except Exception:  # whatever it raises: it is of no use
        return False
