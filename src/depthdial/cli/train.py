"""`depthdial train`: a base model and text files in, a plug-in out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from depthdial.cli import options
from depthdial.train.config import TrainConfig

Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="Files (.jsonl, .json, .csv, .tsv, .txt, also .gz or .zst; .parquet), folders, or hub data sets "
        "(owner/name, :CONFIG, #SPLIT); repeatable.",
    ),
]
Fields = Annotated[
    list[str], typer.Option("--set", help="A hyper-parameter of the method, as name=value (see `depthdial methods`).")
]


@options.of(TrainConfig)
def train(
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder of the plug-in; checkpoints live in it, too.")],
    model: options.Model = options.MODEL,
    set_: Fields = [],  # noqa: B006 - typer reads it, nobody writes it
    fixed_input: Annotated[
        bool, typer.Option("--fixed-input", help="Feed routers a constant: the control that cannot see the token.")
    ] = False,
    budget: Annotated[
        float | None, typer.Option(help="True cost, relative to dense, that training holds and the plug-in recommends.")
    ] = 0.85,
    alpha: Annotated[
        float | None, typer.Option(help="Train with the paper's skip loss at this weight instead of holding a budget.")
    ] = None,
    prompt_budget: Annotated[
        str, typer.Option(help="1.0: prompts are read in full and what is written is trained. same: the papers' form.")
    ] = "1.0",
    drop_source: Annotated[
        list[str], typer.Option(help="Leave out rows whose `source` matches this pattern; repeat for more.")
    ] = [],  # noqa: B006
    resume: options.Resume = False,
    json_: options.Json = False,
    **values: Any,
) -> None:
    """Train a plug-in: routers and adapters over the frozen model, for every budget between lowest and highest."""
    import json

    from depthdial.cli.streams import log
    from depthdial.methods import METHODS
    from depthdial.models.checkpoint import read
    from depthdial.train import processes
    from depthdial.train.run import train as run

    log()
    fields = dict(parse_field(item) for item in set_)
    if alpha is not None:
        fields["alpha"], budget = alpha, None
    elif values["method"] in METHODS:  # an unknown one is refused below, with the list
        fields = {**METHODS[values["method"]].budgeted, **fields}
    if fixed_input:
        fields["fixed_input"] = True  # methods without routers refuse it
    config = TrainConfig(
        model,
        tuple(data),
        str(output),
        fields=fields,
        budget=budget,
        prompt_budget=options.prompt_budget_of(prompt_budget) or 1.0,
        drop_sources=tuple(drop_source),
        **values,
    )
    folder = run(config, resume)
    if not processes.is_main():
        return
    plugin = read(folder)
    if json_:
        print(json.dumps({"plugin": str(folder), **plugin.to_json()}))
    else:
        curve = plugin.curves["text"]
        print(f"plug-in: {folder}   recommended budget {plugin.recommended}, range {curve.floor:.3f} to 1.0")
        print(f'try it:  depthdial generate "..." --model {model} --plugin {folder}')


def parse_field(item: str) -> tuple[str, Any]:
    """name=value, the value as JSON where it is JSON, else as text."""
    import json

    name, equals, value = item.partition("=")
    if not equals or not name:
        raise ValueError(f"--set {item!r} is not name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
