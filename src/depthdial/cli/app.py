"""All verbs, and the one place where an error becomes a line and an exit code.

A verb's module imports nothing heavy at its top, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from depthdial import __version__
from depthdial.cli import streams
from depthdial.cli.bench import bench
from depthdial.cli.chat import chat
from depthdial.cli.demo import demo
from depthdial.cli.evaluate import evaluate
from depthdial.cli.export import export
from depthdial.cli.generate import generate
from depthdial.cli.headroom import headroom
from depthdial.cli.map import app as map_app
from depthdial.cli.methods import methods
from depthdial.cli.models import models
from depthdial.cli.pretrain import pretrain
from depthdial.cli.push import push
from depthdial.cli.report import report
from depthdial.cli.retrofit import retrofit
from depthdial.cli.serve import serve
from depthdial.cli.testbed import judge
from depthdial.cli.train import train
from depthdial.core.printable import printable

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # or [default: ...] would be taken for rich's own marks
)
app.command()(generate)
app.command()(demo)
app.command()(methods)
app.command()(models)
app.command()(headroom)
app.command()(train)
app.command()(pretrain)
app.command()(retrofit)
app.command()(report)
app.command("testbed")(judge)
app.command()(bench)
app.command()(evaluate)
app.command()(serve)
app.command()(export)
app.command()(push)
app.command()(chat)
app.add_typer(map_app, name="map")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"depthdial {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Adaptive depth for pretrained language models: layers per token, on a dial."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line. Exit code 0, 2 for what the user can mend (one line on stderr), 130 when interrupted.

    DEPTHDIAL_DEBUG=1 shows the traceback behind the line.
    """
    streams.settle()
    sys.exit(streams.finish(_run(sys.argv[1:] if args is None else args)))


def _run(args: Sequence[str]) -> int:
    try:
        app(args=streams.arguments(args), prog_name="depthdial", standalone_mode=True)
    except (ValueError, OSError) as error:
        if os.environ.get("DEPTHDIAL_DEBUG"):
            raise
        sys.stdout.flush()
        print(f"depthdial: error: {message(error)}", file=sys.stderr)
        return 2
    except SystemExit as exit_:
        if isinstance(exit_.__context__, BrokenPipeError):  # typer makes a code of its own of it
            return streams.reader_gone(0)
        if exit_.code == 130:  # typer's code for an interrupt
            print("\ndepthdial: interrupted", file=sys.stderr)
        return exit_.code if isinstance(exit_.code, int) else 0
    raise AssertionError("a typer app in standalone mode always exits")


def message(error: Exception) -> str:
    """An error as one line that names the thing and the remedy."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        remedy = "; free some space and try again" if error.errno == errno.ENOSPC else ""
        return printable(f"{place}{error.strerror}{remedy}")
    return printable(" ".join(str(error).split())) or type(error).__name__
