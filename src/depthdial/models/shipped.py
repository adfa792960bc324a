"""The plug-ins that come with the package."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig

from depthdial.models.ahead import config_ahead
from depthdial.models.checkpoint import METHOD_FILE, read
from depthdial.models.families import OWN, family_of
from depthdial.models.fingerprint import config_hash
from depthdial.models.short_names import SHORT_NAMES

FOLDER = Path(__file__).parent / "plugins"


def shipped() -> list[Path]:
    """Folders of all shipped plug-ins, by name."""
    return sorted(path.parent for path in FOLDER.glob(f"*/{METHOD_FILE}"))


def shipped_for(config: PretrainedConfig, asked: str) -> Path:
    """The shipped plug-in for a base of this configuration, called `asked`. Raises ValueError if there is none."""
    wanted = config_hash(config)
    for path in shipped():
        if read(path).base.config == wanted:
            return path
    raise none_shipped(asked)


def shipped_ahead(asked: str) -> bool:
    """Is a plug-in shipped for the model called `asked`, or does it need none? Its configuration alone is read, before
    weights are fetched. Raises ValueError for a model that cannot be had or converted."""
    config = config_ahead(asked)
    if config is None:
        return any(read(path).base.model_type == SHORT_NAMES[asked].model_type for path in shipped())
    family_of(config)
    hashes = [read(path).base.config for path in shipped()]
    return config.model_type.startswith(OWN) or config_hash(config) in hashes


def none_shipped(asked: str) -> ValueError:
    """The error for a base without a shipped plug-in."""
    return ValueError(
        f"no plug-in is shipped for {asked!r}; train one (`depthdial train --model {asked} ...`) and pass its folder, "
        "or pass --plugin none for the base alone"
    )
