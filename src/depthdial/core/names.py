"""Names that may be published: no place of this machine's files."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath


def public_name(model: str) -> str:
    """What a file that is shared may say of a model: an id of the hub as it is, of a place on this machine the last
    part alone."""
    if "\\" in model:
        return PureWindowsPath(model).name
    place = Path(model).expanduser()
    local = place.is_absolute() or model.startswith((".", "~")) or place.exists()
    return place.absolute().name if model and local else model
