"""Text in a terminal, each token on a colour that tells how many layers it used.

The colour is the background, so that it can be seen on dark and on light terminals alike, and the letters on it are
black or white, whichever is easier to read. Where colours are not wanted (no terminal, NO_COLOR) the text is plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.color_triplet import ColorTriplet
from rich.console import Console
from rich.style import Style
from rich.text import Text

# Cividis (Nunez, Anderton, Renslow, PLOS ONE 2018): rises evenly in lightness, the same for the colour-blind.
_CIVIDIS = ("00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838")
_STOPS = [(int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in _CIVIDIS]
_SIXTEEN = (("bright_white", "black"), ("bright_white", "bright_black"), ("black", "white"), ("black", "bright_yellow"))
"""Letters and background where a terminal has sixteen colours: what is nearest to the ramp, in steps that differ."""
_FEW = ("standard", "windows")
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = ".:-=+*#@"
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
"""For `str.translate`: a model may write escape sequences; they are shown as symbols instead of being obeyed."""


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
        return min(1.0, max(0.0, (depth - self.least) / max(1, self.most - self.least)))

    def colours(self, depth: int) -> tuple[str, str]:
        """Letters and background for one depth, as "#rrggbb"."""
        at = self.place(depth) * (len(_STOPS) - 1)
        low = min(int(at), len(_STOPS) - 2)
        ends = zip(_STOPS[low], _STOPS[low + 1], strict=True)
        rgb = ColorTriplet(*(round(a + (b - a) * (at - low)) for a, b in ends))
        # exact black and white: the sixteen named colours are whatever the terminal's theme says
        return "#000000" if _luminance(rgb) > 0.18 else "#ffffff", rgb.hex

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


def show(console: Console, pieces: Sequence[str], depths: Sequence[int], ramp: Ramp) -> None:
    """Write a whole text, piece i on the colour of depth i, and end the line."""
    printer = DepthPrinter(console, ramp)
    for piece, depth in zip(pieces, depths, strict=True):
        printer.write(piece, depth)
    console.file.write("\n")


def _luminance(rgb: ColorTriplet) -> float:
    """Relative luminance of sRGB, 0 to 1 (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
