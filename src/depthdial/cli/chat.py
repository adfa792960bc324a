"""`depthdial chat`: a conversation in the terminal, each token on the colour of its depth."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import typer

from depthdial.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from depthdial.engine.llm import LLM
    from depthdial.engine.sampling import SamplingParams
    from depthdial.maps.terminal import Ramp

HELP = """\
/budget 0.8          true cost of the next answers; 1.0 is the untouched base, /budget alone the plug-in's own
/prompt-budget same  true cost that the conversation is read at: a number, or same as the answers; alone: as begun
/lossless            the untouched base's own text, sooner; again: back to the budget
/system TEXT         a system message from here on; /system alone takes it away
/reset               forget the conversation
/help, /quit         this, and the end (so does Ctrl-D; Ctrl-C stops an answer)"""


def chat(
    model: options.Model = options.MODEL,
    plugin: options.Plugin = "default",
    budget: Annotated[float | None, typer.Option(help="True cost of answers, relative to dense, up to 1.0.")] = None,
    prompt_budget: options.PromptBudget = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    lossless: options.Lossless = False,
    seed: options.Seed = None,
    dtype: options.Dtype = "bfloat16",
    device: options.Device = "auto",
    allow_other_weights: options.OtherWeights = False,
    color: options.Color = None,
) -> None:
    """Talk to a chat model, and see how many layers each token used. /help lists what else can be said."""
    import sys

    from depthdial.cli.streams import open_input

    open_input("surrogateescape")  # a line that is no text is refused by itself; the conversation goes on

    from depthdial.cli.generate import console

    reading = options.prompt_budget_of(prompt_budget)

    from depthdial.engine.llm import LLM, SamplingParams
    from depthdial.maps.terminal import Ramp

    params = SamplingParams(
        max_new_tokens, temperature, top_p, top_k, seed, budget=budget, prompt_budget=reading, lossless=lossless
    )
    out = console(color)
    print(f"depthdial: loading {model} ...", file=sys.stderr, flush=True)
    llm = LLM(model, options.plugin_of(plugin), None, dtype, device, allow_other_weights, prompt_budget=reading)
    llm.dials(budget)
    llm.chat_tokens([{"role": "user", "content": "x"}])  # refuses a model without a chat template
    talk = Conversation(llm, out, Ramp(llm.always_on, llm.layers).on(out), params, system)
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
class Conversation:
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
        from depthdial.cli.generate import stop_note

        rest = rest.strip()
        match name:
            case "budget":
                budget = _number(rest) if rest else None
                self.llm.dials(budget, self.params.prompt_budget)
                self.params = replace(self.params, budget=budget, lossless=False)
                note = stop_note(self.llm, budget)
                self._say(f"budget {self.llm.budget if budget is None else budget}" + (f"; {note}" if note else ""))
            case "prompt-budget":
                reading = options.prompt_budget_of(rest, "/prompt-budget") if rest else None
                self.llm.dials(self.params.budget, reading)
                self.params = replace(self.params, prompt_budget=reading, lossless=False)
                self._say(f"prompt budget {self.llm.prompt_budget if reading is None else reading}")
            case "lossless":
                self.params = replace(self.params, budget=None, prompt_budget=None, lossless=not self.params.lossless)
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
        from depthdial.maps.terminal import WordPrinter

        messages = [*self.turns, {"role": "user", "content": question}]
        start = [] if self.system is None else [{"role": "system", "content": self.system}]
        printer, clock = WordPrinter(self.out, self.ramp), time.perf_counter()
        request = self.llm.submit(self.llm.chat_tokens([*start, *messages]), self.params)
        stream = self.llm.follow(request)
        try:
            for piece in stream:
                printer.write(piece.text, piece.depth)
        except KeyboardInterrupt:  # an answer can be stopped; what was said stays
            stream.close()
        printer.end()
        seconds = time.perf_counter() - clock
        self.out.file.write("\n")
        if (out := request.output()).token_ids:
            self.turns = [*messages, {"role": "assistant", "content": out.text}]
            self._say(summary(out, self.llm.layers, seconds))

    def _say(self, text: str) -> None:
        self.out.print(text, style="dim", markup=False, soft_wrap=True)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number; for instance /budget 0.8") from None
