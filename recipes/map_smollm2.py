"""The shipped map: where depth goes on the six tasks of FlexiDepth's paper, with the shipped plug-in.

    python recipes/map_smollm2.py benchmarks/maps/smollm2-135m-instruct-flexidepth [--budget 0.85] [--plugin DIR]

Writes the data set, summary.json and summary.png of both views (a token's layers are those of the pass that wrote it;
or, in read/, of the pass that read it), and page.html, a few texts as a picture. An interrupted run goes on when it is
started again. After the plug-in has changed, remove the folder first.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from depthdial.cli.app import app


def run(*words: str) -> None:
    app([str(word) for word in words], prog_name="depthdial", standalone_mode=False)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--plugin", default="default")
    parser.add_argument("--budget", type=float, default=0.85)
    parser.add_argument("--count", type=int, default=300, help="prompts of each number task; text tasks: all passages")
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args(args)
    out, common = str(given.output), ["--model", given.model, "--plugin", given.plugin, "--dtype", given.dtype]
    what = ["--budget", str(given.budget), "--max-new-tokens", "40"]
    size = ["--count", str(given.count), "--part-size", "64", "--license", "apache-2.0"]
    run("map", *common, *what, "--tasks", "all", *size, "--output", out, "--resume")
    run("map", "summary", out, "--output", out)
    run("map", "summary", out, "--view", "read", "--output", str(given.output / "read"))
    run("map", "html", out, "--limit", "24", "--output", str(given.output / "page.html"))


if __name__ == "__main__":
    main()
