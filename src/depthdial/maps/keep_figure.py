"""Keep a figure on disk, whole or not at all: what every picture of this project ends with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def keep_figure(figure: Any, path: Path, dpi: int = 130) -> None:
    """Write a matplotlib figure as PNG beside `path` and rename it. Raises OSError where that cannot be done."""
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png", dpi=dpi)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
