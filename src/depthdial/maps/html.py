"""One self-contained page of a map, or of two side by side: nothing is fetched, and no text of a model is obeyed.

A token is coloured by the layers of one pass: a token of an answer by the pass that *wrote* it, as in the terminal, a
token of a prompt by the pass that *read* it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from depthdial.core.printable import CONTROLS
from depthdial.maps.prompts import by_turns
from depthdial.maps.schema import DepthMap, Facts, MapRow, pack_mask
from depthdial.maps.terminal import Ramp

MARK = 'aria-label="Colours: layers used by a token"'
"""By this a page is told from other files."""
LIMIT = 60
"""Texts of a page, where not told otherwise."""


def map_page(maps: Sequence[DepthMap], title: str | None = None, limit: int | None = LIMIT) -> str:
    """HTML of one map, or of two that are compared text by text (of one id and one prompt).

    limit: at most this many texts, evenly over the tasks; None shows all. Raises ValueError for another number of maps,
    for maps of different depth, and for two without a text in common.
    """
    if len(maps) not in (1, 2):
        raise ValueError(f"a page shows one map or compares two, not {len(maps)}")
    pairs = _pairs(maps)
    texts = _spread(pairs, limit)
    facts = [map_.facts for map_ in maps]
    if facts[0].layers != facts[-1].layers:
        raise ValueError(f"models of {facts[0].layers} and {facts[-1].layers} layers cannot share one page")
    ramp = Ramp(_least(texts), facts[0].layers)
    folder = files("depthdial.maps").joinpath("page")
    style, script = (folder.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    body = "\n".join(_article(number, rows, facts) for number, rows in enumerate(texts))
    data = {
        "layers": facts[0].layers,
        "routed": [f.routed for f in facts],
        "names": _names(facts),
        "asked": facts[0].predictor,
        "texts": [[_data(row, f) for row, f in zip(rows, facts, strict=True)] for rows in texts],
    }
    name = title or ("Layers per token" if len(maps) == 1 else "Layers per token, compared")
    return folder.joinpath("page.html").read_text("utf-8").format(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        title=escape(name),
        style=style + _depth_styles(ramp),
        told=_about(facts, texts, len(pairs)),
        legend=_legend(ramp),
        body=body,
        data=_json(data),
        script=script,
    )  # fmt: skip


def _pairs(maps: Sequence[DepthMap]) -> list[list[MapRow]]:
    if len(maps) == 1:
        return [[row] for row in maps[0].rows]
    second = {row.id: row for row in maps[1].rows}
    pairs = [[row, second[row.id]] for row in maps[0].rows if row.id in second]
    pairs = [pair for pair in pairs if np.array_equal(*(row.token_ids[~row.generated] for row in pair))]
    if not pairs:
        raise ValueError("the two maps have no text in common; map the same prompts twice")
    return pairs


def _spread(pairs: list[list[MapRow]], limit: int | None) -> list[list[MapRow]]:
    """The first of each task, in turns, in the order of the map."""
    if limit is None or len(pairs) <= limit:
        return pairs
    if limit < 1:
        raise ValueError(f"a page of {limit} texts is empty; ask for at least one")
    return [pairs[i] for i in by_turns([row.task for row, *_ in pairs], limit)]


def _least(texts: Sequence[Sequence[MapRow]]) -> int:
    """Where the colours begin: hardly any token is below it."""
    depths = np.concatenate([row.layers_used for rows in texts for row in rows])
    depths = depths[depths > 0]
    return int(np.quantile(depths, 0.01)) if len(depths) else 0


def colour_passes(row: MapRow) -> np.ndarray:
    """int64 [T]: the pass that colours each token; -1 where there is none."""
    t = np.arange(len(row.token_ids))
    passes = np.where(row.generated, t - 1, t)
    passes[0] = 0
    return np.where(row.layers_used[passes] > 0, passes, -1)


def _article(number: int, rows: Sequence[MapRow], facts: Sequence[Facts]) -> str:
    panes = "".join(_pane(row, f, i, len(rows) > 1) for i, (row, f) in enumerate(zip(rows, facts, strict=True)))
    head = rows[0]
    # an id usually begins with its task already
    task = "" if head.id.startswith(head.task) else f'<span class="task">{_text(head.task)}</span> '
    return (
        f'<article id="text-{number}" data-n="{number}"><h2>{task}{_text(head.id)}</h2>'
        f'<div class="panes n{len(rows)}">{panes}</div></article>'
    )


def _pane(row: MapRow, facts: Facts, which: int, many: bool) -> str:
    passes = colour_passes(row)
    depths = np.where(passes >= 0, row.layers_used[passes], 0)
    tokens = "".join(_token(row, t, int(depths[t]), t == 0) for t in range(len(depths)))
    figures = []
    for name, where in (("prompt", ~row.generated), ("answer", row.generated)):
        if (where & (depths > 0)).any():
            figures.append(f"{name} {depths[where & (depths > 0)].mean():.1f}")
    caption = f"<b>{escape(_short(facts))}</b> · " if many else ""
    return (
        f'<section class="pane" data-m="{which}"><p class="figures">{caption}mean layers: {", ".join(figures)}'
        f"{_cost([row])}"
        f"{' · answer given' if row.forced else ''}</p>"
        f'<p class="tokens" role="group" aria-label="Tokens; arrow keys move between them">{tokens}</p>'
        '<div class="strip"><canvas role="img" aria-label="Layers run, by token: the lowest layer is at the bottom">'
        "</canvas></div></section>"
    )


def _token(row: MapRow, t: int, depth: int, first: bool) -> str:
    names = ["t", f"d{depth}", "g" if row.generated[t] else "p"]
    piece = row.pieces[t]
    if _template(row, t):
        names.append("tpl")
    if "\n" in piece:
        names.append("nl")
    if not piece:
        names.append("part")
    if _template(row, t) and t + 1 < len(row.pieces) and _template(row, t + 1):
        piece = piece.replace("\n", "")  # the lines of a template are not worth a line each
    tab = 0 if first else -1
    return f'<span class="{" ".join(names)}" data-i="{t}" tabindex="{tab}">{_text(piece)}</span>'


def _template(row: MapRow, t: int) -> bool:
    return row.token_class[t] == "template" or (not row.generated[t] and row.token_class[t] == "end mark")


def _data(row: MapRow, facts: Facts) -> dict[str, Any]:
    """What the script knows of a text, token by token; null where it is not recorded."""
    passes = colour_passes(row)
    depths = np.where(passes >= 0, row.layers_used[passes], 0)

    def before(values: np.ndarray | None) -> list[float | None] | None:
        """Of the place of the token: what the pass before it expected."""
        return None if values is None else [None, *(_number(v) for v in values[:-1])]

    mask = None if row.ran is None else base64.b64encode(pack_mask(row.ran[passes])).decode()
    scores = None
    if row.scores is not None:
        scores = base64.b64encode((row.scores[passes].astype(float) * 255).round().astype(np.uint8).tobytes()).decode()
    return {
        "depth": depths.tolist(),
        "mask": mask,
        "scores": scores,
        "pieces": [piece.translate(CONTROLS) for piece in row.pieces],
        "borders": (np.flatnonzero(np.diff(row.generated)) + 1).tolist(),
        "class": row.token_class,
        "entropy": before(row.entropy),
        "surprisal": None if row.surprisal is None else [_number(v) for v in row.surprisal],
        "alternatives": row.alternatives
        and [[[text.translate(CONTROLS), round(p, 4)] for text, p in choices] for choices in row.alternatives],
    }


def _number(value: float) -> float | None:
    return round(float(value), 3) if math.isfinite(value) else None


def _about(facts: Sequence[Facts], texts: Sequence[Sequence[MapRow]], count: int) -> str:
    lines = []
    for i, f in enumerate(facts):
        depths = np.concatenate([rows[i].layers_used for rows in texts])
        mean = depths[depths > 0].mean() if (depths > 0).any() else 0
        cost = _cost([rows[i] for rows in texts])
        lines.append(
            f"<li>{escape(f.model)} · {escape(_short(f))} · {mean:.1f} of {f.layers} layers a token{cost}</li>"
        )
    number = f"{len(texts)} of {count} texts" if len(texts) < count else f"{count} text{'s' * (count > 1)}"
    return f"<ul>{''.join(lines)}</ul><p>{number}</p>"


def _short(facts: Facts) -> str:
    if facts.offset == facts.reading == math.inf:
        return "untouched base"
    plugin = facts.plugin or facts.method
    return plugin if facts.budget is None else f"{plugin} at {facts.dial}"


def _cost(rows: Sequence[MapRow]) -> str:
    """True cost of prompts and of answers, where it is known."""
    parts = []
    for name, generated in (("prompt", False), ("answer", True)):
        costs = np.concatenate([row.costs(generated) for row in rows])
        parts += [f"{name} {costs.mean():.3f}"] if len(costs) else []
    return f" · true cost: {', '.join(parts)}" if parts else ""


def _names(facts: Sequence[Facts]) -> list[str]:
    """What tells the maps apart, in as few words as will do."""
    names = [_short(f) for f in facts]
    if len(facts) == 2 and facts[0].plugin == facts[1].plugin and all(f.budget is not None for f in facts):
        names = ["base" if f.offset == f.reading == math.inf else f.dial for f in facts]
    if len(set(names)) < len(names):
        names = [f"{name}, {side}" for name, side in zip(names, ("left", "right"), strict=True)]
    return names


def _depth_styles(ramp: Ramp) -> str:
    styles = [".d0{--c:transparent;--k:inherit}"]
    for depth in range(1, ramp.most + 1):
        letters, background = ramp.colours(depth)
        styles.append(f".d{depth}{{--c:{background};--k:{letters}}}")
    return "\n".join(styles)


def _legend(ramp: Ramp) -> str:
    cells = "".join(f'<i class="d{depth}"></i>' for depth in range(ramp.least, ramp.most + 1))
    return f'<span>{ramp.least} layers</span><span class="ramp">{cells}</span><span>{ramp.most}</span>'


def _text(text: str) -> str:
    return escape(text.translate(CONTROLS))


def _json(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
