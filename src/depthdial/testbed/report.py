"""A run's judgements as files: report.json, report.md and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depthdial.core.whole import write_json, write_text
from depthdial.testbed.picture import draw
from depthdial.testbed.table import judged, tables


def write(folder: Path, output: Path, plots: bool) -> tuple[dict[str, Any], str]:
    """Judge the run in `folder` and write what comes of it into `output`; returns it, and its tables. Raises ValueError
    as `judged`, and without matplotlib where plots are asked for."""
    told = judged(folder)
    text = tables(told)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "report.json", told)
    picture = f"\n\n![depth]({draw(told, output / 'depth.png').name})" if plots else ""
    write_text(output / "report.md", f"{text}{picture}\n")
    return told, text
