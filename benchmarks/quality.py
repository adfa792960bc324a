"""Quality on held-out text against true cost: plug-ins, baselines and peer at the same true costs, in one table.

All of the text skips: that is the form of the papers, not that of an answer to a prompt which is read in full.

    python benchmarks/quality.py --data FOLDER --plugin flexidepth=RUN --plugin random=RUN --plugin static=RUN \\
        --output benchmarks/results/DATE-MACHINE.json

FOLDER holds train/, eval/ and text/ (docs/data.md says where they come from). Random and static plug-ins are
measured without their adapters, too. Writes the JSON named by --output, which holds every number, and a picture beside
it; prints the tables. Results are saved after each method: an interrupted run leaves what it had.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch

from depthdial.core.whole import plain, write_json
from depthdial.maps.classes import depth_table
from depthdial.models import load_base
from depthdial.train.machine import keep_memory
from heldout.data import Held, held_out
from heldout.plot import draw
from heldout.routers import RouteRecord
from heldout.scores import Scores
from heldout.table import class_table, kl_table, layers_table, quality_table, router_table
from heldout.text import of_pass, of_prediction
from record import about
from subjects import Setup, Subject, bare, int8, peers, plugins

BUDGETS = "1.0,0.95,0.9,0.85,0.8,0.75,0.7"
log = logging.getLogger("quality")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--plugin", metavar="NAME=PATH", type=_named, action="append", default=[])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--trained-only", action="store_true", help="leave out plug-ins without their adapters")
    which.add_argument("--bare-only", action="store_true", help="measure nothing but those")
    parser.add_argument("--no-int8", dest="int8", action="store_false", help="leave out the base in int8")
    parser.add_argument("--peer", metavar="economize=PATH", type=_named, action="append", default=[])
    parser.add_argument(
        "--after",
        type=Path,
        action="append",
        default=[],
        help="JSON of another part of this table, on the same text; it comes first",
    )
    parser.add_argument("--peer-dial", choices=("threshold", "logit"), action="append", help="default: both")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--budgets", type=_numbers, default=_numbers(BUDGETS))
    parser.add_argument("--tokens", type=int, default=22000, help="of each kind of text")
    parser.add_argument("--length", type=int, default=512, help="tokens per row")
    parser.add_argument("--batch", type=int, default=4, help="rows per batch")
    parser.add_argument("--seed", type=int, default=0, help="of the split that training used")
    parser.add_argument("--tolerance", type=float, default=0.005, help="how far from a budget the true cost may be")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="a minute at the start, then faster on a CPU")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        benchmark(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def benchmark(args: argparse.Namespace) -> None:
    """Run it. Raises ValueError, one line with the remedy, for bad arguments."""
    if not args.plugin and not args.peer and not args.after:
        raise ValueError("nothing to measure; give --plugin NAME=PATH or --peer NAME=PATH")
    if args.output.exists():
        raise ValueError(f"{args.output} is there already, and results are never edited after; choose another --output")
    started = time.monotonic()
    keep_memory()
    _, tokenizer = load_base(args.model, args.dtype, args.device)
    held = held_out(args.data, tokenizer, args.tokens, args.length, args.batch, args.seed)
    setup = Setup(args.model, args.dtype, args.device, args.compile, held, args.seed)
    results = about(args, held)
    for path in args.after:
        _continue(results, path)
    ours = [] if args.bare_only else [*plugins(setup, args.plugin)]
    ours += [] if args.trained_only else [*bare(setup, args.plugin)]
    if args.int8 and all(subject["name"] != "int8 dense" for subject in results["subjects"]):
        ours.append(lambda: int8(setup))
    for make in (*ours, *peers(setup, args.peer, args.peer_dial or ("threshold", "logit"))):
        subject = make()
        log.info("%s: the base's part is done (%.0f s since the start)", subject.name, time.monotonic() - started)
        measured = plain(measure(subject, args.budgets, args.tolerance))
        results["subjects"].append(measured)
        for group, found in measured["points"][0]["groups"].items() if measured["points"] else ():
            results["text"]["groups"][group] = found["tokens"]
            results["base"][group] = {"ce": found["base_ce"], "perplexity": math.exp(found["base_ce"])}
        if subject.recommended is not None and subject.about["method"]["name"] == "flexidepth":
            results["routes"][subject.name] = plain(examine(subject, held, args.tolerance))
        results["seconds"] = round(time.monotonic() - started, 1)
        write_json(args.output, results)
    results["complete"] = True
    write_json(args.output, results)
    draw(results, args.output.with_suffix(".png"))
    _show(results)


def measure(subject: Subject, budgets: list[float], tolerance: float) -> dict[str, Any]:
    """All budgets of one subject."""
    points: list[dict[str, Any]] = []
    for budget in sorted(budgets, reverse=True):
        began = time.monotonic()
        try:
            if budget == 1.0:
                knob, scores = math.inf, subject.text.score(subject.run, math.inf)
            else:
                knob, scores = subject.text.at_cost(subject.run, budget, subject.search, tolerance)
        except ValueError as error:
            log.info("%s at %g: %s", subject.name, budget, error)
            continue
        groups = {name: dataclasses.asdict(s) for name, s in subject.text.summaries(scores).items()}
        seconds, every = time.monotonic() - began, groups["all"]
        dial = "base" if knob == math.inf else dataclasses.asdict(knob) if dataclasses.is_dataclass(knob) else knob
        points.append({"budget": budget, "dial": dial, "seconds": round(seconds, 1), "groups": groups})
        log.info(
            "%s at %g: cost %.4f, perplexity x %.4f, KL %.4f, %.1f layers (%.0f s)",
            *(subject.name, budget, every["cost"], every["ratio"], every["kl"], every["layers"], seconds),
        )
    return {"name": subject.name, "trained": subject.trained, **subject.about, "points": points}


def examine(subject: Subject, held: Held, tolerance: float) -> dict[str, Any]:
    """Router health and depth by class of token, at the plug-in's recommended budget."""
    assert subject.recommended is not None and subject.converted is not None
    knob, _ = subject.text.at_cost(subject.run, subject.recommended, subject.search, tolerance)
    record = RouteRecord(subject.converted, subject.text.batches)
    scores = subject.text.score(subject.run, knob, record.record)
    health = record.health(scores.layers, {k: v for k, v in subject.text.groups.items() if k != "answers"})
    told = dataclasses.asdict(health) | {
        name: getattr(health, name) for name in ("static", "static_layers", "minority", "skips_by_token", "bits")
    }
    for layer, shown in zip(health.layers, told["layers"], strict=True):
        shown["static"] = layer.static
    return {
        "budget": subject.recommended,
        "cost": scores.summary().cost,
        "routers": told,
        "classes": {
            "read": _classes(subject, held, scores, of_pass),
            "predicted": _classes(subject, held, scores, of_prediction),
        },
    }


def _classes(subject: Subject, held: Held, scores: Scores, align: Any) -> list[dict[str, Any]]:
    """Depth by the class of the token that a pass reads (`of_pass`) or predicts (`of_prediction`)."""
    pairs = list(zip(subject.text.batches, held.classes, strict=True))
    by_class = {name: torch.cat([align(b, c[name]) for b, c in pairs]) for name in held.classes[0]}
    return [dataclasses.asdict(row) for row in depth_table(by_class, scores.layers, scores.row)]


def _continue(results: dict[str, Any], path: Path) -> None:
    """Take over the subjects of another part of the table. ValueError if it was made of another text or otherwise."""
    try:
        before = json.loads(path.read_text())
        same = all(before[key] == plain(results[key]) for key in ("what", "model", "arguments"))
        same = same and before["text"]["kinds"] == plain(results["text"]["kinds"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"--after {path} is no result of this benchmark") from None
    if not same or not before["complete"]:
        raise ValueError(f"--after {path} is not complete, or was measured on another text or with other arguments")
    part = {key: before.get(key) for key in ("date", "commit", "machine", "versions", "seconds")}
    part["subjects"] = [found["name"] for found in before["subjects"]]
    results["parts"] = [*results.get("parts", ()), *before.get("parts", ()), part]
    results["subjects"] += before["subjects"]
    results["routes"] |= before["routes"]
    results["base"], results["text"]["groups"] = before["base"], before["text"]["groups"]


def _show(results: dict[str, Any]) -> None:
    for group in results["text"]["groups"]:
        base = results["base"][group]["perplexity"]
        print(f"\nPerplexity relative to the base's ({base:.2f}), {group}; all of the text skips\n")
        print(quality_table(results, group))
    print("\nKL from the base, nats per token\n\n" + kl_table(results))
    print("\nTrue cost met / layers used\n\n" + layers_table(results))
    for name, found in results["routes"].items():
        print(f"\nRouters of {name} at {found['budget']:g}\n\n" + router_table(found["routers"]))
        for what, rows in found["classes"].items():
            print(f"\nDepth by class of the token {what}\n\n" + class_table(rows))


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, path


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as {BUDGETS}") from None


if __name__ == "__main__":
    main()
