"""Adaptive depth for pretrained language models. What is named here is the public API; it is loaded when asked for."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depthdial.engine.llm import LLM
    from depthdial.engine.sampling import SamplingParams
    from depthdial.methods import METHODS, register
    from depthdial.models import load
    from depthdial.models.checkpoint import save
    from depthdial.models.convert import convert
    from depthdial.models.dial import set_budget
    from depthdial.models.hub import push
    from depthdial.models.own_loop import calibrate, method_loss

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "METHODS",
    "SamplingParams",
    "__version__",
    "calibrate",
    "convert",
    "load",
    "method_loss",
    "push",
    "register",
    "save",
    "set_budget",
]

_HOME = {
    "LLM": "depthdial.engine.llm",
    "METHODS": "depthdial.methods",
    "SamplingParams": "depthdial.engine.sampling",
    "calibrate": "depthdial.models.own_loop",
    "convert": "depthdial.models.convert",
    "load": "depthdial.models",
    "method_loss": "depthdial.models.own_loop",
    "push": "depthdial.models.hub",
    "register": "depthdial.methods",
    "save": "depthdial.models.checkpoint",
    "set_budget": "depthdial.models.dial",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `depthdial --help` must not wait for it
    if name not in _HOME:
        raise AttributeError(f"module 'depthdial' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__


class _Types(dict):
    """transformers' table of model types that are not its own; asked for one of ours, it is told of them first."""

    def __contains__(self, key: object) -> bool:
        if str(key).startswith("depthdial_") and not super().__contains__(key):
            import_module("depthdial.models.own")
        return super().__contains__(key)


class _AtImport:
    """Makes `AutoModelForCausalLM` know our model types from `import depthdial` on, without importing transformers
    here: its table is exchanged as soon as it is made."""

    table = "transformers.models.auto.configuration_auto"

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.table:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            self.extend(module)

        spec.loader.exec_module = exec_module
        return spec

    @staticmethod
    def extend(module: Any) -> None:
        mapping = module.CONFIG_MAPPING
        mapping._extra_content = _Types(mapping._extra_content)


if _AtImport.table in sys.modules:
    _AtImport.extend(sys.modules[_AtImport.table])
else:
    sys.meta_path.insert(0, _AtImport())
