"""The families of models that can be converted. FAMILIES is the only list of them: those that transformers has here."""

from transformers import CONFIG_MAPPING, PretrainedConfig

from depthdial.models.families.exaone4 import EXAONE4
from depthdial.models.families.gemma import GEMMA, GEMMA2, GEMMA3
from depthdial.models.families.gpt_oss import GPT_OSS
from depthdial.models.families.hunyuan import HUNYUAN
from depthdial.models.families.ministral3 import MINISTRAL3
from depthdial.models.families.neighbours import ERNIE4_5, GLM, HELIUM
from depthdial.models.families.olmo import OLMO2, OLMO3
from depthdial.models.families.plain import PLAIN
from depthdial.models.families.smollm3 import SMOLLM3
from depthdial.models.family import Family

ODD = (
    *(SMOLLM3, MINISTRAL3, OLMO2, OLMO3, EXAONE4, ERNIE4_5, HELIUM, GLM, HUNYUAN),
    *(GEMMA, GEMMA2, GEMMA3, GPT_OSS),
)
FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (*PLAIN, *ODD) if family.model_type in CONFIG_MAPPING
}  # an older transformers lacks the newest


OWN = "depthdial_"
"""Our own model types are a family's with this before it: the same layers, converted (`models.scratch`)."""


def text_part(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the language model in one that sees, too (Gemma 3 from 4B on, Ministral 3), if its family is
    known; any other as it is."""
    text = config.get_text_config()
    if config.model_type in FAMILIES or text.model_type not in FAMILIES:
        return config
    text.tie_word_embeddings = config.tie_word_embeddings  # the head belongs to the whole
    return text


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model's configuration. Raises ValueError for a family that is not known."""
    if (kind := config.model_type.removeprefix(OWN)) not in FAMILIES:
        raise ValueError(
            f"models of type {config.model_type!r} cannot be converted yet; known: {', '.join(FAMILIES)} "
            "(CONTRIBUTING.md says how to add a family)"
        )
    return FAMILIES[kind]
