"""`depthdial methods`: what there is to choose from."""

from __future__ import annotations


def methods() -> None:
    """List the methods and their fields."""
    import dataclasses
    import sys

    from depthdial.methods import METHODS

    for name, method in METHODS.items():
        source = (sys.modules[method.__module__].__doc__ or "").strip().splitlines()[0]
        print(f"{name}: {source}")
        for field in dataclasses.fields(method):  # pyright: ignore[reportArgumentType]
            print(f"    {field.name} = {field.default!r}")
