"""From what a bare base loses to what a trained plug-in keeps of that loss.

Adapters that are trained make up for a part of what is left out, and for the more of it, the worse it is. How much was
measured where there is no router to learn anything: static and random plug-ins of SmolLM2-135M-Instruct with trained
adapters, beside the same without them, at five true costs each (docs/results.md, all text). The two constants fit these
ten figures within 8 %; none of them is of a plug-in that decides (docs/headroom.md).
"""

from __future__ import annotations

HALF, SLOPE = 2.34, 0.64
"""KL for a whole dense pass saved, nats, of which training keeps half; how the share falls around it."""


def kept(lost: float, budget: float) -> float:
    """Nats a token above the base after training. lost: KL without adapters at a true cost of `budget`."""
    return lost / (1 + (max(lost, 0.0) / (1 - budget) / HALF) ** SLOPE)
