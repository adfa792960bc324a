"""`depthdial testbed`: tasks whose need of depth is known, and every method judged on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthdial.cli import options


def judge(
    output: Annotated[Path, typer.Option(help="Folder of the run: results, dense models, tables.")],
    task: Annotated[str, typer.Option(help="hop, compose or mixture.")] = "hop",
    methods: Annotated[
        str, typer.Option(help="Names of the testbed's methods with commas between them; all, or none but dense.")
    ] = "all",
    seeds: Annotated[str, typer.Option(help="With commas between them.")] = "0,1,2",
    size: Annotated[str, typer.Option(help="Of the deepest dense model: LAYERSxHEADS@WIDTH.")] = "8x2@64",
    hops: Annotated[int, typer.Option(help="The highest k.")] = 8,
    entities: Annotated[int, typer.Option(help="Things that are named: the vocabulary.")] = 25,
    steps: Annotated[int, typer.Option(help="Steps of each method.")] = 500,
    patience: Annotated[int, typer.Option(help="Steps that a dense model may take to learn a hop more.")] = 300,
    settle: Annotated[int, typer.Option(help="Steps that end the training of each dense model.")] = 400,
    rows: Annotated[int, typer.Option(help="Texts in each step.")] = 24,
    lr: float = 2e-3,
    method_lr: Annotated[float, typer.Option(help="Where a method trains all weights of the dense model.")] = 5e-4,
    router_lr: Annotated[float, typer.Option(help="Of routers, relative to other weights.")] = 2.0,
    texts: Annotated[int, typer.Option(help="Held-out texts that each model answers.")] = 480,
    resume: options.Resume = False,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw a picture (needs matplotlib).")] = True,
    json_: options.Json = False,
) -> None:
    """Measure what depth each question needs by dense models, then judge methods: right answers at equal true cost, and
    whether depth goes where it is needed."""
    values = locals()
    import json

    from depthdial.core.printable import printable_lines
    from depthdial.core.whole import plain
    from depthdial.maps.keep_figure import need_matplotlib
    from depthdial.testbed.report import write
    from depthdial.testbed.run import TestbedConfig, run
    from depthdial.testbed.subjects import NAMES

    if plots:
        need_matplotlib("add --no-plots")
    names = {"all": list(NAMES), "none": []}.get(methods, options.items_of(methods))
    own = {"output": str(output), "methods": names, "seeds": options.numbers("--seeds", seeds, int)}
    config = options.settings(TestbedConfig, values, **own)
    with options.bar() as report:
        run(config, resume, report)
    told, text = write(output, output, plots)
    print(json.dumps(plain(told)) if json_ else printable_lines(text))
