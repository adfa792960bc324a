"""All tokens of a map as flat arrays, with everything that a summary sorts them by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from depthdial.maps.schema import DepthMap, Facts, MapRow

View = Literal["wrote", "read"]
"""Whose depth is a token's: that of the pass that wrote it (predicted it), or of the pass that read it."""
SIDES = ("left of =", "right of =", "left of =, digits", "right of =, digits")
REPEATS = ("new token", "repeated token", "repeated pair")
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True)
class TokenTable:
    """N tokens outside chat templates, of which the pass is known; all arrays [N] unless said."""

    task: np.ndarray
    """str"""
    group: np.ndarray
    """int64, numbered from 0"""
    generated: np.ndarray
    """bool"""
    place: np.ndarray
    """int64: place in its answer, or in the text for a token of a prompt, from 0"""
    kind: np.ndarray
    """str: token class"""
    repeat: np.ndarray
    """int64, index into `REPEATS`: a pair is the token with the one before it"""
    side: np.ndarray
    """int64: 0 left of the answer's "=", 1 right of it, -1 no such place"""
    digit: np.ndarray
    """bool: the token has a digit"""
    depth: np.ndarray
    """float64: layers of its pass"""
    entropy: np.ndarray
    """float64: of the base's prediction in that pass"""
    surprisal: np.ndarray
    """float64: of the token"""
    ran: np.ndarray
    """bool [N, L], or [N, 0] where masks are not recorded"""

    def __len__(self) -> int:
        return len(self.depth)

    def where(self, mask: np.ndarray) -> TokenTable:
        """Those that are chosen, bool [N]."""
        return TokenTable(*(getattr(self, field.name)[mask] for field in fields(self)))


def token_table(parts: Iterable[DepthMap], view: View = "wrote") -> tuple[Facts, TokenTable, int]:
    """The facts, tokens and number of texts of a map, part by part. ValueError where no pass is known at all."""
    groups: dict[str, int] = {}
    tables: list[TokenTable] = []
    facts, texts = None, 0
    for part in parts:
        facts = facts or part.facts
        for row in part.rows:
            texts += 1
            tables.append(_tokens(row, groups.setdefault(row.group, len(groups)), view, facts.layers))
    if facts is None or not sum(map(len, tables)):
        raise ValueError("the map holds no token whose pass is known; map at least one text of two tokens")
    layers = min(tokens.ran.shape[1] for tokens in tables if len(tokens))
    columns = [[getattr(tokens, field.name) for tokens in tables] for field in fields(TokenTable)]
    columns[-1] = [ran[:, :layers] for ran in columns[-1] if len(ran)]
    return facts, TokenTable(*(np.concatenate(column) for column in columns)), texts


def _tokens(row: MapRow, group: int, view: View, layers: int) -> TokenTable:
    count = len(row.token_ids)
    t = np.arange(count)
    passes = t - 1 if view == "wrote" else t
    depths = np.where(passes >= 0, row.layers_used[passes], 0)
    kind = np.array(row.token_class, dtype=object)
    mask = (depths > 0) & (kind != "template")
    nothing = np.full(count, np.nan)
    ran = np.ones((count, 0), bool) if row.ran is None else row.ran[passes]
    whole = TokenTable(
        task=np.full(count, row.task, dtype=object),
        group=np.full(count, group),
        generated=row.generated,
        place=_places(row.generated),
        kind=kind,
        repeat=_repeats(row.token_ids, kind == "template"),
        side=_sides(row),
        digit=np.array([bool(_DIGIT.search(piece)) for piece in row.pieces]),
        depth=depths.astype(float),
        entropy=nothing if row.entropy is None else row.entropy[passes].astype(float),
        surprisal=nothing if row.surprisal is None else row.surprisal.astype(float),
        ran=ran,
    )
    return whole.where(mask)


def _places(generated: np.ndarray) -> np.ndarray:
    """Counted anew wherever an answer begins; prompts count from the start of the text."""
    t = np.arange(len(generated))
    before = np.concatenate([[False], generated[:-1]])
    starts = np.maximum.accumulate(np.where(generated & ~before, t, 0))
    return np.where(generated, t - starts, t)


def _repeats(ids: np.ndarray, template: np.ndarray) -> np.ndarray:
    singles: set[int] = set()
    pairs: set[tuple[int, int]] = set()
    result = np.zeros(len(ids), np.int64)
    last = None
    for t, token in enumerate(ids.tolist()):
        if template[t]:
            last = None
            continue
        pair = None if last is None else (last, token)
        result[t] = 2 if pair in pairs else 1 if token in singles else 0
        singles.add(token)
        if pair is not None:
            pairs.add(pair)
        last = token
    return result


def _sides(row: MapRow) -> np.ndarray:
    """Of the tokens of an answer that has an "=": before its first one, or after its last one."""
    t, side = np.arange(len(row.token_ids)), np.full(len(row.token_ids), -1)
    begins = row.generated & ~np.concatenate([[False], row.generated[:-1]])
    answer = np.where(row.generated, np.cumsum(begins), 0)
    inside = np.array([kind not in ("end mark", "template") for kind in row.token_class])
    signs = np.array(["=" in piece for piece in row.pieces])
    for number in range(1, int(answer.max(initial=0)) + 1):
        own = answer == number
        if len(places := t[own & signs]):
            side[own & inside & (t < places[0])] = 0
            side[own & inside & (t > places[-1])] = 1
    return side
