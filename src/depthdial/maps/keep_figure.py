"""Keep a figure on disk, whole or not at all: what every picture of this project ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depthdial.core.extras import need
from depthdial.core.printable import printable
from depthdial.core.whole import whole

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which people of any colour vision tell apart; for lines and groups, in this order."""


def need_matplotlib(or_else: str = "") -> None:
    """ValueError where matplotlib is not installed: to be asked before work starts."""
    need("matplotlib", "plots", "drawing", or_else)


def label(text: str) -> str:
    """A name of others as matplotlib shows it: no formula, no control character."""
    return printable(text).replace("$", r"\$")


def keep_figure(figure: Any, path: Path, dpi: int = 130) -> None:
    """Write a matplotlib figure as PNG beside `path` and rename it. Raises OSError where that cannot be done."""
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=dpi)
