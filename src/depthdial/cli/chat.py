"""`depthdial chat`: a conversation in the terminal, each token on the colour of its depth."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import typer

from depthdial.cli.generate import Color, Model, Plugin, Temperature, TopP

if TYPE_CHECKING:
    from rich.console import Console

    from depthdial.engine.llm import LLM
    from depthdial.engine.sampling import SamplingParams
    from depthdial.maps.terminal import Ramp

HELP = """\
/budget 0.8     true cost of the next answers; 1.0 is the untouched base, /budget alone the plug-in's own
/lossless       the untouched base's own text, sooner; again: back to the budget
/system TEXT    a system message from here on; /system alone takes it away
/reset          forget the conversation
/help, /quit    this, and the end (so does Ctrl-D; Ctrl-C stops an answer)"""


def chat(
    model: Model = "smollm2-135m-instruct",
    plugin: Plugin = "default",
    budget: Annotated[float | None, typer.Option(help="True cost relative to dense, up to 1.0.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same text.")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    allow_other_weights: Annotated[
        bool, typer.Option("--allow-other-weights", help="Use the plug-in on other weights of the same shape.")
    ] = False,
    color: Color = None,
) -> None:
    """Talk to a chat model, and see how many layers each token used. /help lists what else can be said."""
    import sys

    from depthdial.cli.streams import open_input

    open_input("surrogateescape")  # a line that is no text is refused by itself; the conversation goes on

    from depthdial.cli.generate import console
    from depthdial.engine.llm import LLM, SamplingParams
    from depthdial.maps.terminal import Ramp

    params = SamplingParams(max_new_tokens, temperature, top_p, seed=seed, budget=budget)
    out = console(color)
    print(f"depthdial: loading {model} ...", file=sys.stderr, flush=True)
    llm = LLM(model, None if plugin == "none" else plugin, None, dtype, device, allow_other_weights)
    llm.offset_of(budget)
    llm.chat_tokens([{"role": "user", "content": "x"}])  # refuses a model without a chat template
    talk = Talk(llm, out, Ramp(llm.always_on, llm.layers).on(out), params, system)
    out.print(talk.ramp.legend())
    out.print("/help lists the commands; Ctrl-D ends", style="dim")
    while not talk.over:
        try:
            line = out.input("\n> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        talk.hear(line.strip())


@dataclass
class Talk:
    """A conversation and its settings."""

    llm: LLM
    out: Console
    ramp: Ramp
    params: SamplingParams
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    over: bool = False

    def hear(self, line: str) -> None:
        """Take one line: a command, or a question that is answered. What cannot be done is said and changes nothing."""
        try:
            if line.startswith("/"):
                self._command(*line[1:].partition(" ")[::2])
            elif line:
                self._answer(line)
        except ValueError as error:
            self._say(f"{error}")

    def _command(self, name: str, rest: str) -> None:
        rest = rest.strip()
        match name:
            case "budget":
                budget = _number(rest) if rest else None
                self.llm.offset_of(budget)
                self.params = replace(self.params, budget=budget, lossless=False)
                self._say(f"budget {self.llm.budget if budget is None else budget}")
            case "lossless":
                self.params = replace(self.params, budget=None, lossless=not self.params.lossless)
                self._say("lossless" if self.params.lossless else f"budget {self.llm.budget}")
            case "system":
                self.system = rest or None
                self._say("a system message" if rest else "no system message")
            case "reset":
                self.turns.clear()
                self._say("a new conversation")
            case "help":
                self._say(HELP)
            case "quit" | "exit":
                self.over = True
            case _:
                raise ValueError(f"there is no command /{name}; /help lists those there are")

    def _answer(self, question: str) -> None:
        import time

        from depthdial.cli.generate import summary
        from depthdial.maps.terminal import DepthPrinter

        asked = [*self.turns, {"role": "user", "content": question}]
        start = [] if self.system is None else [{"role": "system", "content": self.system}]
        printer, pieces, begun = DepthPrinter(self.out, self.ramp), [], time.perf_counter()
        stream = self.llm.stream(self.llm.chat_tokens([*start, *asked]), self.params)
        try:
            for piece in stream:
                printer.write(piece.text, piece.depth)
                pieces.append(piece)
        except KeyboardInterrupt:  # an answer can be stopped; what was said stays
            stream.close()
        seconds = time.perf_counter() - begun
        self.out.file.write("\n")
        if pieces:
            self.turns = [*asked, {"role": "assistant", "content": "".join(piece.text for piece in pieces)}]
            costs = [piece.cost for piece in pieces]
            self._say(summary([piece.depth for piece in pieces], costs, self.llm.layers, seconds))

    def _say(self, text: str) -> None:
        self.out.print(text, style="dim", markup=False, soft_wrap=True)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number; for instance /budget 0.8") from None
