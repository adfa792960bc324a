"""`depthdial demo`: the whole idea on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from depthdial.engine.llm import LLM
    from depthdial.maps.terminal import Ramp

PROMPTS = (
    "Repeat after me, word for word: the quick brown fox jumps over the lazy dog.",
    "What is 17 plus 25? Explain each step.",
    "Why is the sky blue?",
)
MODEL = "smollm2-135m-instruct"


def demo(
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens per answer.")] = 48,
    model: Annotated[str, typer.Option(help="Short name, Hugging Face hub id, folder or GGUF file.")] = MODEL,
    plugin: Annotated[str, typer.Option(help="default (the one shipped for the model), or a folder.")] = "default",
    color: Annotated[bool | None, typer.Option("--color/--no-color", help="[default: where the terminal can]")] = None,
) -> None:
    """Answer three questions, and show how many layers each token used."""
    import sys
    import textwrap

    from depthdial.cli.generate import console
    from depthdial.engine.llm import LLM
    from depthdial.maps.terminal import Ramp

    out = console(color)
    print(f"depthdial: loading {model} and its depth plug-in ...", file=sys.stderr)
    llm = LLM(model, plugin)
    ramp = Ramp(llm.always_on, llm.layers).on(out)
    dial = "where it was trained" if llm.budget is None else f"at budget {llm.budget:.2f}"
    intro = (
        f"{model} has {llm.layers} layers. With the plug-in, each token runs the {llm.always_on} that are always on "
        f"and as many of the other {llm.layers - llm.always_on} as its routers ask for. The dial stands {dial}; "
        "a budget is the mean true cost that is asked for, as a share of the untouched model's."
    )
    print(textwrap.fill(intro, 100), end="\n\n")
    out.print(ramp.legend())
    for prompt in PROMPTS:
        _answer(llm, prompt, max_new_tokens, out, ramp)
    print('\nYour turn: depthdial generate "Once upon a time" --budget 0.9        (depthdial generate --help)')


def _answer(llm: LLM, prompt: str, max_tokens: int, out: Console, ramp: Ramp) -> None:
    """One answer on the dial, coloured, with its facts; below it the untouched model's."""
    import time

    from depthdial.cli.generate import summary
    from depthdial.engine.llm import SamplingParams
    from depthdial.maps.terminal import CONTROLS, DepthPrinter

    print(f"\n> {prompt}\n", flush=True)
    tokens = llm.chat_tokens([{"role": "user", "content": prompt}])
    printer, start, pieces = DepthPrinter(out, ramp), time.perf_counter(), []
    for piece in llm.stream(tokens, SamplingParams(max_tokens=max_tokens, temperature=0.0)):
        printer.write(piece.text, piece.depth)
        pieces.append(piece)
    seconds = time.perf_counter() - start
    depths, costs = [piece.depth for piece in pieces], [piece.cost for piece in pieces]
    dense = 2e-6 * llm.model.route.ledger.dense
    mean = sum(costs) / len(costs)
    print(f"\n\n  {ramp.bars(depths, out.encoding)}")
    print(f"  {summary(depths, costs, llm.layers, seconds)}")
    flops = f"{mean * dense:.0f} of {dense:.0f} MFLOPs per token ({mean:.1%})"
    print(f"  {flops}; LM head, K and V, routers and adapters are counted")
    (base,) = llm.generate([tokens], SamplingParams(max_tokens=max_tokens, temperature=0.0, budget=1.0))
    same = base.token_ids == [piece.token_id for piece in pieces]
    theirs = "the same text" if same else base.text.strip().translate(CONTROLS)
    print(f"  budget 1.0, the untouched model: {theirs}", flush=True)
