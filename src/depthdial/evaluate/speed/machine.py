"""Facts of a run: the machine, the versions, the commit. No place of this machine's files is among them."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from depthdial import __version__

_WIDTHS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def facts(device: torch.device) -> dict[str, Any]:
    """Date, commit (null outside of a git checkout), machine and versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(Path(__file__).parent),
        "machine": {
            "processor": processor(),
            "features": features(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gigabytes": memory(),
            "device": device.type,
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
        "versions": {
            "depthdial": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def commit(folder: Path) -> str | None:
    """The commit of the checkout that holds `folder`, marked where files differ from it; None without git."""
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")


def processor() -> str:
    """The processor's name as the system tells it."""
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def features() -> list[str]:
    """Wide instructions that decide what a kernel can do; empty where the system does not tell."""
    flags = set(" ".join(_cpuinfo("flags")[:1]).split())
    return [name for name in _WIDTHS if name in flags]


def memory() -> float | None:
    """Gigabytes of main memory."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _cpuinfo(key: str) -> list[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return [value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key]
