"""Unknown arguments of what people configure: refused with the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class UnknownArgument(TypeError, ValueError):
    """TypeError, as Python has it for any function; ValueError, as all that a user can mend."""


def refuse_unknown(
    what: str, known: Iterable[str], asked: Iterable[str], other_names: Mapping[str, str] | None = None
) -> None:
    """UnknownArgument for the first name that is not known, with the likeliest known one. other_names: what other
    libraries call an argument, and our name of it."""
    known = list(known)
    for name in asked:
        if name in known:
            continue
        near = [(other_names or {}).get(name), *difflib.get_close_matches(name, known, 1)]
        meant = next((f"did you mean {found}?" for found in near if found), f"it takes {', '.join(known)}")
        raise UnknownArgument(f"{what} has no argument {name!r}; {meant}")
