"""Model types of our own: a family's Hugging Face model, converted as it is made, so that one folder holds all of it.

`AutoModelForCausalLM` opens such a folder once depthdial is imported, and stock transformers refuses it by its type
("depthdial_llama" and so on) instead of running every layer in silence. Models pre-trained with their routers
(`models.scratch`) and exported ones (`models.export`) are of these types.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from depthdial.core.method import Method
from depthdial.methods import method_named, name_of
from depthdial.models.checkpoint import Plugin, curves_from
from depthdial.models.convert import WRAPPED, convert
from depthdial.models.converted import converted_of
from depthdial.models.dial import set_budget
from depthdial.models.families import FAMILIES, OWN
from depthdial.models.family import Family
from depthdial.models.fingerprint import Fingerprint


def method_from(config: PretrainedConfig) -> Method:
    """The method that routes a model of one of our types; a configuration without one is dense."""
    fields = dict(config.method or {"name": "dense"})
    return method_named(fields.pop("name"), fields)


def method_for(config: PretrainedConfig | None, name: str, fields: dict[str, Any]) -> Method:
    """The method of this name with these fields, for a base of a configuration, or of one that is not known yet; for a
    model of one of our types its own. Raises ValueError where that is another one."""
    if config is None or not config.model_type.startswith(OWN):
        return method_named(name, fields)
    own = method_from(config)
    if name_of(own) != name or any(getattr(own, field, None) != value for field, value in fields.items()):
        raise ValueError(f"this model has a method of its own; give --method {name_of(own)}, and none of its fields")
    return own


def own_name(config: PretrainedConfig | None) -> str:
    """The name of the method that a model of one of our types has; empty for any other."""
    return "" if config is None or not config.model_type.startswith(OWN) else name_of(method_from(config))


def plugin_from(config: PretrainedConfig) -> Plugin | None:
    """What an exported configuration knows of its plug-in; None where nothing is (a model made from nothing).

    Raises ValueError for a base or curves that cannot be read.
    """
    if config.base is None:
        return None
    try:
        base, curves = Fingerprint(**config.base), curves_from(config.curves or {})
    except (TypeError, AttributeError) as error:
        raise ValueError(f"config.json: base or curves cannot be read ({error}); export the model again") from error
    return Plugin(f"{base.model_type}-exported", method_from(config), base, curves, recommended=config.budget)


def trained_with_routers(config: PretrainedConfig) -> bool:
    """What `dial.has_own_routers` says of a model of one of our types, by its configuration alone."""
    method = method_from(config)
    program = method.program(config.num_hidden_layers)
    if config.base is not None or not program.skips or program.loops:
        return False
    return not method.frozen or config.prompt_budget in (None, "same")


def _routed(model: Any, config: PretrainedConfig) -> None:
    """Convert a model that is being made, everything trainable, and turn its dials to the configuration's budgets."""
    method = method_from(config)
    convert(model, method, frozen=False)
    plugin = converted_of(model).plugin = plugin_from(config)
    set_budget(model, None if plugin is None else config.budget, prompt=config.prompt_budget)


class _Opened(PreTrainedModel):
    """What our types have in common."""

    _keep_in_fp32_modules_strict = {"parts"}  # noqa: RUF012 - as transformers has it

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As that of transformers. Also opens folders of earlier versions, whose names had a wrapper at each unit."""
        opened: Any = super().from_pretrained(*args, **{"key_mapping": {WRAPPED.pattern: ""}, **kwargs})
        model = opened[0] if isinstance(opened, tuple) else opened
        model._weight_conversions = None  # or saving would put the wrappers back
        return opened


class Types(NamedTuple):
    """The classes of one of our types."""

    config: type[PretrainedConfig]
    model: type[PreTrainedModel]


def _config_type(family: Family) -> type[PretrainedConfig]:
    """A family's configuration and the method that routes it."""

    class Config(family.example):
        """That of the family, and the method that routes it (its name in METHODS and its fields)."""

        model_type = f"{OWN}{family.model_type}"

        method: dict | None = None
        budget: float | None = None
        """True cost relative to dense that the dial is set to; None is the trained form, or `offset`."""
        offset: float | None = None
        """Logit offset of the dial, where it stands between budgets."""
        prompt_budget: float | str | None = None
        """What prompts may cost to be read; None, as in folders of before there was a choice, is what `load` does."""
        curves: dict | None = None
        """The plug-in's measured curves, as in its method.json."""
        base: dict | None = None
        """The fingerprint of the base that was exported; None for a model pre-trained with its routers."""

        def __post_init__(self, **kwargs: Any) -> None:
            _model_type(family.model_type)  # before anybody asks for the model
            super().__post_init__(**kwargs)

    return _named(Config, f"Depthdial{family.example.__name__}")


@cache
def _model_type(kind: str) -> type[PreTrainedModel]:
    """A family's model, converted as it is made: imported when it is needed, as those of transformers are."""
    config = _CONFIGS[kind]
    base: Any = MODEL_FOR_CAUSAL_LM_MAPPING[FAMILIES[kind].example]

    class Model(_Opened, base):
        """That of the family, converted as it is made, all trainable: `converted` and `route` as `convert` leaves
        them."""

        config_class = config

        def __init__(self, config: Any):
            super().__init__(config)
            _routed(self, config)

    made = _named(Model, f"Depthdial{base.__name__.removesuffix('ForCausalLM')}")
    AutoModelForCausalLM.register(config, made, exist_ok=True)
    return made


def _named(kind: type, name: str) -> type:
    kind.__name__ = kind.__qualname__ = name
    return kind


_CONFIGS = {family.model_type: _config_type(family) for family in FAMILIES.values()}
for _config in _CONFIGS.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)


def own_types(kind: str) -> Types:
    """Our types of a family, by the type that its configuration has."""
    return Types(_CONFIGS[kind], _model_type(kind))


def __getattr__(name: str) -> type:
    """Our types by their names, for pickle and for who imports them."""
    for kind, config in _CONFIGS.items():
        if name == config.__name__:
            return config
        if config.__name__.startswith(name) and _model_type(kind).__name__ == name:
            return _model_type(kind)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def is_own(model: PreTrainedModel) -> bool:
    """Is the model of one of our types?"""
    return isinstance(model, _Opened)
