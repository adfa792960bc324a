"""`depthdial pretrain`: text files in, a model that skips from its first training step on out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthdial.cli import options
from depthdial.cli.train import Data, Strict, parse_field

Fields = Annotated[
    list[str],
    typer.Option("--field", "--set", help="A hyper-parameter of the method, as name=value (see `depthdial methods`)."),
]


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
    density: Annotated[
        float | None, typer.Option(help="Share of tokens that run each routed layer; the method's own by default.")
    ] = None,
    field: Fields = [],  # noqa: B006 - typer reads it, nobody writes it
    tokenizer: Annotated[
        str, typer.Option(help="A name or folder, or train:SIZE; by default that of --shards, or train:4096.")
    ] = "",
    shards: Annotated[
        str | None, typer.Option(help="Folder of the tokenised data, to share between runs; default OUTPUT/shards.")
    ] = None,
    strict: Strict = False,
    steps: int = 1000,
    batch: Annotated[int, typer.Option(help="Rows per micro-batch, over all processes.")] = 32,
    accumulate: Annotated[int, typer.Option(help="Micro-batches per optimizer step.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens per row.")] = 256,
    optimizer: Annotated[str, typer.Option(help="adamw or adafactor (the SkipLayer paper's).")] = "adamw",
    lr: Annotated[float, typer.Option(help="For adafactor about ten times as high: it is relative there.")] = 1e-3,
    router_lr: Annotated[float, typer.Option(help="Of routers, relative to --lr.")] = 1.0,
    warmup: Annotated[float, typer.Option(help="Share of steps.")] = 0.05,
    weight_decay: float = 0.1,
    clip: Annotated[float, typer.Option(help="Largest norm of a step's gradient.")] = 1.0,
    seed: int = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    eval_every: Annotated[int, typer.Option(help="Steps between measurements of held-out text.")] = 250,
    heldout: Annotated[float, typer.Option(help="Share of documents held out.")] = 0.01,
    heldout_tokens: Annotated[int, typer.Option(help="Held-out tokens measured at most.")] = 65536,
    dtype: Annotated[str, typer.Option(help="bfloat16 (autocast over fp32 weights), float32, or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    gather: Annotated[
        str, typer.Option(help="Compute layers for the tokens that run them only: on, off, or auto (measured).")
    ] = "auto",
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile what is free of routing: worth it for long runs.")
    ] = False,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Under torchrun: shard the model (FSDP2), not copy it.")] = False,
    resume: options.Resume = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the results as one JSON object in the last line.")
    ] = False,
) -> None:
    """Train a model whose layers are skipped from the first step; under torchrun on several processes, too."""
    values = locals()
    import json

    from depthdial.cli.streams import log
    from depthdial.models.ahead import config_ahead
    from depthdial.models.own import own_name
    from depthdial.train import processes
    from depthdial.train.pretrain import pretrain as run
    from depthdial.train.pretrain_config import PretrainConfig

    log(quiet=not processes.is_main())
    for name, value, choices in (
        ("optimizer", optimizer, ("adamw", "adafactor")),
        ("dtype", dtype, ("auto", "float32", "bfloat16")),
        ("gather", gather, ("auto", "on", "off")),
    ):
        if value not in choices:
            raise ValueError(f"--{name} must be one of {', '.join(choices)}, not {value!r}")
    if not size and start is None:
        raise ValueError("give the --size of a fresh model, or the folder of one to --start from")
    fields = dict(parse_field(item) for item in field)
    own = {"data": tuple(data), "output": str(output), "fields": fields, "compile": compile_}
    own["method"] = method or ("skiplayer" if start is None else own_name(config_ahead(start)))
    config = options.settings(PretrainConfig, values, **own)
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
