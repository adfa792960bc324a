"""Which layers the tokens of a measured run went through, asked of the dense reference and not of the engine.

So an engine that runs more than its method asks for is measured against the work that was needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from depthdial.core.program import Program
from depthdial.core.tokens import Trace
from depthdial.core.work import Path
from depthdial.models.converted import converted_of


@torch.no_grad()
def paths(
    model: Any,
    texts: Sequence[Sequence[int]],
    offsets: Sequence[Sequence[float]],
    prompts: Sequence[int],
    at_once: int = 16,
) -> list[Path]:
    """The way of each text's tokens, by the converted model at these offsets, one for each token. prompts: how many
    tokens of each text are read.

    Texts are padded on the right, which causal attention does not see.
    """
    converted, device, whole = converted_of(model), model.device, []
    for start in range(0, len(texts), at_once):
        some = texts[start : start + at_once]
        longest = max(map(len, some))
        dials = [[*of, *[0.0] * (longest - len(of))] for of in offsets[start : start + at_once]]
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in some], device=device)
        positions = torch.arange(longest, device=device).expand(len(some), -1)
        prompt = torch.tensor(prompts[start : start + at_once], device=device)
        if all(offset == math.inf for of in offsets for offset in of):  # nothing to ask: all that the base has runs
            ran = torch.tensor([step.base for step in converted.program.steps])[:, None].expand(-1, ids.numel())
            here = ran
        else:
            with converted.using(offset=torch.tensor(dials, device=device), read=None, prompt=prompt):
                model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1)
            ran, here = _steps(converted.program, converted.route.last.trace, ids.numel())
        for row, text in enumerate(some):
            own = slice(row * longest, row * longest + len(text))
            whole.append(_path(converted.program, ran[:, own], here[:, own], start + row))
    return whole


def _steps(program: Program, trace: Trace, count: int) -> tuple[Tensor, Tensor]:
    """bool [S, N] each: the steps that ran, and those that were waited at."""
    every = torch.ones(count, dtype=torch.bool)
    ran = [every if (of := trace.ran(s)) is None else of.cpu() for s in range(len(program.steps))]
    here = [trace.here[s].cpu() if s in trace.here else every for s in range(len(program.steps))]
    return torch.stack(ran), torch.stack(here)


def _path(program: Program, ran: Tensor, here: Tensor, text: int) -> Path:
    """Of one text. A key that a step left nothing of is not attended to."""
    places = torch.arange(ran.shape[1])
    keys = [ran[s] if step.absent == "nothing" else torch.ones_like(ran[s]) for s, step in enumerate(program.steps)]
    return Path(ran, here, torch.stack(keys).cumsum(1), places, torch.full_like(places, text))


def prefill_pass(texts: Sequence[Path], routed: bool) -> list[Path]:
    """One pass over whole prompts, each giving logits for its last token."""
    return [_join(texts, routed)]


def decode_passes(texts: Sequence[Path], starts: Sequence[int], steps: int, routed: bool) -> list[Path]:
    """`steps` passes of one token from each text; `starts`: the place of each text's first one."""
    return [
        _join([_at(text, start + step) for text, start in zip(texts, starts, strict=True)], routed)
        for step in range(steps)
    ]


def _at(text: Path, place: int) -> Path:
    one = slice(place, place + 1)
    return Path(text.ran[:, one], text.here[:, one], text.keys[:, one], text.positions[one], text.texts[one])


def _join(texts: Sequence[Path], routed: bool) -> Path:
    columns = ([getattr(text, name) for text in texts] for name in ("ran", "here", "keys", "positions", "texts"))
    return Path(*(torch.cat(column, -1) for column in columns), logits=len(texts), decided=routed)
