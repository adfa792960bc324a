"""method.json as it must be: foreign files are looked at field by field before anything is made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from depthdial.models.folder import pointer_of
from depthdial.models.foreign import shown

_CURVE = ("offsets", "costs", "kls")


def read_json(file: Path) -> dict[str, Any]:
    """A file of one JSON object, numbers finite. Raises ValueError, one line, for anything else; OSError."""
    if (instead := pointer_of(file)) is not None:
        raise ValueError(f"{file} is {instead}")
    try:
        data = json.loads(file.read_text("utf-8"), parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply; get the plug-in again") from error
    except ValueError as error:  # no JSON, no UTF-8, a number of too many digits
        raise ValueError(f"{file} is not valid JSON ({shown(error, 200)}); get the plug-in again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds {_kind(data)}, not an object; get the plug-in again")
    return data


def check_plugin(data: dict[str, Any]) -> None:
    """Raise ValueError, naming the field, for metadata that no plug-in has. The method's own fields are not looked at,
    and what describes the training is for people."""
    for field, kind in (("name", str), ("method", dict), ("base", dict), ("curves", dict), ("training", dict)):
        _of(data, field, kind)
    _of(data["method"], "name", str, "method.")
    if unknown := set(data["base"]) ^ {"model_type", "config", "weights"}:
        raise ValueError(f"base lacks or misnames {shown(min(unknown))}")
    for field in data["base"]:
        _of(data["base"], field, str, "base.")
    budget = _field(data, "recommended_budget")
    if budget is not None and (not _number(budget) or not 0 < budget <= 1):
        raise ValueError(f"recommended_budget is {_said(budget)}, not a number up to 1 or null")
    prompt = data.get("prompt_budget")  # plug-ins of before there was a choice have none
    if prompt not in (None, "same") and (not _number(prompt) or not 0 < prompt <= 1):
        raise ValueError(f'prompt_budget is {_said(prompt)}, not a number up to 1, "same" or null')
    check_curves(data["curves"])


def check_curves(curves: Any) -> None:
    """The same for curves by kind of token."""
    if not isinstance(curves, dict):
        raise ValueError(f"curves is {_kind(curves)}, not an object")
    for kind, curve in curves.items():
        place = f"curves.{shown(kind)}"
        if not isinstance(curve, dict) or set(curve) - {"step"} != set(_CURVE):
            raise ValueError(f"{place} needs {', '.join(_CURVE)}, and step at most")
        for field in _CURVE:
            values = curve[field]
            if not isinstance(values, list | tuple) or not all(_number(value) for value in values):
                raise ValueError(f"{place}.{field} is no list of finite numbers")
        if not _number(curve.get("step", 0.0)) or curve.get("step", 0.0) < 0:
            raise ValueError(f"{place}.step is {_said(curve['step'])}, not a number of at least 0")


def _of(data: dict[str, Any], field: str, kind: type, before: str = "") -> None:
    if not isinstance(value := _field(data, field, before), kind):
        raise ValueError(f"{before}{field} is {_kind(value)}, not {_kind(kind())}")
    if isinstance(value, str) and not value.isprintable():  # it is shown in many a place
        raise ValueError(f"{before}{field} holds signs that steer a terminal: {shown(value)}")


def _field(data: dict[str, Any], field: str, before: str = "") -> Any:
    if field not in data:
        raise ValueError(f"{before}{field} is missing")
    return data[field]


def _number(value: Any) -> bool:
    """Finite also as a float: a whole number of 400 digits is not."""
    try:
        return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _refuse(name: str) -> None:
    raise ValueError(f"the number {name}")


def _said(value: Any) -> str:
    return shown(repr(value), 60)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    words = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return words[type(value)]
