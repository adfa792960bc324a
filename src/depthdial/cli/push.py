"""`depthdial push`: a folder to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(help="Of a plug-in, or of a model that `export --format hf` wrote.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Made, and private, where it is new.")],
) -> None:
    """Upload a plug-in, or an exported model, to the hub."""
    from depthdial.models import hub

    print(hub.push(folder, repository))
