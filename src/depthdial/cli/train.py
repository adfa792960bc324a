"""`depthdial train`: a base model and text files in, a plug-in out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from depthdial.cli import options

Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="Files (.jsonl, .json, .csv, .tsv, .txt, also .gz or .zst; .parquet), folders, or hub data sets "
        "(owner/name, :CONFIG, #SPLIT); repeatable.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at a row of the data that fits no shape, instead of leaving it out.")
]
Fields = Annotated[
    list[str], typer.Option("--set", help="A hyper-parameter of the method, as name=value (see `depthdial methods`).")
]


def train(
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder of the plug-in; checkpoints live in it, too.")],
    model: options.Model = options.MODEL,
    method: Annotated[str, typer.Option(help="One of `depthdial methods`.")] = "flexidepth",
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
    lowest: Annotated[float | None, typer.Option(help="Lowest budget the plug-in is trained for.")] = None,
    highest: Annotated[float, typer.Option(help="Highest budget the plug-in is trained for.")] = 0.98,
    objective: Annotated[
        str, typer.Option(help="distill: KL to the same model at full depth. lm: cross-entropy, as in the paper.")
    ] = "distill",
    prompt_budget: Annotated[
        str, typer.Option(help="1.0: prompts are read in full and what is written is trained. same: the papers' form.")
    ] = "1.0",
    same_share: Annotated[
        float, typer.Option(help="Share of rows in the papers' form all the same, so that one plug-in serves both.")
    ] = 0.3,
    on_policy: Annotated[
        float, typer.Option(help="Share of the other rows that are answers which the model in training wrote itself.")
    ] = 0.0,
    refresh: Annotated[int, typer.Option(help="Steps after which the model writes new text, with --on-policy.")] = 200,
    divergence: Annotated[
        str, typer.Option(help="From the base, for distill: forward or reverse (KL), or js (Jensen-Shannon).")
    ] = "forward",
    copies: Annotated[int, typer.Option(help="Budgets that a row is written at, for one reading by the base.")] = 4,
    shortlist: Annotated[
        int, typer.Option(help="Likeliest tokens at each place that students are compared at; 0: the whole vocabulary.")
    ] = 64,
    steps: int = 1000,
    fit_steps: Annotated[int, typer.Option(help="Steps of fitting adapters layer by layer first.")] = 150,
    batch: Annotated[int, typer.Option(help="Rows per micro-batch.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Micro-batches per optimizer step.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens per packed row.")] = 256,
    lr: float = 1e-3,
    strict: Strict = False,
    drop_source: Annotated[
        list[str], typer.Option(help="Leave out rows whose `source` matches this pattern; repeat for more.")
    ] = [],  # noqa: B006
    start_from: Annotated[
        str | None, typer.Option(help="A plug-in that has this method's parts, to start from.")
    ] = None,
    seed: int = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    heldout_tokens: Annotated[int, typer.Option(help="Held-out tokens that the dial's curve is measured on.")] = 16384,
    generated_tokens: Annotated[
        int, typer.Option(help="Tokens generated per point of the curve for generated text; 0: no such curve.")
    ] = 2048,
    dtype: Annotated[str, typer.Option(help="Of the base: bfloat16 or float32.")] = "bfloat16",
    device: str = "auto",
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the frozen pieces: worth it for long runs.")
    ] = False,
    resume: options.Resume = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object about the plug-in at the end.")] = False,
) -> None:
    """Train a plug-in: routers and adapters over the frozen model, for every budget between lowest and highest."""
    values = locals()
    import json

    from depthdial.cli.streams import log
    from depthdial.methods import METHODS
    from depthdial.models.checkpoint import read
    from depthdial.train import processes
    from depthdial.train.config import TrainConfig
    from depthdial.train.run import train as run

    log()
    fields = dict(parse_field(item) for item in set_)
    if alpha is not None:
        fields["alpha"], budget = alpha, None
    elif method in METHODS:  # an unknown one is refused below, with the list
        fields = {**METHODS[method].budgeted, **fields}
    if fixed_input:
        fields["fixed_input"] = True  # methods without routers refuse it
    if objective not in ("lm", "distill"):
        raise ValueError(f"objective must be lm or distill, not {objective!r}")
    config = options.settings(
        TrainConfig,
        values,
        data=tuple(data),
        output=str(output),
        fields=fields,
        budget=budget,
        prompt_budget=options.prompt_budget_of(prompt_budget) or 1.0,
        drop_sources=tuple(drop_source),
        compile=compile_,
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
