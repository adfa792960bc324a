"""Keep a figure on disk, whole or not at all: what every picture of this project ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depthdial.core.whole import whole


def keep_figure(figure: Any, path: Path, dpi: int = 130) -> None:
    """Write a matplotlib figure as PNG beside `path` and rename it. Raises OSError where that cannot be done."""
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=dpi)
