"""`depthdial generate`: continue a prompt, and see how many layers each token used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthdial.cli import options
from depthdial.core.printable import printable
from depthdial.core.written import written

if TYPE_CHECKING:
    from rich.console import Console

    from depthdial.engine.llm import LLM, RequestOutput
    from depthdial.engine.sampling import SamplingParams
    from depthdial.engine.stats import Speculation

Prompt = Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")]
Target = Annotated[
    float | None,
    typer.Option("--target-tokens-per-second", help="With --budget auto: move the dial towards this speed."),
]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text. May be given several times.")]
DraftBudget = Annotated[
    float | None, typer.Option(help="With --lossless: true cost of drafts; 1.0 drafts from the text. [default: budget]")
]
Chat = Annotated[bool, typer.Option("--chat/--raw", help="Answer as a chat model, or continue the prompt as it is.")]


def generate(
    prompt: Prompt,
    model: options.Model = options.MODEL,
    plugin: options.Plugin = "default",
    budget: options.Budget = None,
    prompt_budget: options.PromptBudget = None,
    target: Target = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
    stop: Stop = None,
    lossless: options.Lossless = False,
    draft_budget: DraftBudget = None,
    chat: Chat = False,
    system: Annotated[str | None, typer.Option(help="System message; with --chat.")] = None,
    dtype: options.Dtype = "bfloat16",
    device: options.Device = "auto",
    allow_other_weights: options.OtherWeights = False,
    json: options.Json = False,
    color: options.Color = None,
) -> None:
    """Continue a prompt, coloured by the number of layers each token used."""
    import contextlib
    import sys

    from depthdial.cli.streams import read_input

    prompt = read_input() if prompt == "-" else prompt
    if not prompt or (chat and not prompt.strip()):
        raise ValueError("the prompt is empty; give at least one word")
    reading = options.prompt_budget_of(prompt_budget)

    from depthdial.engine.llm import LLM, SamplingParams  # takes seconds

    if system is not None and not chat:
        raise ValueError("--system needs --chat: a prompt that is continued as it is has no system message")
    params = SamplingParams(
        max_new_tokens,
        temperature,
        top_p,
        top_k,
        seed,
        stop,
        prompt_budget=reading,
        lossless=lossless,
        draft_budget=draft_budget,
    )
    # whatever a library prints while loading must not get between the text
    with contextlib.redirect_stdout(sys.stderr):
        llm = LLM(
            model,
            options.plugin_of(plugin),
            options.budget_of(budget),
            dtype,
            device,
            allow_other_weights,
            prompt_budget=reading,
            target_tokens_per_second=target,
        )
    tokens = prompt
    if chat:
        start = [] if system is None else [{"role": "system", "content": system}]
        tokens = llm.chat_tokens([*start, {"role": "user", "content": prompt}])
    if json:
        with contextlib.redirect_stdout(sys.stderr):
            line = as_json(llm, tokens, params, model)
            if (reason := slow(llm)) is not None:
                print(f"depthdial: {reason}")
        print(line)
    else:
        _stream(llm, tokens, params, color)


def as_json(llm: LLM, prompt: str | list[int], params: SamplingParams, model: str) -> str:
    """Generate, and say everything about it as one JSON object. `offset` is null where it is infinite (the base)."""
    import json
    import math
    import time

    start = time.perf_counter()
    (out,) = llm.generate([prompt], params)
    seconds = time.perf_counter() - start
    budget, offset = (1.0, math.inf) if params.lossless else (llm.budget, llm.offset_of(None))
    depths = written(out.depths)
    facts = {
        "text": out.text,
        "token_ids": out.token_ids,
        "depths": out.depths,
        "prompt_depths": out.prompt_depths,
        "cost": out.cost,
        "prompt_cost": out.prompt_cost,
        "mean_depth": sum(depths) / len(depths),
        "layers": llm.layers,
        "budget": budget,
        "stop": None if params.lossless else llm.stop_of(),
        "prompt_budget": 1.0 if params.lossless else llm.prompt_budget,
        "offset": offset if math.isfinite(offset) else None,
        "finish_reason": out.finish_reason,
        "model": model,
        "plugin": None if llm.plugin is None else llm.plugin.name,
        "seconds": round(seconds, 3),
    }
    if params.lossless:
        drafts = llm.stats.speculation
        facts |= {"drafted": drafts.drafted, "accepted": drafts.accepted, "draft_passes": drafts.draft_passes}
    return json.dumps(facts, allow_nan=False)


def _stream(llm: LLM, prompt: str | list[int], params: SamplingParams, color: bool | None) -> None:
    import sys
    import time

    from rich.console import Console

    from depthdial.maps.terminal import DepthPrinter, Ramp

    printer = DepthPrinter(console(color), Ramp(llm.always_on, llm.layers))
    start, request = time.perf_counter(), llm.submit(prompt, params)
    for piece in llm.follow(request):
        printer.write(piece.text, piece.depth)
    seconds = time.perf_counter() - start
    print(flush=True)
    # the text alone goes to stdout, so that it can be piped
    notes = Console(file=sys.stderr, no_color=not printer.coloured, highlight=False)
    if printer.coloured:  # in the text's own colours, of which standard error may know more or fewer
        system: Any = printer.console.color_system if notes.is_terminal else "auto"
        Console(file=sys.stderr, color_system=system, highlight=False).print(printer.ramp.legend())
    notes.print(summary(request.output(), llm.layers, seconds), soft_wrap=True)
    for note in (None if params.lossless else stop_note(llm, None), slow(llm)):
        if note is not None:
            notes.print(note, soft_wrap=True, markup=False)
    if params.lossless:
        notes.print(drafts(llm.stats.speculation), soft_wrap=True)


def summary(out: RequestOutput, layers: int, seconds: float) -> str:
    """Layers used by what was written, both true costs, and speed in one line."""
    depths = written(out.depths)
    mean, count = sum(depths) / len(depths), len(out.depths)
    return (
        f"{count} tokens; layers used {min(depths)} / {mean:.1f} / {max(depths)} (min / mean / max) of {layers}; "
        f"true cost {out.cost:.3f} of dense, of the prompt {out.prompt_cost:.3f}; {count / seconds:.1f} tokens/s"
    )


def stop_note(llm: LLM, budget: float | None) -> str | None:
    """Which stop of the dial is taken for a budget (None: the model's), in one line; None where it has no stops."""
    stop, cost = llm.stop_of(budget), llm.budget if budget is None else budget
    return None if stop in (None, 1.0) else f"the dial has stops: the one taken for budget {cost:g} costs {stop:.3f}"


def slow(llm: LLM) -> str | None:
    """Why this model runs in PyTorch, several times slower than it could, in one line; None where it does not."""
    reason = llm.stats.in_torch
    return None if reason is None else f"in PyTorch, several times slower, {printable(' '.join(reason.split()))}"


def drafts(speculation: Speculation) -> str:
    """What lossless mode drafted, in one line."""
    right = {source: f"{speculation.accepted[source]} of {count}" for source, count in speculation.drafted.items()}
    return (
        f"lossless: {right['lookup']} drafts from the text and {right['model']} of the plug-in were right; "
        f"{speculation.rounds} passes of the base for {speculation.tokens} tokens"
    )


def console(color: bool | None) -> Console:
    """Standard output; colours forced, refused, or (None) wherever the terminal can show them."""
    from rich.console import Console

    if color:
        return Console(force_terminal=True, color_system="truecolor", no_color=False, highlight=False)
    return Console(no_color=True if color is False else None, highlight=False)
