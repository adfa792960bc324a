"""What `depthdial headroom` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from depthdial.evaluate.markdown import markdown, number


def tables(results: Mapping[str, Any]) -> str:
    """Markdown."""
    return "\n\n".join([_head(results), _static(results), _settled(results), _oracle(results), _said(results)])


def _head(results: Mapping[str, Any]) -> str:
    return (
        f"Headroom of {results['model']}: {results['layers']} layers, {results['counted']} tokens of {results['rows']} "
        "texts; nothing is trained. Nats a token."
    )


def _static(results: Mapping[str, Any]) -> str:
    order, points = results["static"]["order"], results["static"]["points"][1:]
    lines = [
        [point["layers"], layer, number(point["cost"], 3), number(point["kl"], 3), number(point["nll"], 3)]
        for layer, point in zip(order, points, strict=True)
    ]
    return "Layers gone for every token, one after the other:\n\n" + markdown(
        ["layers gone", "the last of them", "true cost", "KL", "NLL above the base's"], lines
    )


def _settled(results: Mapping[str, Any]) -> str:
    told, depth = results["settled"], results["layers"]
    lines = [
        [each["class"], each["tokens"], number(each["layers"], 1), number(each["half"], 0, 100) + " %"]
        for each in told["classes"]
    ]
    early = number(told["stays"][depth // 2], 0, 100)
    return (
        f"After how many of {depth} layers the base's own head settles on its final word (mean "
        f"{number(told['layers'], 1)}; {early} % of tokens after half of them), by what the token is:\n\n"
        + markdown(["class of token", "tokens", "layers", "in the lower half"], lines)
    )


_ROWS = (
    ("static", "nested, greedy"),
    ("all", "one choice for all"),
    ("text", "each text its own"),
    ("shuffled", "the same on shuffled scores"),
    ("token", "each token its own"),
    ("token_shuffled", "the same on shuffled scores"),
)


def _oracle(results: Mapping[str, Any]) -> str:
    lines = [
        [
            f"{point['budget']:g}",
            name,
            number(point[row].get("score"), 3),
            number(point[row].get("dropped"), 1),
            *(number(point[row].get(figure), 3) for figure in ("kl", "nll")),
        ]
        for point in results["oracle"] for row, name in _ROWS
    ]  # fmt: skip
    return (
        "Which layers are left out, nothing trained (KL by the scores' sum; of a pass without so many):\n\n"
        + markdown(
            ["true cost", "chosen", "KL, scores", "layers, pass", "KL, pass", "NLL above the base's, pass"], lines
        )
    )


def _said(results: Mapping[str, Any]) -> str:
    """In words."""
    lines = []
    for point, told in zip(results["oracle"], results["forecast"], strict=True):
        free, text, noise = (point[row]["score"] for row in ("all", "text", "shuffled"))
        gain, luck = ((free - each) / free if free > 0 else 0.0 for each in (text, noise))
        lines.append(
            f"At true cost {point['budget']:g} expect at best {told['nats']:.3f} nats a token above the base "
            f"({told['low']:.3f} to {told['high']:.3f}, over texts) of routers and adapters that are trained, and "
            f"{told['static']:.3f} of trained static layers. Choosing by text saves {gain:.0%} of what one choice for "
            f"all loses, by the scores; {luck:.0%} are won on shuffled ones, too."
        )
    return "\n".join(lines)
