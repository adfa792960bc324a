"""What a layer-allocation map holds, and how it lies in Parquet: one row for each text.

Everything that has a length has one entry per token, and entry t belongs to the pass that *reads* token t (and predicts
token t + 1), as in `Route.layers_used`. Two exceptions are said where they stand: `surprisal` and `alternatives`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.core.dial import Dials, PromptBudget
from depthdial.core.names import public_name

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1
KEY = b"depthdial"
"""Under which a Parquet file's metadata holds its `Facts`."""
LEXICAL = (
    "function word",
    "content word",
    "word continuation",
    "number",
    "punctuation",
    "white space",
    "end mark",
    "template",
)
"""What a token is: one of these."""


@dataclass(frozen=True)
class Facts:
    """What is the same for every text of a map."""

    model: str
    plugin: str | None
    parts_sha256: str
    """Of the names and values of the plug-in's tensors: two plug-ins of one name are told apart."""
    method: str
    budget: float | None
    """The budget asked for, of answers; None where the plug-in stood as it was trained."""
    offset: float
    """The dial's logit offset of answers, where a budget is held that of their first tokens; `inf` is the untouched
    base."""
    layers: int
    """Layers of the model: what a method adds (an exit's own block, a loop's second round) counted, in their places."""
    routed: tuple[int, ...]
    """The layers with a decision, in order."""
    always_on: int
    """The fewest layers that a token can run."""
    dtype: str
    alternatives: int = 0
    """Next tokens recorded at each position."""
    prompt_budget: PromptBudget | None = "same"
    """The budget asked for, of prompts: 1.0 is the untouched base, "same" the dial of answers, as in maps of before
    there were two; None where an offset was set by hand."""
    prompt_offset: float | None = None
    """The dial's logit offset of prompts; None: as `offset`."""
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(
        cls,
        model: Any,
        name: str,
        budget: float | None = None,
        dials: Dials | None = None,
        alternatives: int = 0,
        prompt_budget: PromptBudget | None = "same",
    ) -> Facts:
        """Of a converted model; dials None is where its dial stands, for all tokens. name: as the model was asked for;
        of a place on this machine the last part is kept. ValueError for a model that is not converted."""
        from depthdial.models.checkpoint import plugin_of  # torch, which to read a map takes no part in
        from depthdial.models.converted import converted_of

        converted, plugin = converted_of(model), plugin_of(model)
        program = converted.program
        dials = Dials(float(converted.settings.offset)) if dials is None else dials
        return cls(
            model=public_name(name),
            plugin=None if plugin is None else plugin.name,
            parts_sha256=_digest(model),
            method=type(converted.method).__name__,
            budget=budget,
            offset=float(dials.written),
            layers=len(program.visits),
            routed=tuple(sorted({program.visit_of[s] for s in program.routed})),
            always_on=program.least,
            dtype=str(model.dtype).removeprefix("torch."),
            alternatives=alternatives,
            prompt_budget=prompt_budget,
            prompt_offset=None if prompt_budget == "same" else float(dials.reading),
        )

    @property
    def dial(self) -> str:
        """Where both dials stood, in words."""
        if self.budget is None:
            return "as it was trained"
        if self.prompt_budget in (None, "same") or self.offset == self.prompt_offset:
            return f"budget {self.budget:g}"
        return f"budget {self.budget:g}, prompt budget {self.prompt_budget:g}"

    @property
    def predictor(self) -> str:
        """Who was asked what comes next: the base; or the model itself, where it has no plug-in."""
        return "the model" if self.plugin is None else "the base"

    @property
    def reading(self) -> float:
        """The dial's logit offset of prompts."""
        return self.offset if self.prompt_offset is None else self.prompt_offset

    def to_json(self) -> dict[str, Any]:
        """As JSON has it: the infinite offset of answers is null, that of prompts "inf", since there null says more."""
        offset = self.prompt_offset
        return {
            **asdict(self),
            "offset": self.offset if math.isfinite(self.offset) else None,
            "prompt_offset": offset if offset is None or math.isfinite(offset) else "inf",
        }


@dataclass(frozen=True)
class MapRow:
    """One text of T tokens; L layers, R of them routed, K alternatives."""

    id: str
    task: str
    group: str
    """Texts of one group share material (one passage, say): they are one draw in every interval."""
    forced: bool
    """Were the tokens marked as generated given (teacher forcing), not drawn from the model at this budget?"""
    token_ids: np.ndarray
    """int32 [T]"""
    pieces: list[str]
    """Joined they are the text."""
    generated: np.ndarray
    """bool [T]: part of an answer, not of the prompt."""
    token_class: list[str]
    """What the token is: one of `LEXICAL`."""
    layers_used: np.ndarray
    """int16 [T]: layers run by the pass that reads the token; 0 where there was no such pass (the last token of a text
    that comes from an engine)."""
    cost: np.ndarray | None = None
    """float32 [T]: true cost, relative to dense, of the pass that reads the token; nan where there was none."""
    ran: np.ndarray | None = None
    """bool [T, L]: which layers; a layer ran if any unit of it did."""
    scores: np.ndarray | None = None
    """float16 [T, R]: the routers' soft opinions, 0 to 1."""
    entropy: np.ndarray | None = None
    """float32 [T], nats: of what the base (full depth, same tokens) expects after the token; a model that was
    pre-trained with its routers has no base and is asked itself."""
    surprisal: np.ndarray | None = None
    """float32 [T], nats: of the token itself to the base, from what stands before it; NaN for the first."""
    alternatives: list[list[tuple[str, float]]] | None = None
    """[T][K]: the base's likeliest tokens in the token's own place with their probabilities; none for the first."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def costs(self, generated: bool) -> np.ndarray:
        """float64 [n]: true costs of the passes that read its answer's tokens, or its prompt's, as far as known."""
        if self.cost is None:
            return np.empty(0)
        costs = self.cost[self.generated == generated].astype(float)
        return costs[np.isfinite(costs)]

    @property
    def starts(self) -> np.ndarray:
        """int32 [T]: the character of `text` at which each piece starts."""
        lengths = [len(piece) for piece in self.pieces]
        return np.cumsum([0, *lengths[:-1]], dtype=np.int32)[: len(lengths)]


@dataclass(frozen=True)
class DepthMap:
    """Texts mapped with one model at one setting."""

    facts: Facts
    rows: Sequence[MapRow]


def _digest(model: Any) -> str:
    import torch

    from depthdial.models.checkpoint import parts_of

    digest = hashlib.sha256()
    for name, tensor in sorted(parts_of(model).items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def columns() -> pa.Schema:
    """The columns of a map in Parquet, of `FORMAT_VERSION`; maps of before costs were kept have no `cost`."""
    import pyarrow as pa

    return pa.schema(
        {
            "id": pa.string(),
            "task": pa.string(),
            "group": pa.string(),
            "forced": pa.bool_(),
            "text": pa.string(),
            "token_ids": pa.list_(pa.int32()),
            "pieces": pa.list_(pa.string()),
            "starts": pa.list_(pa.int32()),
            "generated": pa.list_(pa.bool_()),
            "token_class": pa.list_(pa.string()),
            "layers_used": pa.list_(pa.int16()),
            "cost": pa.list_(pa.float32()),
            "run_mask": pa.binary(),
            "scores": pa.list_(pa.float16()),
            "entropy": pa.list_(pa.float32()),
            "surprisal": pa.list_(pa.float32()),
            "alternatives": pa.list_(pa.string()),
            "alternative_probs": pa.list_(pa.float16()),
        }
    )


def arrow_table(depths: DepthMap) -> pa.Table:
    """The map as an Arrow table whose metadata holds its facts."""
    import pyarrow as pa

    schema = columns().with_metadata({KEY: json.dumps(depths.facts.to_json()).encode()})
    return pa.Table.from_pylist([_plain(row) for row in depths.rows], schema)


def pack_mask(ran: np.ndarray) -> bytes:
    """bool [T, L] to bits: ceil(L / 8) bytes for each token, bit i (lowest first) is layer i."""
    return np.packbits(ran, axis=1, bitorder="little").tobytes()


def unpack_mask(mask: bytes, layers: int) -> np.ndarray:
    """The inverse of `pack`: bool [T, layers]."""
    rows = np.frombuffer(mask, np.uint8).reshape(-1, -(-layers // 8))
    return np.unpackbits(rows, axis=1, count=layers, bitorder="little").astype(bool)


def _plain(row: MapRow) -> dict[str, Any]:
    choices = None if row.alternatives is None else _flat(row.alternatives)
    packed = {
        "run_mask": None if row.ran is None else pack_mask(row.ran),
        "scores": None if row.scores is None else row.scores.ravel(),
        "alternatives": choices and choices[0],
        "alternative_probs": choices and np.asarray(choices[1], np.float16),
    }
    return {name: packed[name] if name in packed else getattr(row, name) for name in columns().names}


def _flat(choices: Sequence[Sequence[tuple[str, float]]]) -> tuple[list[str], list[float]]:
    """Without those of the first token, which has none."""
    pairs: Iterable[tuple[str, float]] = (pair for of_token in choices for pair in of_token)
    texts, probabilities = zip(*pairs, strict=True) if any(choices) else ((), ())
    return list(texts), list(probabilities)
