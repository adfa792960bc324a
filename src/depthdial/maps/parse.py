"""A map as a file of others says it is: every fact, column and row is checked before anything is computed from it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.maps.schema import FORMAT_VERSION, KEY, LEXICAL, DepthMap, Facts, MapRow, columns, unpack_mask

if TYPE_CHECKING:
    import pyarrow as pa

MOST_LAYERS = 2**15 - 1
"""What `layers_used` can hold."""
_ALWAYS = ("id", "task", "group", "forced", "token_ids", "pieces", "generated", "token_class", "layers_used")
"""Columns that have a value in every row; what is null elsewhere was not recorded."""
_LATER = ("prompt_budget", "prompt_offset", "cost")
"""Facts and columns that maps of before there were two dials do not have."""
_KINDS: dict[str, Any] = {
    "token_ids": np.int32, "generated": bool, "layers_used": np.int16, "cost": np.float32, "scores": np.float16,
    "entropy": np.float32, "surprisal": np.float32,
}  # fmt: skip
_REMEDY = "make the map again"


def from_text(raw: str | bytes) -> Any:
    """JSON of a file of others. Raises ValueError for all that is none, too deep or with too long a number."""
    try:
        return json.loads(raw)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_facts(data: Any, where: str) -> Facts:
    """The facts in JSON. ValueError, naming `where` and the field, for another format version and for what are none."""
    version = data.get("format_version") if isinstance(data, dict) else None
    if version is None:
        raise ValueError(f"{where} is not a depth map; make one with `depthdial map`")
    if version != FORMAT_VERSION or isinstance(version, bool | float):
        raise ValueError(
            f"{where} is a map of format version {_short(version)}; this depthdial reads {FORMAT_VERSION}: "
            "upgrade one of the two, or make the map again"
        )
    if missing := [name for name in Facts.__dataclass_fields__ if name not in data and name not in _LATER]:
        raise ValueError(f"{where}: its facts lack {', '.join(map(repr, missing))}; {_REMEDY}")
    layers = _whole(data, "layers", where, 1, MOST_LAYERS)
    routed = data["routed"]
    if not isinstance(routed, list | tuple) or not all(type(i) is int and 0 <= i < layers for i in routed):
        raise ValueError(
            f"{where}: its `routed` must list layers from 0 to {layers - 1}, not {_short(routed)}; {_REMEDY}"
        )
    if list(routed) != sorted(set(routed)):
        raise ValueError(f"{where}: its `routed` must name each layer once, in order; {_REMEDY}")
    offset, prompt = _real(data, "offset", where), {"prompt_budget": "same", "prompt_offset": None, **data}
    return Facts(
        model=_name(data, "model", where),
        plugin=None if data["plugin"] is None else _name(data, "plugin", where),
        parts_sha256=_name(data, "parts_sha256", where),
        method=_name(data, "method", where),
        budget=_real(data, "budget", where),
        offset=math.inf if offset is None else offset,
        layers=layers,
        routed=tuple(routed),
        always_on=_whole(data, "always_on", where, 0, layers),
        dtype=_name(data, "dtype", where),
        alternatives=_whole(data, "alternatives", where, 0, 2**31 - 1),
        prompt_budget="same" if prompt["prompt_budget"] == "same" else _real(prompt, "prompt_budget", where),
        prompt_offset=math.inf if prompt["prompt_offset"] == "inf" else _real(prompt, "prompt_offset", where),
    )


def parse_table(table: pa.Table, where: str) -> DepthMap:
    """The map in an Arrow table. ValueError, naming `where`, for a table that is none, is one of another version, or
    contradicts itself."""
    raw = (table.schema.metadata or {}).get(KEY)
    try:
        data = None if raw is None else from_text(raw)
    except ValueError:
        data = None
    facts = parse_facts(data, where)
    records = _columns(table, where).to_pylist()
    return DepthMap(facts, [_row(record, facts, f"{where}, row {i}") for i, record in enumerate(records, 1)])


def _columns(table: pa.Table, where: str) -> pa.Table:
    """The columns of a map, of its own types. Types that hold the same values are taken, too."""
    import pyarrow as pa

    schema = columns()
    if missing := [name for name in schema.names if name not in table.column_names and name not in _LATER]:
        raise ValueError(f"{where} lacks the columns {', '.join(missing)}; {_REMEDY}")
    arrays = []
    for field in schema:
        if field.name not in table.column_names:
            arrays.append(pa.nulls(len(table), field.type))
            continue
        if table.column_names.count(field.name) > 1:
            raise ValueError(f"{where} has the column `{field.name}` twice; {_REMEDY}")
        column = table.column(field.name)
        try:
            column = column.cast(field.type)
            column.validate(full=True)  # text that is no UTF-8, lists that reach beyond their values
        except (pa.ArrowException, UnicodeDecodeError) as error:
            kind, why = table.schema.field(field.name).type, " ".join(str(error).split())[:120]
            raise ValueError(
                f"{where}: the column `{field.name}` is {kind}, not {field.type} ({why}); {_REMEDY}"
            ) from None
        if field.name in _ALWAYS and column.null_count:
            raise ValueError(f"{where}: the column `{field.name}` has a row without a value; {_REMEDY}")
        if pa.types.is_list(field.type) and column.combine_chunks().flatten().null_count:
            raise ValueError(f"{where}: the column `{field.name}` has a list with an empty place; {_REMEDY}")
        arrays.append(column)
    return pa.table(arrays, schema)


def _row(record: dict[str, Any], facts: Facts, where: str) -> MapRow:
    count, layers = len(record["token_ids"]), facts.layers
    if not count:
        raise ValueError(f"{where} has no tokens; {_REMEDY}")
    lengths = dict.fromkeys(
        ("pieces", "generated", "token_class", "layers_used", "cost", "entropy", "surprisal"), count
    )
    lengths |= {"run_mask": count * -(-layers // 8), "scores": count * len(facts.routed)}
    lengths |= dict.fromkeys(("alternatives", "alternative_probs"), (count - 1) * facts.alternatives)
    for name, length in lengths.items():
        if record[name] is not None and len(record[name]) != length:
            raise ValueError(f"{where}: `{name}` has {len(record[name])} entries where {length} belong; {_REMEDY}")
    if (record["alternatives"] is None) != (record["alternative_probs"] is None):
        raise ValueError(f"{where}: only one of `alternatives` and `alternative_probs` is recorded; {_REMEDY}")
    if strange := sorted(set(record["token_class"]) - set(LEXICAL)):
        raise ValueError(f"{where}: `token_class` has {_short(strange[0])}, which is none; {_REMEDY}")
    for name, most in (("token_ids", 2**31 - 1), ("layers_used", layers)):
        if bad := [value for value in record[name] if not 0 <= value <= most]:
            raise ValueError(f"{where}: `{name}` has {bad[0]}, outside 0 to {most}; {_REMEDY}")
    for name, most in (
        ("scores", 1.0),
        ("alternative_probs", 1.0),
        ("entropy", math.inf),
        ("surprisal", math.inf),
        ("cost", math.inf),
    ):
        first = 1 if name == "surprisal" else 0  # the first token's is not known
        if bad := [value for value in (record[name] or ())[first:] if not 0 <= value <= most and not math.isnan(value)]:
            raise ValueError(f"{where}: `{name}` has {bad[0]:g}, outside 0 to {most:g}; {_REMEDY}")
    return _row_of(record, facts)


def _row_of(record: dict[str, Any], facts: Facts) -> MapRow:
    arrays: dict[str, Any] = {
        name: None if record[name] is None else np.array(record[name], kind) for name, kind in _KINDS.items()
    }
    if arrays["scores"] is not None:
        arrays["scores"] = arrays["scores"].reshape(len(record["token_ids"]), len(facts.routed))
    same: dict[str, Any] = {name: record[name] for name in ("id", "task", "group", "forced", "pieces", "token_class")}
    ran = None if record["run_mask"] is None else unpack_mask(record["run_mask"], facts.layers)
    return MapRow(**same, **arrays, ran=ran, alternatives=_choices(record, facts.alternatives))


def _choices(record: dict[str, Any], count: int) -> list[list[tuple[str, float]]] | None:
    texts, probabilities = record["alternatives"], record["alternative_probs"]
    if texts is None or not count:
        return None
    pairs = [(text, float(p)) for text, p in zip(texts, probabilities, strict=True)]
    return [[], *(pairs[i : i + count] for i in range(0, len(pairs), count))]


def _whole(data: dict[str, Any], name: str, where: str, least: int, most: int) -> int:
    value = data[name]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(
            f"{where}: its `{name}` must be a whole number from {least} to {most}, not {_short(value)}; {_REMEDY}"
        )
    return value


def _real(data: dict[str, Any], name: str, where: str) -> float | None:
    value = data[name]
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) <= 1e300:  # nan is neither below nor above
        raise ValueError(f"{where}: its `{name}` must be a number or null, not {_short(value)}; {_REMEDY}")
    return float(value)


def _name(data: dict[str, Any], name: str, where: str) -> str:
    value = data[name]
    try:
        if isinstance(value, str):
            value.encode()
            return value
    except UnicodeEncodeError:
        pass
    raise ValueError(f"{where}: its `{name}` must be text, not {_short(value)}; {_REMEDY}")


def _short(value: Any) -> str:
    text = ascii(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
