"""`depthdial pretrain`: text files in, a model that skips from its first training step on out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from depthdial.cli import options
from depthdial.cli.train import Data, parse_field
from depthdial.train.pretrain_config import PretrainConfig

Fields = Annotated[
    list[str],
    typer.Option("--field", "--set", help="A hyper-parameter of the method, as name=value (see `depthdial methods`)."),
]


@options.of(PretrainConfig)
def pretrain(
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder of the model; checkpoints live in it, too.")],
    size: Annotated[str, typer.Option(help="Of a fresh model: LAYERSxHEADS@WIDTH, such as 12x4@256.")] = "",
    start: Annotated[
        str | None,
        typer.Option(
            help="In place of --size: the folder of a model with a method of its own (`depthdial retrofit`), "
            "all of whose weights are trained."
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="One of `depthdial methods`. [default: skiplayer, or what --start has]")
    ] = None,
    field: Fields = [],  # noqa: B006 - typer reads it, nobody writes it
    resume: options.Resume = False,
    json_: options.Json = False,
    **values: Any,
) -> None:
    """Train a model whose layers are skipped from the first step; under torchrun on several processes, too."""
    import json

    from depthdial.cli.streams import log
    from depthdial.models.ahead import config_ahead
    from depthdial.models.own import own_name
    from depthdial.train import processes
    from depthdial.train.pretrain import pretrain as run

    log(quiet=not processes.is_main())
    if not size and start is None:
        raise ValueError("give the --size of a fresh model, or the folder of one to --start from")
    fields = dict(parse_field(item) for item in field)
    method = method or ("skiplayer" if start is None else own_name(config_ahead(start)))
    config = PretrainConfig(tuple(data), str(output), size, start, method, fields=fields, **values)
    results = run(config, resume)
    if not processes.is_main():
        return
    if json_:
        print(json.dumps({"model": str(output), **results}))
    else:
        print(
            f"model: {output}   held-out loss {results['loss']:.4f}   density {results['density']:.3f}   "
            f"{results['layers']:.2f} layers   {results['tokens_per_second']:.0f} tokens/s"
        )
