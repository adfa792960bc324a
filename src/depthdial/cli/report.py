"""`depthdial report`: run folders of `depthdial pretrain` to a table and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold such folders.")],
    output: Annotated[Path, typer.Option(help="Folder for report.md, report.json and the plots.")],
    baseline: Annotated[str, typer.Option(help="The run or group that others are compared with.")] = "dense",
    plots: Annotated[
        bool, typer.Option("--plots/--no-plots", help="Draw curves and densities (needs matplotlib).")
    ] = True,
) -> None:
    """Compare pre-training runs: held-out loss with intervals over seeds, layers executed, density, speed."""
    import json

    from depthdial.evaluate.run_plot import draw_runs
    from depthdial.evaluate.runs import compare, read_runs, table

    found = read_runs(runs)
    groups = compare(found, baseline)
    output.mkdir(parents=True, exist_ok=True)
    text = table(groups, baseline)
    (output / "report.json").write_text(json.dumps(groups, indent=1) + "\n")
    pictures = draw_runs(found, output) if plots else []
    links = "".join(f"\n![{path.stem}]({path.name})\n" for path in pictures)
    (output / "report.md").write_text(f"{text}\n{links}")
    print(text)
