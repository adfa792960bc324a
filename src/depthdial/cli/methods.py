"""`depthdial methods`: what there is to choose from."""

from __future__ import annotations


def methods() -> None:
    """List the methods and their fields."""
    import dataclasses
    import sys

    from depthdial.methods import METHODS

    for name, method in METHODS.items():
        lines = (sys.modules[method.__module__].__doc__ or method.__doc__ or "").strip().splitlines()
        print(f"{name}: {lines[0] if lines else ''}")
        for field in dataclasses.fields(method):  # pyright: ignore[reportArgumentType]
            required = field.default is dataclasses.MISSING
            print(f"    {field.name}" + (", which must be given" if required else f" = {field.default!r}"))
