"""From what a bare base loses to what a trained plug-in keeps of that loss.

Adapters that are trained make up for a part of what is left out. How much was measured where there is no router to
learn anything (docs/headroom.md): of what the scores say that the best fixed choice loses on SmolLM2-135M-Instruct, a
static plug-in with trained adapters kept 0.33 to 0.35 at five true costs; a random one, of what it leaves out, 0.26 to
0.35. None of these constants is of a plug-in that decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEPT, LEAST, MOST = 0.34, 0.26, 0.35
"""NLL above the base's after training, by the KL that the scores of what is left out add up to."""


def at(point: Mapping[str, Any]) -> dict[str, float]:
    """Nats a token above the base, at best: of a router that leaves out the cheapest layers of each token, without a
    miss. low, high: by the constants of other plug-ins; static: of the best fixed choice.

    point: of `run._Oracle.at`."""
    best = point["token"]["score"]
    return {
        "budget": point["budget"],
        "nats": KEPT * best,
        "low": LEAST * best,
        "high": MOST * best,
        "static": KEPT * point["all"]["score"],
    }
