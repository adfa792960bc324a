"""`depthdial demo`: the whole idea on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from depthdial.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from depthdial.engine.llm import LLM
    from depthdial.maps.terminal import Ramp

PROMPTS = (
    "What is the capital of France?",
    "Explain photosynthesis in one sentence.",
    "Why is the sky blue?",
)
"""The untouched model answers all of them well: what goes wrong is then the dial's doing, and can be seen."""


def demo(
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens per answer.")] = 48,
    model: options.Model = options.MODEL,
    plugin: options.Plugin = "default",
    prompt_budget: options.PromptBudget = None,
    color: options.Color = None,
) -> None:
    """Answer three questions, and show how many layers each token used."""
    import sys
    import textwrap

    from depthdial.cli.generate import console

    reading = options.prompt_budget_of(prompt_budget)

    from depthdial.engine.llm import LLM
    from depthdial.maps.terminal import Ramp

    out = console(color)
    print(f"depthdial: loading {model} and its depth plug-in ...", file=sys.stderr)
    llm = LLM(model, options.plugin_of(plugin), prompt_budget=reading)
    ramp = Ramp(llm.always_on, llm.layers).on(out)
    dial = "where it was trained" if llm.budget is None else f"at budget {llm.budget:.2f}"
    how = {1.0: "read in full, by the untouched model", "same": "read on the same dial as the answer"}
    intro = (
        f"{model} has {llm.layers} layers. With the plug-in, each token of an answer runs the {llm.always_on} that are "
        f"always on and as many of the other {llm.layers - llm.always_on} as its routers ask for. The dial stands "
        f"{dial}; a budget is the mean true cost of what is written, as a share of the untouched model's. The question "
        f"is {how.get(llm.prompt_budget, f'read at {llm.prompt_budget}')}."
    )
    print(textwrap.fill(intro, 100), end="\n\n")
    out.print(ramp.legend())
    for prompt in PROMPTS:
        _answer(llm, prompt, max_new_tokens, out, ramp)
    print("\nSkipping costs quality, in sums and lists first: docs/results.md. --lossless writes the base's own text.")
    print('Your turn: depthdial generate "Once upon a time" --budget 0.9        (depthdial generate --help)')


def _answer(llm: LLM, prompt: str, max_tokens: int, out: Console, ramp: Ramp) -> None:
    """One answer on the dial, coloured, with its facts; below it the untouched model's."""
    import time

    from depthdial.cli.generate import summary
    from depthdial.core.printable import CONTROLS
    from depthdial.engine.llm import SamplingParams
    from depthdial.maps.terminal import DepthPrinter
    from depthdial.models.converted import converted_of

    print(f"\n> {prompt}\n", flush=True)
    tokens = llm.chat_tokens([{"role": "user", "content": prompt}])
    printer, start = DepthPrinter(out, ramp), time.perf_counter()
    request = llm.submit(tokens, SamplingParams(max_tokens=max_tokens, temperature=0.0))
    for piece in llm.follow(request):
        printer.write(piece.text, piece.depth)
    seconds, answer = time.perf_counter() - start, request.output()
    dense = 2e-6 * converted_of(llm.model).ledger.dense
    print(f"\n\n  {ramp.bars(answer.depths, out.encoding)}")
    print(f"  {summary(answer, llm.layers, seconds)}")
    flops = f"{answer.cost * dense:.0f} of {dense:.0f} MFLOPs per written token ({answer.cost:.1%})"
    print(f"  {flops}; LM head, K and V, routers and adapters are counted")
    base_params = SamplingParams(max_tokens=max_tokens, temperature=0.0, budget=1.0, prompt_budget="same")
    (base,) = llm.generate([tokens], base_params)
    same = base.token_ids == answer.token_ids
    theirs = "the same text" if same else base.text.strip().translate(CONTROLS)
    print(f"  budget 1.0, the untouched model: {theirs}", flush=True)
