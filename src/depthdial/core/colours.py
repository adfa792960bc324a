"""The colours of depth, the same in a terminal, on a map's page and in a notebook."""

from __future__ import annotations

# Cividis (Nunez, Anderton, Renslow, PLOS ONE 2018): rises evenly in lightness, the same for the colour-blind.
_CIVIDIS = ("00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838")
_STOPS = [(int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in _CIVIDIS]


def place(depth: int, least: int, most: int) -> float:
    """Where a depth lies between `least` (0) and `most` (1); outside it is clamped."""
    return min(1.0, max(0.0, (depth - least) / max(1, most - least)))


def colours(place: float) -> tuple[str, str]:
    """Letters and background, as "#rrggbb", from dark (0: few layers) to bright (1: many)."""
    at = place * (len(_STOPS) - 1)
    low = min(int(at), len(_STOPS) - 2)
    rgb = [round(a + (b - a) * (at - low)) for a, b in zip(_STOPS[low], _STOPS[low + 1], strict=True)]
    # exact black and white: the sixteen named colours are whatever the terminal's theme says
    return "#000000" if _luminance(rgb) > 0.18 else "#ffffff", "#" + "".join(f"{each:02x}" for each in rgb)


def _luminance(rgb: list[int]) -> float:
    """Relative luminance of sRGB, 0 to 1 (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
