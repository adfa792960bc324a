"""Find stop strings in a text that comes piece by piece, reading each character once (Knuth, Morris and Pratt 1977)."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Follows a text for the first of several strings."""

    def __init__(self, stops: Sequence[str]):
        self._stops = [_Stop(stop) for stop in stops]
        self.open = 0
        """How many of the text's last characters may be the beginning of a stop string."""

    def push(self, piece: str) -> int | None:
        """Go on with a piece of text. Where it completes a stop string: how many of the text's last characters are cut,
        so that the stop string that begins first is; else None."""
        cuts = [cut for stop in self._stops if (cut := stop.push(piece))]
        self.open = max((stop.matched for stop in self._stops), default=0)
        return max(cuts, default=None)


class _Stop:
    """One string, and how much of it the text's end is."""

    def __init__(self, text: str):
        self._text = text
        self._borders = [0]
        """Of each beginning: its longest beginning that is its end, too. Known as far as the text has matched, so that
        a long string costs nothing before it is half there."""
        self.matched = 0

    def push(self, piece: str) -> int:
        """Go on with a piece. Where it completes the string: how many characters stand from its start to the end of the
        piece; else 0."""
        text, borders, matched = self._text, self._borders, self.matched
        if not matched and text[0] not in piece:
            return 0
        for at, character in enumerate(piece):
            while matched and text[matched] != character:
                matched = borders[matched - 1]
            if text[matched] == character:
                matched += 1
                if matched == len(text):
                    return matched + len(piece) - at - 1
                if matched > len(borders):
                    self._extend()
        self.matched = matched
        return 0

    def _extend(self) -> None:
        """Learn the border of one more beginning."""
        text, borders = self._text, self._borders
        last, border = text[len(borders)], borders[-1]
        while border and text[border] != last:
            border = borders[border - 1]
        borders.append(border + (text[border] == last))
