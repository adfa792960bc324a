"""`depthdial bench`: how fast a model runs here, dense and adaptive, beside others and the machine's limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthdial.cli import options
from depthdial.core.printable import printable_lines

if TYPE_CHECKING:
    from depthdial.core.dial import PromptBudget

Option = typer.Option
PeerPython = Annotated[list[str], Option(help="Where a peer is installed, as NAME=PATH of its Python; repeatable.")]


def bench(
    model: options.Model = options.MODEL,
    plugin: options.Plugin = "default",
    budgets: Annotated[str, Option(help="True costs of what adaptive rows write.")] = "0.85,0.75",
    prompt_budget: Annotated[
        str | None,
        Option(
            help="How prompts are read, with commas: at a true cost, or same (as --budgets). Rows of prefill have "
            "each, texts that decode the first. [default: 1.0,same]"
        ),
    ] = None,
    batches: Annotated[str | None, Option(help="Texts that decode together. [default: 1,4,16,64]")] = None,
    prefill: Annotated[
        str | None,
        Option(
            help="Lengths of prompts whose time to the first token is measured, tokens; empty: none. "
            "[default: 512,2048,8000, or what the context holds]"
        ),
    ] = None,
    prompt_tokens: Annotated[int | None, Option(help="Of the texts that decode. [default: 32]")] = None,
    new_tokens: Annotated[int | None, Option(help="Tokens that each of them gets. [default: 64]")] = None,
    repeats: Annotated[int | None, Option(help="Interleaved; the table has their median. [default: 5]")] = None,
    lossless: Annotated[bool, Option("--lossless", help="Also measure lossless decoding.")] = False,
    int8: Annotated[
        bool, Option("--int8", help="Also measure adaptive rows with int8 weights; dense int8 is there anyway.")
    ] = False,
    random: Annotated[str | None, Option(help="Plug-in of random skipping. [default: one made on the spot]")] = None,
    static: Annotated[str | None, Option(help="Plug-in of static layers, measured at the same cost.")] = None,
    peers: Annotated[str, Option(help="Other engines: llama-cpp, vllm, economize, tide.")] = "",
    peer_python: PeerPython = [],  # noqa: B006 - typer reads it, nobody writes it
    text: Annotated[Path | None, Option(help="File that the prompts are taken from. [default: built in]")] = None,
    compiled: Annotated[
        bool, Option("--compiled/--no-compiled", help="Hugging Face compiled with a static cache, too: takes minutes.")
    ] = True,
    explain: Annotated[bool, Option("--explain", help="Show from where on skipping pays here.")] = False,
    quick: Annotated[
        bool, Option("--quick", help="By default batch 1, prefill 512, 3 repeats of 32 tokens; nothing compiled.")
    ] = False,
    dtype: options.Dtype = "bfloat16",
    device: options.Device = "auto",
    allow_other_weights: options.OtherWeights = False,
    seed: Annotated[int, Option(help="Of the random rows.")] = 0,
    json_: options.Json = False,
    output: Annotated[Path | None, Option(help="Keep the JSON here, and a picture beside it.")] = None,
) -> None:
    """Measure speed: one table of all engines, with true costs and the ideal, from interleaved repeats."""
    values = locals()
    import contextlib
    import json
    import sys

    from depthdial.core.lock import check_replaceable
    from depthdial.evaluate.speed.bench import bench as measure
    from depthdial.evaluate.speed.options import SpeedOptions
    from depthdial.evaluate.speed.table import break_even_lines, machine_lines, speed_table
    from depthdial.maps.tasks import read_text

    if output is not None and output.suffix != ".json":
        raise ValueError(f"--output {output} must end in .json; the picture goes beside it as .png")
    if output is not None:
        check_replaceable(output, '"what": "speed"', output.with_suffix(".png"))
    usual = {"batches": "1,4,16,64", "prefill": "512,2048,8000", "prompt_tokens": 32, "new_tokens": 64, "repeats": 5}
    usual |= {"batches": "1", "prefill": "512", "new_tokens": 32, "repeats": 3} if quick else {}
    defaults = {name: value if values[name] is None else values[name] for name, value in usual.items()}
    benchmark = options.settings(
        SpeedOptions,
        values,
        **defaults | {name: options.numbers(f"--{name}", defaults[name], int) for name in ("batches", "prefill")},
        plugin=options.plugin_of(plugin),
        budgets=options.numbers("--budgets", budgets, float),
        prompt_budgets=None if prompt_budget is None else tuple(prompt_budgets(prompt_budget)),
        unasked=frozenset(name for name in ("prefill", "prompt_tokens", "new_tokens") if values[name] is None),
        compiled=compiled and not quick,
        peers=tuple(options.items_of(peers)),
        peer_pythons=dict(_python(item) for item in peer_python),
        text=None if text is None else read_text(text),
    )
    # whatever a library prints must not get between the results
    with contextlib.redirect_stdout(sys.stderr), options.bar() as report:
        results = measure(benchmark, report, explain)
    if output is not None:
        _keep(results, output)
    if json_:
        print(json.dumps(results, allow_nan=False))
        return
    print(printable_lines(f"{machine_lines(results)}\n\n{speed_table(results)}"))
    if explain:
        print("", break_even_lines(results["break_even"]), sep="\n")


def prompt_budgets(text: str) -> Iterator[PromptBudget]:
    """What --prompt-budget says, with commas. ValueError for what is no cost and not same."""
    for item in options.items_of(text):
        if (value := options.prompt_budget_of(item)) is not None:
            yield value


def _python(item: str) -> tuple[str, str]:
    name, equals, path = item.partition("=")
    if not equals or not name or not path:
        raise ValueError(f"--peer-python {item!r} is not NAME=PATH")
    return name, path


def _keep(results: dict[str, Any], output: Path) -> None:
    """The JSON, whole or not at all, and the picture where matplotlib is there."""
    from depthdial.core.extras import there
    from depthdial.core.whole import write_json
    from depthdial.evaluate.speed.picture import draw

    write_json(output, results)
    if there("matplotlib"):
        draw(results, output.with_suffix(".png"))
