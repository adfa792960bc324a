"""From what a bare base loses to what a trained plug-in will."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RATIO = 0.35
LOW, HIGH = 0.75, 1.25


def at(point: Mapping[str, Any]) -> dict[str, float]:
    nats = RATIO * point["token"]["score"]
    return {"budget": point["budget"], "nats": nats, "low": LOW * nats, "high": HIGH * nats}
