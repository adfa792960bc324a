"""`depthdial report`: run folders of `depthdial pretrain`, or one of `depthdial testbed`, to a table and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthdial.core.printable import printable_lines


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold such folders.")],
    output: Annotated[Path, typer.Option(help="Folder for report.md, report.json and the plots.")],
    baseline: Annotated[str, typer.Option(help="The kind of run that others are compared with.")] = "dense",
    plots: Annotated[
        bool, typer.Option("--plots/--no-plots", help="Draw curves and densities (needs matplotlib).")
    ] = True,
) -> None:
    """Compare pre-training runs: held-out loss with intervals over seeds, layers executed, density, speed."""
    from depthdial.maps.keep_figure import need_matplotlib

    if plots:
        need_matplotlib("add --no-plots")

    import torch

    from depthdial.core.lock import check_replaceable
    from depthdial.core.whole import write_json, write_text
    from depthdial.evaluate.run_plot import draw_runs
    from depthdial.evaluate.runs import compare, read_runs, runs_table
    from depthdial.evaluate.speed.machine import facts
    from depthdial.testbed.report import write
    from depthdial.testbed.table import is_run

    if any(is_run(folder) for folder in runs):
        if len(runs) > 1:
            raise ValueError("a run of the testbed is reported alone; give its folder and no other")
        print(printable_lines(write(runs[0], output, plots)[1]))
        return
    what = "pre-training runs compared"
    own = [output / name for name in ("report.json", "report.md", "loss.png", "density.png")]
    check_replaceable(own[0], f'"what": "{what}"', *own[1:])
    records = read_runs(runs)
    groups = compare(records, baseline)
    output.mkdir(parents=True, exist_ok=True)
    text = runs_table(groups, baseline)
    data = {
        "what": what,
        **facts(torch.device("cpu")),  # of the report: runs may come from several machines
        "baseline": baseline,
        "groups": groups,
        "runs": {run.name: run.results for run in records},
    }
    write_json(output / "report.json", data)
    pictures = draw_runs(records, output) if plots else []
    links = "".join(f"\n![{path.stem}]({path.name})\n" for path in pictures)
    write_text(output / "report.md", f"{text}\n{links}")
    print(printable_lines(text))
