"""What verbs share: their common options, how these are read, and the bar that shows how far a long one is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

import typer

from depthdial.core.dial import prompt_budget as check_prompt_budget
from depthdial.core.printable import printable

if TYPE_CHECKING:
    from depthdial.core.dial import PromptBudget as ReadAt

Model = Annotated[str, typer.Option(help="Short name, Hugging Face hub id, folder or GGUF file.")]
MODEL = "smollm2-135m-instruct"
Plugin = Annotated[str, typer.Option(help="default (the one shipped for the model), none, a folder, or a hub id.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help="True cost of what is written, relative to dense, up to 1.0; or auto, which follows load and clock, so "
        "that texts are not reproducible. [default: what the plug-in recommends]"
    ),
]
PromptBudget = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER|same",
        help="True cost that a prompt is read at: 1.0 is the untouched base, same is --budget (the form of "
        "the papers). [default: 1.0; same for a model with its own routers]",
    ),
]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy. [default: the model's own generation_config, or greedy]")
]
TopP = Annotated[
    float | None,
    typer.Option(help="Draw from the likeliest tokens up to this probability. [default: the model's own]"),
]
TopK = Annotated[
    int | None, typer.Option(help="Draw from this many likeliest tokens; 0 is all. [default: the model's own]")
]
Lossless = Annotated[
    bool, typer.Option("--lossless", help="The untouched base's own text, token for token; the plug-in only drafts.")
]
Seed = Annotated[int | None, typer.Option(help="The same seed draws the same text.")]
Dtype = Annotated[str, typer.Option(help="bfloat16, float16 or float32.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
OtherWeights = Annotated[
    bool, typer.Option("--allow-other-weights", help="Use the plug-in on other weights of the same shape.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --output.")]
Color = Annotated[bool | None, typer.Option("--color/--no-color", help="[default: where the terminal can]")]
Report = Callable[[str, int, int], None]
"""What runs now, how much of it is done, and how much there will be; 0 where that is not known."""
Kind = TypeVar("Kind")
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def of(*kinds: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a verb, which takes them as **values, an option for each field of dataclasses whose annotation has a text:
    by its name and default, with the text as its help. What the verb names itself is left to it."""

    def add(verb: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(verb, eval_str=True).parameters
        params = [param for param in own.values() if param.kind is not param.VAR_KEYWORD]
        for kind in kinds:
            hints = get_type_hints(kind, include_extras=True)
            for field in fields(kind):
                if field.name not in own and get_origin(hint := hints[field.name]) is Annotated:
                    # words are checked where they are used, which says more of them than typer can
                    base = str if get_origin(hint.__origin__) is Literal else hint.__origin__
                    option = Annotated[base, typer.Option(help=hint.__metadata__[0] or None)]
                    params.append(inspect.Parameter(field.name, _KEYWORD, default=field.default, annotation=option))
        vars(verb)["__signature__"] = inspect.Signature(params)
        return verb

    return add


def settings(kind: Callable[..., Kind], options: Mapping[str, Any], **own: Any) -> Kind:
    """A dataclass made of a verb's options, by name; own: fields that are not just what an option says."""
    return kind(**{f.name: options[f.name] for f in fields(kind) if f.name in options} | own)  # pyright: ignore


def plugin_of(plugin: str) -> str | None:
    """What --plugin says."""
    return None if plugin == "none" else plugin


def budget_of(text: str | None) -> float | Literal["auto"] | None:
    """What --budget says; None where it is left out. ValueError for what is no number and not auto."""
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--budget {text!r} is no number up to 1.0 and not auto") from None


def prompt_budget_of(text: str | None, name: str = "--prompt-budget") -> ReadAt | None:
    """What --prompt-budget says; None where it is left out. ValueError for what is no cost and not same."""
    if text is None:
        return None
    try:
        value = text if text == "same" else float(text)
    except ValueError:
        raise ValueError(f"{name} {text!r} is no number up to 1.0 and not same") from None
    return check_prompt_budget(value)


def items_of(text: str) -> list[str]:
    """Words with commas between them."""
    return [item.strip() for item in text.split(",") if item.strip()]


def numbers(option: str, text: str, kind: type[Any]) -> tuple[Any, ...]:
    """Numbers with commas between them. ValueError names the option."""
    try:
        return tuple(kind(item) for item in items_of(text))
    except ValueError:
        raise ValueError(f"{option} {text!r} is not a list of numbers with commas between them") from None


@contextmanager
def bar() -> Iterator[Report]:
    """A bar on standard error."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("loading", total=None)

        def report(name: str, done: int, total: int) -> None:
            bars.update(task, description=escape(printable(name)), completed=done, total=total or None)

        yield report
