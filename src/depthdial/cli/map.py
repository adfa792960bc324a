"""`depthdial map`: how many layers each token of a set of texts used, as a data set, as a summary and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthdial.cli import options

app = typer.Typer(
    invoke_without_command=True,
    no_args_is_help=True,
    help="Map texts: layers per token as a data set. `summary` and `html` read what this wrote.",
)

Map = Annotated[Path, typer.Argument(metavar="DIR", help="Folder written by `depthdial map`, or one Parquet file.")]
Chat = Annotated[
    bool | None,
    typer.Option("--chat/--raw", help="Put prompts into the chat template, or not. [default: --chat for --tasks]"),
]


@app.callback()
def make(
    context: typer.Context,
    output: Annotated[Path | None, typer.Option(help="Folder of the map.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help=".jsonl (`prompt`, `messages`, `task`, `answer`) or .txt, one prompt a line.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Instead of --prompts: all, or some of copy,summarise,continue,repeat,add,multiply"),
    ] = None,
    count: Annotated[int, typer.Option(help="With --tasks: prompts of each.")] = 100,
    text: Annotated[Path | None, typer.Option(help="With --tasks: passages to use, an empty line between.")] = None,
    seed: Annotated[int, typer.Option(help="With --tasks: the same seed gives the same prompts.")] = 0,
    model: options.Model = options.MODEL,
    plugin: options.Plugin = "default",
    budget: Annotated[
        float | None,
        typer.Option(help="True cost of answers, relative to dense. [default: what the plug-in recommends]"),
    ] = None,
    prompt_budget: options.PromptBudget = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Most tokens to generate where a prompt brings no answer; 0 maps prompts alone.")
    ] = 64,
    scores: Annotated[bool, typer.Option("--scores", help="Record the routers' scores, too.")] = False,
    alternatives: Annotated[int, typer.Option(help="Record this many of the base's likeliest tokens.")] = 0,
    base: Annotated[
        bool, typer.Option("--base/--no-base", help="Run the base, too, for entropy and surprisal.")
    ] = True,
    chat: Chat = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts longer than the context instead of refusing them.")
    ] = False,
    shard: Annotated[str, typer.Option(help="i/n: every n-th part from the i-th. Shards may share a folder.")] = "1/1",
    part_size: Annotated[int, typer.Option(help="Texts of one Parquet file.")] = 128,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of one pass.")] = 2048,
    licence: Annotated[str | None, typer.Option("--license", help="Of the texts, for the card.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted map in --output.")] = False,
    dtype: options.Dtype = "bfloat16",
    device: options.Device = "auto",
    allow_other_weights: options.OtherWeights = False,
    json: options.Json = False,
) -> None:
    """Map prompts: a Parquet data set of layers used, run masks, and what the base expected, for each token."""
    if context.invoked_subcommand is not None:
        return
    import contextlib
    import json as json_
    import sys

    from depthdial.maps.store import need_pyarrow

    need_pyarrow()
    if output is None:
        raise ValueError("where should the map go? give a folder with --output")
    if (prompts is None) == (tasks is None):
        raise ValueError("give --prompts FILE or --tasks NAMES, one of the two")

    read = options.prompt_budget_of(prompt_budget)
    from depthdial.maps.folder import MapFolder, map_identity
    from depthdial.maps.mapping import Mapper, MapSettings, MapShard
    from depthdial.maps.mapping import make as run
    from depthdial.maps.prompts import PromptFile
    from depthdial.maps.tasks import TASKS, Tasks, read_text
    from depthdial.models import load
    from depthdial.models.fingerprint import fingerprint

    turn = MapShard.parse(shard)
    settings = MapSettings(
        max_new_tokens, tasks is not None if chat is None else chat, truncate, scores, base, alternatives,
        batch_tokens, part_size,
    )  # fmt: skip
    if prompts is not None:
        source = PromptFile(prompts)
    else:
        names = TASKS if tasks == "all" else options.items_of(tasks or "")
        source = Tasks(names, count, seed, None if text is None else read_text(text))
    with contextlib.redirect_stdout(sys.stderr):
        loaded_model, tokenizer = load(model, options.plugin_of(plugin), budget, dtype, device, allow_other_weights)
        if tasks is not None and chat is None and not tokenizer.chat_template:
            settings = settings.raw()
        mapper = Mapper(loaded_model, tokenizer, model, budget, settings, read)
        identity = map_identity(
            mapper.recorder.facts, fingerprint(loaded_model).weights, source.identity, settings.identity
        )
        parts = -(-source.total // part_size)
        folder = MapFolder(output, identity, resume, turn.parts(parts))
        with options.bar() as report:
            totals = run(source, mapper, folder, turn, licence, report)
    facts = {"output": str(output), **totals.to_json(), "parts_there": len(folder.parts), "parts_in_all": parts}
    if json:
        print(json_.dumps(facts))
        return
    mean = "" if facts["layers"] is None else f", {facts['layers']:.2f} of {mapper.llm.layers} layers a token"
    for name, what in (("prompt_cost", "prompts"), ("cost", "answers")):
        mean += "" if facts[name] is None else f", true cost of {what} {facts[name]:.3f}"
    print(f"{totals.texts} texts, {totals.tokens} tokens{mean} in {totals.seconds:.0f} s: {output}")
    if len(folder.parts) < parts:
        print(f"{len(folder.parts)} of {parts} parts are there; other shards have the rest")
    else:
        print(f"next: depthdial map summary {output}    depthdial map html {output} -o map.html")


@app.command()
def summary(
    map_: Map,
    view: Annotated[str, typer.Option(help="A token's layers: of the pass that wrote it, or that read it.")] = "wrote",
    scope: Annotated[str, typer.Option(help="Which tokens: answer, prompt or all.")] = "answer",
    output: Annotated[Path | None, typer.Option(help="Folder for summary.json and summary.png.")] = None,
    json: options.Json = False,
) -> None:
    """Say where depth goes: by task, place, token class, repetition, surprisal, side of "=", layer; with intervals."""
    import json as json_

    from depthdial.core.lock import check_replaceable
    from depthdial.core.whole import write_text
    from depthdial.maps.keep_figure import need_matplotlib
    from depthdial.maps.plot import draw
    from depthdial.maps.store import need_pyarrow
    from depthdial.maps.summary import summarise
    from depthdial.maps.table import tables

    need_pyarrow()
    if output is not None:
        need_matplotlib("leave --output out")
    if output is not None:
        check_replaceable(output / "summary.json", '"run_rate_by_task"', output / "summary.png")
    result = summarise(map_, view, scope)  # pyright: ignore[reportArgumentType] - it refuses other words
    text = json_.dumps(result.to_json(), indent=1)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        draw(result, output / "summary.png")
        write_text(output / "summary.json", text + "\n")
    if json:
        print(text)
        return
    from rich.console import Console

    console = Console(highlight=False)
    for part in tables(result):
        console.print(part)


@app.command()
def html(
    map_: Map,
    other: Annotated[Path | None, typer.Argument(metavar="[DIR2]", help="A second map, to compare with.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("map.html"),
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    limit: Annotated[int, typer.Option(help="Most texts on the page, evenly over the tasks.")] = 60,
) -> None:
    """Draw one self-contained page: tokens coloured by layers used, or two maps of the same prompts side by side."""
    from depthdial.core.lock import check_replaceable
    from depthdial.core.whole import write_text
    from depthdial.maps.html import MARK, map_page
    from depthdial.maps.store import read_map

    if output.is_dir() or not output.parent.is_dir():
        raise ValueError(f"{output} cannot be a page: name a file in a folder that is there")
    check_replaceable(output, MARK)
    maps = [read_map(path) for path in (map_, other) if path is not None]
    text = map_page(maps, title, limit)
    write_text(output, text)
    print(f"{output}: {text.count('<article ')} texts, {output.stat().st_size / 1e6:.1f} MB")
