"""`depthdial evaluate`: what a budget costs in quality, on tasks of lm-evaluation-harness or in what is written, beside
its baselines."""

from __future__ import annotations

import os
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from depthdial.cli import options
from depthdial.core.printable import printable_lines

if TYPE_CHECKING:
    from depthdial.evaluate.subjects import Int8

Option = typer.Option
Draw = Callable[[dict[str, Any], Path], None]
TASKS = "arc_easy,arc_challenge,boolq,hellaswag,lambada_openai,openbookqa,piqa,winogrande"
Plugins = Annotated[
    list[str],
    Option(
        help="default (the one shipped for the model), none, or a folder. NAME=DIR adds a baseline, such as random or "
        "static with trained adapters: it runs each task at the true cost that the plug-in had on it. Repeatable."
    ),
]


def evaluate(
    model: options.Model = options.MODEL,
    plugin: Plugins = ["default"],  # noqa: B006 - typer reads it, nobody writes it
    written: Annotated[
        str | None,
        Option(
            metavar="default|FILE",
            help="Instead of tasks: answers to prompts, judged by the untouched base. default: the 400 short ones that "
            "come along; or a .jsonl (`prompt` or `messages`, `task`) or .txt file, one prompt a line.",
        ),
    ] = None,
    max_tokens: Annotated[int, Option(help="With --written: most tokens of an answer.")] = 120,
    tasks: Annotated[str, Option(help="Tasks and groups of the harness, with commas between them.")] = TASKS,
    budgets: Annotated[str, Option(help="True costs relative to dense; the base (1.0) always runs.")] = "1.0,0.85,0.75",
    limit: Annotated[
        str | None,
        Option(
            help="Items of each task, the first ones (a group's are spread over its tasks), or below 1 their share; "
            "with --written prompts, of each kind alike. [default: all]"
        ),
    ] = None,
    fewshot: Annotated[int | None, Option(help="Examples before each item. [default: the task's own number]")] = None,
    data_dir: Annotated[
        Path | None, Option(help="Folder with files such as hellaswag_val.jsonl.gz. [default: the Hugging Face hub]")
    ] = None,
    output: Annotated[
        Path | None,
        Option(
            help="Folder: results.json, .md, .png (with --written .html, too: all texts side by side), and what a "
            "resumed run needs."
        ),
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Go on with the run in --output; tasks, budgets and baselines can be added.")
    ] = False,
    early_exit: Annotated[
        bool, Option("--early-exit/--no-early-exit", help="Also measure the last layers dropped for all tokens.")
    ] = True,
    prompt_budget: options.PromptBudget = None,
    where: Annotated[
        bool,
        Option("--where", help="Also tell where skipping hurts: in the prompt alone, in the answer alone, in both."),
    ] = False,
    int8: Annotated[
        str, Option(metavar="dense|all|none", help="With weights in int8: the base, or the plug-in's budgets, too.")
    ] = "dense",
    allow_code_execution: Annotated[
        bool,
        Option(
            "--allow-code-execution",
            help="Run programs that the model wrote (HumanEval), each in a process that can neither write files nor "
            "use the network nor start others, for at most 5 seconds and 1 GiB. Linux only.",
        ),
    ] = False,
    batch: Annotated[int, Option(help="Texts that run together.")] = 64,
    dtype: options.Dtype = "bfloat16",
    device: options.Device = "auto",
    allow_other_weights: options.OtherWeights = False,
    json: options.Json = False,
) -> None:
    """Measure quality: scores, what is retained of the base, true cost and depth, with paired intervals."""
    from depthdial.core.extras import there
    from depthdial.core.whole import write_text
    from depthdial.evaluate.subjects import Lineup, Setup

    own, baselines = _plugins(plugin)
    if int8 not in ("dense", "all", "none"):
        raise ValueError(f"--int8 is dense, all or none, not {int8!r}")
    skipped, read = options.numbers("--budgets", budgets, float), options.prompt_budget_of(prompt_budget)
    lineup = Lineup(own, skipped, baselines, early_exit, cast("Int8", int8), where)
    setup = Setup(model, dtype, device, allow_other_weights, batch, prompt_budget=read)
    run = {"limit": None if limit is None else items(limit), "output": output, "resume": resume}
    run |= {"model": model, "lineup": lineup, "setup": setup}
    if written is not None:
        results, text, page, draw = _written(prompts=written, max_tokens=max_tokens, **run)
    else:
        names = options.items_of(tasks)
        run |= {"fewshot": fewshot, "data_dir": data_dir, "run_code": allow_code_execution}
        results, text, page, draw = _tasks(tasks=names, **run)
    if output is not None:
        write_text(output / "results.md", text + "\n")
        if page is not None:
            write_text(output / "results.html", page)
        if there("matplotlib"):
            draw(results, output / "results.png")
    print(dumps(results, allow_nan=False) if json else printable_lines(text))


def _tasks(**run: Any) -> tuple[dict[str, Any], str, str | None, Draw]:
    """Results, tables, no page, and what draws the picture."""
    from depthdial.core.extras import need

    for package in ("lm_eval", "datasets", "pyarrow"):
        need(package, "evaluate", "evaluation")

    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness draws a bar for each task; ours tells of all
    from depthdial.evaluate.harness import run as harness
    from depthdial.evaluate.harness.picture import draw
    from depthdial.evaluate.harness.table import tables

    evaluation = harness.TaskOptions(**run)
    with options.bar() as report:
        results = harness.run(evaluation, report)
    return results, tables(results), None, draw


def _written(**run: Any) -> tuple[dict[str, Any], str, str | None, Draw]:
    """Results, tables, the page where all texts are read, and what draws the picture."""
    from depthdial.core.extras import need

    need("sacrebleu", "evaluate", "chrF")
    from depthdial.evaluate.written import run as prose
    from depthdial.evaluate.written.page import texts_page
    from depthdial.evaluate.written.picture import draw
    from depthdial.evaluate.written.table import tables

    evaluation = prose.WrittenOptions(**run)
    with options.bar() as report:
        results, texts = prose.run(evaluation, report)
    return results, tables(results), texts_page(results, texts), draw


def items(limit: str) -> float:
    """A number of items, or below 1 a share of them. ValueError for what is no number."""
    try:
        number = float(limit)
        return int(number) if number.is_integer() else number
    except (ValueError, OverflowError):
        raise ValueError(f"--limit {limit!r} is no number of items and no share of them, such as 0.5") from None


def _plugins(values: list[str]) -> tuple[str | None, dict[str, str]]:
    """The plug-in, and the baselines by name."""
    baselines: dict[str, str] = {}
    own = [item for item in values if "=" not in item]
    for item in values:
        name, equals, path = item.partition("=")
        if equals and not (name and path):
            raise ValueError(f"--plugin {item!r} is not NAME=DIR")
        if equals and name in baselines:
            raise ValueError(f"--plugin names {name!r} twice; choose another name")
        if equals:
            baselines[name] = path
    if len(own) > 1:
        raise ValueError(f"--plugin {own[1]} is a second plug-in; give it as a baseline, NAME={own[1]}")
    main = own[0] if own else "default"
    return None if main == "none" else main, baselines
