"""`depthdial headroom`: what routing could win on a model, in minutes, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthdial.cli import options


def headroom(
    model: Annotated[str, typer.Argument(help="Short name, Hugging Face hub id, folder or GGUF file of a base.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help=".txt, paragraphs with an empty line between, or .jsonl (`messages`, or `prompt` and `answer`). "
            "[default: the package's own 3,000 tokens of prose]"
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="How many tokens are read, the first ones.")] = 2048,
    length: Annotated[int, typer.Option(help="Most tokens of one text.")] = 256,
    budgets: Annotated[str, typer.Option(help="True costs relative to dense.")] = "0.9,0.85,0.75",
    output: Annotated[
        Path | None, typer.Option(help="Folder: results.json, .md, .png, and what a resumed run needs.")
    ] = None,
    resume: options.Resume = False,
    dtype: options.Dtype = "bfloat16",
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Say what routing could win: static layers, how early words are settled, and oracles beside noise."""
    from json import dumps

    from depthdial.core.extras import there
    from depthdial.core.printable import printable_lines
    from depthdial.core.whole import write_text
    from depthdial.evaluate.headroom.picture import draw
    from depthdial.evaluate.headroom.run import Options, run
    from depthdial.evaluate.headroom.table import tables

    asked = Options(
        model=model, data=data, tokens=tokens, length=length, budgets=options.numbers("--budgets", budgets, float),
        output=output, resume=resume, dtype=dtype, device=device,
    )  # fmt: skip
    with options.bar() as report:
        results = run(asked, report)
    text = tables(results)
    if output is not None:
        write_text(output / "results.md", text + "\n")
        if there("matplotlib"):
            draw(results, output / "results.png")
    print(dumps(results, allow_nan=False) if json else printable_lines(text))
