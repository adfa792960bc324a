"""`depthdial evaluate`: what a budget costs in quality, on tasks of lm-evaluation-harness or in what is written, beside
its baselines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from depthdial.core.printable import printable, printable_lines

if TYPE_CHECKING:
    from depthdial.evaluate.harness.run import Report
    from depthdial.evaluate.subjects import Int8, Lineup, Setup

Given = typer.Option
TASKS = "arc_easy,arc_challenge,boolq,hellaswag,lambada_openai,openbookqa,piqa,winogrande"
Plugins = Annotated[
    list[str],
    Given(
        help="default (the one shipped for the model), none, or a folder. NAME=DIR adds a baseline, such as random or "
        "static with trained adapters: it runs each task at the true cost that the plug-in had on it. Repeatable."
    ),
]


def evaluate(
    model: Annotated[str, Given(help="Short name, hub id, folder or GGUF file.")] = "smollm2-135m-instruct",
    plugin: Plugins = ["default"],  # noqa: B006 - typer reads it, nobody writes it
    written: Annotated[
        str | None,
        Given(
            metavar="default|FILE",
            help="Instead of tasks: answers to prompts, judged by the untouched base. default: the 400 short ones that "
            "come along; or a .jsonl (`prompt` or `messages`, `task`) or .txt file, one prompt a line.",
        ),
    ] = None,
    max_tokens: Annotated[int, Given(help="With --written: most tokens of an answer.")] = 120,
    tasks: Annotated[str, Given(help="Tasks and groups of the harness, with commas between them.")] = TASKS,
    budgets: Annotated[str, Given(help="True costs relative to dense; the base (1.0) always runs.")] = "1.0,0.85,0.75",
    limit: Annotated[
        str | None,
        Given(
            help="Items of each task, the first ones (a group's are spread over its tasks), or below 1 their share; "
            "with --written prompts, of each kind alike. [default: all]"
        ),
    ] = None,
    fewshot: Annotated[int | None, Given(help="Examples before each item. [default: the task's own number]")] = None,
    data_dir: Annotated[
        Path | None, Given(help="Folder with files such as hellaswag_val.jsonl.gz. [default: the Hugging Face hub]")
    ] = None,
    output: Annotated[
        Path | None,
        Given(
            help="Folder: results.json, .md, .png (with --written .html, too: all texts side by side), and what a "
            "resumed run needs."
        ),
    ] = None,
    resume: Annotated[
        bool, Given("--resume", help="Go on with the run in --output; tasks, budgets and baselines can be added.")
    ] = False,
    early_exit: Annotated[
        bool, Given("--early-exit/--no-early-exit", help="Also measure the last layers dropped for all tokens.")
    ] = True,
    prompt_budget: Annotated[
        str | None,
        Given(
            metavar="NUMBER|same",
            help="True cost of what is read: prompts, contexts of what is scored. 1.0 is the untouched base, same the "
            "budget of what is written (the form of the papers). [default: 1.0]",
        ),
    ] = None,
    where: Annotated[
        bool,
        Given("--where", help="Also tell where skipping hurts: in the prompt alone, in the answer alone, in both."),
    ] = False,
    int8: Annotated[
        str, Given(metavar="dense|all|none", help="With weights in int8: the base, or the plug-in's budgets, too.")
    ] = "dense",
    allow_code_execution: Annotated[
        bool,
        Given(
            "--allow-code-execution",
            help="Run programs that the model wrote (HumanEval), each in a process that can neither write files nor "
            "use the network nor start others, for at most 5 seconds and 1 GiB. Linux only.",
        ),
    ] = False,
    batch: Annotated[int, Given(help="Texts that run together.")] = 64,
    dtype: Annotated[str, Given(help="bfloat16, float16 or float32.")] = "bfloat16",
    device: Annotated[str, Given(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    allow_other_weights: Annotated[
        bool, Given("--allow-other-weights", help="Use the plug-in on other weights of the same shape.")
    ] = False,
    json: Annotated[bool, Given("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Measure quality: scores, what is retained of the base, true cost and depth, with paired intervals."""
    from depthdial.cli.bench import numbers
    from depthdial.cli.generate import prompt_budget_of
    from depthdial.evaluate.subjects import Lineup, Setup

    own, baselines = _plugins(plugin)
    if int8 not in ("dense", "all", "none"):
        raise ValueError(f"--int8 is dense, all or none, not {int8!r}")
    skipped, read = numbers("--budgets", budgets, float), prompt_budget_of(prompt_budget)
    lineup = Lineup(own, skipped, baselines, early_exit, cast("Int8", int8), where)
    setup = Setup(model, dtype, device, allow_other_weights, batch, prompt_budget=read)
    number = None if limit is None else items(limit)
    if written is not None:
        _written(written, max_tokens, lineup, setup, number, output, resume, json)
    else:
        _tasks(tasks, fewshot, data_dir, allow_code_execution, lineup, setup, number, output, resume, json)


def _tasks(
    tasks: str,
    fewshot: int | None,
    data_dir: Path | None,
    run_code: bool,
    lineup: Lineup,
    setup: Setup,
    limit: float | None,
    output: Path | None,
    resume: bool,
    json: bool,
) -> None:
    import os

    from depthdial.core.extras import need

    for package in ("lm_eval", "datasets", "pyarrow"):
        need(package, "evaluate", "evaluation")

    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness draws a bar for each task; ours tells of all
    from depthdial.core.whole import write_text
    from depthdial.evaluate.harness.picture import can_draw, draw
    from depthdial.evaluate.harness.run import Options, run
    from depthdial.evaluate.harness.table import tables

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    options = Options(setup.model, lineup, names, limit, fewshot, data_dir, output, resume, run_code, setup)
    with _bar() as report:
        results = run(options, report)
    text = tables(results)
    if output is not None:
        write_text(output / "results.md", text + "\n")
        if can_draw():
            draw(results, output / "results.png")
    _show(results, text, json)


def _written(
    prompts: str,
    max_tokens: int,
    lineup: Lineup,
    setup: Setup,
    limit: float | None,
    output: Path | None,
    resume: bool,
    json: bool,
) -> None:
    from depthdial.core.extras import need, there

    need("sacrebleu", "evaluate", "chrF")
    from depthdial.core.whole import write_text
    from depthdial.evaluate.written.page import page
    from depthdial.evaluate.written.picture import draw
    from depthdial.evaluate.written.run import Options, run
    from depthdial.evaluate.written.table import tables

    options = Options(setup.model, lineup, setup, prompts, limit, max_tokens, output, resume)
    with _bar() as report:
        results, texts = run(options, report)
    text = tables(results)
    if output is not None:
        write_text(output / "results.md", text + "\n")
        write_text(output / "results.html", page(results, texts))
        if there("matplotlib"):
            draw(results, output / "results.png")
    _show(results, text, json)


def _show(results: dict[str, Any], text: str, json: bool) -> None:
    from json import dumps

    print(dumps(results, allow_nan=False) if json else printable_lines(text))


def items(limit: str) -> float:
    """A number of items, or below 1 a share of them. ValueError for what is no number."""
    try:
        told = float(limit)
        return int(told) if told.is_integer() else told
    except (ValueError, OverflowError):
        raise ValueError(f"--limit {limit!r} is no number of items and no share of them, such as 0.5") from None


def _plugins(given: list[str]) -> tuple[str | None, dict[str, str]]:
    """The plug-in, and the baselines by name."""
    baselines: dict[str, str] = {}
    own = [item for item in given if "=" not in item]
    for item in given:
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


def _bar() -> Any:
    import contextlib

    @contextlib.contextmanager
    def bar() -> Iterator[Report]:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task("loading", total=None)

            def report(name: str, done: int, total: int) -> None:
                bars.update(task, description=escape(printable(name)), completed=done, total=total or None)

            yield report

    return bar()
