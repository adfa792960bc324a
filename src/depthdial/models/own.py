"""Model types of our own: a family's Hugging Face model, converted as it is made, so that one folder holds all of it.

`AutoModelForCausalLM` opens such a folder once depthdial is imported, and stock transformers refuses it by its type
("depthdial_llama" and so on) instead of running every layer in silence. Models pre-trained with their routers
(`models.scratch`) and exported ones (`models.export`) are of these types.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from depthdial.core.method import Method
from depthdial.methods import method_named, name_of
from depthdial.models.checkpoint import Plugin, curves_from
from depthdial.models.convert import WRAPPED, convert
from depthdial.models.converted import converted_of
from depthdial.models.dial import set_budget
from depthdial.models.families import OWN
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


class DepthdialLlamaConfig(LlamaConfig):
    """A Llama's configuration and the method that routes it (its name in METHODS and its fields)."""

    model_type = f"{OWN}llama"

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


class DepthdialMistralConfig(MistralConfig):
    """The same for Mistral."""

    model_type = f"{OWN}mistral"

    method: dict | None = None
    budget: float | None = None
    offset: float | None = None
    prompt_budget: float | str | None = None
    curves: dict | None = None
    base: dict | None = None


class DepthdialQwen2Config(Qwen2Config):
    """The same for Qwen2."""

    model_type = f"{OWN}qwen2"

    method: dict | None = None
    budget: float | None = None
    offset: float | None = None
    prompt_budget: float | str | None = None
    curves: dict | None = None
    base: dict | None = None


class DepthdialQwen3Config(Qwen3Config):
    """The same for Qwen3."""

    model_type = f"{OWN}qwen3"

    method: dict | None = None
    budget: float | None = None
    offset: float | None = None
    prompt_budget: float | str | None = None
    curves: dict | None = None
    base: dict | None = None


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


class DepthdialLlama(_Opened, LlamaForCausalLM):
    """A Llama converted as it is made, everything trainable: `converted` and `route` as `convert` leaves them."""

    config_class = DepthdialLlamaConfig

    def __init__(self, config: DepthdialLlamaConfig):
        super().__init__(config)
        _routed(self, config)


class DepthdialMistral(_Opened, MistralForCausalLM):
    """The same for Mistral."""

    config_class = DepthdialMistralConfig

    def __init__(self, config: DepthdialMistralConfig):
        super().__init__(config)
        _routed(self, config)


class DepthdialQwen2(_Opened, Qwen2ForCausalLM):
    """The same for Qwen2."""

    config_class = DepthdialQwen2Config

    def __init__(self, config: DepthdialQwen2Config):
        super().__init__(config)
        _routed(self, config)


class DepthdialQwen3(_Opened, Qwen3ForCausalLM):
    """The same for Qwen3."""

    config_class = DepthdialQwen3Config

    def __init__(self, config: DepthdialQwen3Config):
        super().__init__(config)
        _routed(self, config)


TYPES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "llama": (DepthdialLlamaConfig, DepthdialLlama),
    "mistral": (DepthdialMistralConfig, DepthdialMistral),
    "qwen2": (DepthdialQwen2Config, DepthdialQwen2),
    "qwen3": (DepthdialQwen3Config, DepthdialQwen3),
}
"""Our types, by the family they are made from."""

for _config, _model in TYPES.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)


def is_own(model: PreTrainedModel) -> bool:
    """Is the model of one of our types?"""
    return any(isinstance(model, kind) for _, kind in TYPES.values())
