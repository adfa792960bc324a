"""Text in a terminal, each token on a colour that tells how many layers it used.

The colour is the background, so that it can be seen on dark and on light terminals alike, and the letters on it are
black or white, whichever is easier to read. Where colours are not wanted (no terminal, NO_COLOR) the text is plain.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from depthdial.core.colours import colours, place
from depthdial.core.printable import CONTROLS

_SIXTEEN = (("bright_white", "black"), ("bright_white", "bright_black"), ("black", "white"), ("black", "bright_yellow"))
"""Letters and background where a terminal has sixteen colours: what is nearest to the ramp, in steps that differ."""
_FEW = ("standard", "windows")
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = ".:-=+*#@"


@dataclass(frozen=True)
class Ramp:
    """Colours and bars for depths from `least` (dark) to `most` layers (bright)."""

    least: int
    most: int
    few: bool = False
    """Are there sixteen colours only? Then a few depths share one, in text and legend alike."""

    def on(self, console: Console) -> Ramp:
        """The same in the colours that a console has."""
        return replace(self, few=console.color_system in _FEW)

    def place(self, depth: int) -> float:
        """Where a depth lies between `least` (0) and `most` (1); outside it is clamped."""
        return place(depth, self.least, self.most)

    def colours(self, depth: int) -> tuple[str, str]:
        """Letters and background for one depth, as "#rrggbb"."""
        return colours(self.place(depth))

    def style(self, depth: int) -> Style:
        """Letters and background for one depth."""
        letters, background = _SIXTEEN[self._step(depth)] if self.few else self.colours(depth)
        return Style(color=letters, bgcolor=background)

    def legend(self) -> Text:
        """One line that explains the colours: a few depths, each on its own; with few colours, all depths of each."""
        if self.few:
            depths = range(self.least, self.most + 1)
            shares = [[depth for depth in depths if self._step(depth) == step] for step in range(len(_SIXTEEN))]
            marks = {share[0]: f"{share[0]}-{share[-1]}" if share[1:] else f"{share[0]}" for share in shares if share}
        else:
            steps = min(5, self.most - self.least)
            every = (self.most - self.least) / max(1, steps)
            marks = {depth: f"{depth}" for depth in (round(self.least + every * i) for i in range(steps + 1))}
        return Text.assemble("layers used: ", *((f" {mark} ", self.style(depth)) for depth, mark in marks.items()))

    def _step(self, depth: int) -> int:
        """Which of the few colours."""
        return min(len(_SIXTEEN) - 1, int(self.place(depth) * len(_SIXTEEN)))

    def bars(self, depths: Sequence[int], encoding: str = "utf-8") -> str:
        """One character per token, higher for more layers; ASCII where the encoding has no block characters."""
        bars = _BARS if encoding.lower().startswith("utf") else _ASCII_BARS
        return "".join(bars[round(self.place(depth) * (len(bars) - 1))] for depth in depths)


class DepthPrinter:
    """Writes pieces of text to a console as they come. What it writes, less the colours, is exactly the text."""

    def __init__(self, console: Console, ramp: Ramp):
        self.console, self.ramp = console, ramp.on(console)

    @property
    def coloured(self) -> bool:
        """Does this console show colours?"""
        console = self.console
        return console.is_terminal and console.color_system is not None and not console.no_color

    def write(self, text: str, depth: int) -> None:
        """Write one piece, without a line break after it."""
        if self.console.is_terminal:
            text = text.translate(CONTROLS)
        if self.coloured:
            self.console.print(Text(text, self.ramp.style(depth), tab_size=4), end="", soft_wrap=True)
        else:
            self.console.file.write(text)
        self.console.file.flush()


class WordPrinter(DepthPrinter):
    """The same for a terminal's reader: a word that does not fit goes to the next line whole. Elsewhere as it comes.

    A word can be several pieces of different depths, so that it is written once it ended: with `end()` at the latest.
    """

    def __init__(self, console: Console, ramp: Ramp):
        super().__init__(console, ramp)
        self._column, self._word = 0, list[tuple[str, int]]()

    def write(self, text: str, depth: int) -> None:
        """Take one piece."""
        if not self.console.is_terminal:
            return super().write(text, depth)
        for part in filter(None, re.split(r"(\s+)", text.translate(CONTROLS))):
            if part.isspace():
                self.end()
            self._word.append((part, depth))
            # a line break ends what is before it; between wide letters (Chinese) a line may break anywhere
            if "\n" in part or cell_len(part) > len(part):
                self.end()

    def end(self) -> None:
        """Write what is held back."""
        word, self._word = self._word, []
        wide = sum(cell_len(part.expandtabs(4)) for part, _ in word)
        if word and "\n" not in word[0][0] and self._column + wide > self.console.width:
            if word[0][0].isspace():
                wide -= cell_len(word.pop(0)[0].expandtabs(4))
            if self._column:
                self.console.file.write("\n")
            self._column = 0
        for part, depth in word:
            super().write(part, depth)
        if word and "\n" in word[0][0]:
            self._column, wide = 0, cell_len(word[0][0].rpartition("\n")[2].expandtabs(4))
        self._column = self._column + wide if wide <= self.console.width else wide % self.console.width


def show(console: Console, pieces: Sequence[str], depths: Sequence[int], ramp: Ramp) -> None:
    """Write a whole text, piece i on the colour of depth i, and end the line."""
    printer = DepthPrinter(console, ramp)
    for piece, depth in zip(pieces, depths, strict=True):
        printer.write(piece, depth)
    console.file.write("\n")
