"""`depthdial models`: which types of models there are to choose from."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    markdown: Annotated[bool, typer.Option("--markdown", help="All types, refused ones too: docs/models.md.")] = False,
) -> None:
    """List the types of models that can be converted, and what is odd about them."""
    from depthdial.models import catalogue

    print(catalogue.markdown() if markdown else catalogue.summary(), end="" if markdown else "\n")
