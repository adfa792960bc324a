"""The record of a benchmark: the facts of the run, and JSON on disk that is there whole or not at all."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from depthdial import __version__
from heldout.data import Held


def about(args: argparse.Namespace, held: Held) -> dict[str, Any]:
    """Facts of this run; no place of this machine's files among them."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = bool(subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout.strip())
    shown = ("budgets", "tokens", "length", "batch", "seed", "tolerance", "dtype", "compile")
    return {
        "what": "quality on held-out text against true cost",
        "complete": False,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit + ("-dirty" if dirty else ""),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() and args.device != "cpu" else None,
        },
        "versions": {
            "depthdial": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "model": Path(args.model).name,
        "arguments": {name: getattr(args, name) for name in shown},
        "text": {"kinds": held.told, "groups": {}},
        "base": {},
        "subjects": [],
        "routes": {},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
