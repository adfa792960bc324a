"""The plug-ins that come with the package."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from depthdial.models.checkpoint import METHOD_FILE, read
from depthdial.models.fingerprint import config_hash

FOLDER = Path(__file__).parent / "plugins"


def shipped() -> list[Path]:
    """Folders of all shipped plug-ins, by name."""
    return sorted(path.parent for path in FOLDER.glob(f"*/{METHOD_FILE}"))


def shipped_for(model: PreTrainedModel, asked: str) -> Path:
    """The shipped plug-in for a base. Raises ValueError if there is none."""
    config = config_hash(model.config)
    for path in shipped():
        if read(path).base.config == config:
            return path
    raise ValueError(
        f"no plug-in is shipped for {asked!r}; train one (`depthdial train --model {asked} ...`) and pass its folder, "
        "or pass --plugin none for the base alone"
    )
