"""Adaptive depth for pretrained language models. What is named here is the public API; it is loaded when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depthdial.engine.llm import LLM
    from depthdial.engine.sampling import SamplingParams
    from depthdial.methods import METHODS
    from depthdial.models import load
    from depthdial.models.checkpoint import save
    from depthdial.models.convert import convert

__version__ = "0.1.0"
__all__ = ["LLM", "METHODS", "SamplingParams", "__version__", "convert", "load", "save"]

_HOME = {
    "LLM": "depthdial.engine.llm",
    "METHODS": "depthdial.methods",
    "SamplingParams": "depthdial.engine.sampling",
    "convert": "depthdial.models.convert",
    "load": "depthdial.models",
    "save": "depthdial.models.checkpoint",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `depthdial --help` must not wait for it
    if name not in _HOME:
        raise AttributeError(f"module 'depthdial' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
