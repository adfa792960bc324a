"""The folder of one map: whose run it is, and whether another may go on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from depthdial.core.whole import leftovers, write_new, write_text
from depthdial.maps.schema import FORMAT_VERSION, Facts
from depthdial.maps.store import CARD_FILE, PARTS, RUN_FILE, read_run


class MapFolder:
    """path: the folder. identity: what makes the map this one and no other, as JSON (prompts, settings, facts).

    Opening claims the folder. Raises ValueError for a folder that holds another map or other files; and, unless
    `resume`, for one that holds this map already, in the parts that `mine` names.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any], resume: bool = False, mine: range | None = None):
        self.path, self.identity = Path(path), json.loads(json.dumps(identity))
        if (self.path / RUN_FILE).is_file():
            self._go_on(resume, mine)
            return
        if self.path.exists() and (not self.path.is_dir() or self._occupied()):
            raise ValueError(f"{path} exists and is no map; choose another --output")
        write_new(
            self.path / RUN_FILE, json.dumps({"format_version": FORMAT_VERSION, **self.identity}, indent=1) + "\n"
        )
        self._go_on(resume, mine)  # another shard, or another map, may have claimed it at the same moment

    def _occupied(self) -> bool:
        """Is there more than what a process leaves that is killed while it claims the folder?"""
        ours = {part for part, _ in leftovers(self.path)}
        return any(
            file not in ours and not (file.name == PARTS and file.is_dir() and not any(file.iterdir()))
            for file in self.path.iterdir()
        )

    def _go_on(self, resume: bool, mine: range | None) -> None:
        there = read_run(self.path)
        other = [name for name in self.identity if there.get(name) != self.identity[name]]
        if other:
            name = other[0]
            raise ValueError(
                f"{self.path} holds another map: its {name} {_difference(there.get(name), self.identity[name])}; "
                "choose another --output"
            )
        (self.path / PARTS).mkdir(exist_ok=True)
        numbers = {_number(file) for file in self.parts}
        if not resume and (numbers if mine is None else numbers.intersection(mine)):
            raise ValueError(f"{self.path} holds parts of this map already; pass --resume to go on with it")
        for leftover, path in leftovers(self.path / PARTS):  # by a killed process; another shard may be at work here
            number = _number(path)
            if mine is None or (number is not None and number in mine):
                leftover.unlink(missing_ok=True)

    @property
    def parts(self) -> list[Path]:
        """The parts that are there, in order."""
        return sorted(file for file in (self.path / PARTS).glob("part-*.parquet") if _number(file) is not None)

    def finish(self, card: str) -> None:
        """All parts are there: write the card."""
        write_text(self.path / CARD_FILE, card)


def _number(part: Path) -> int | None:
    """None for a file that is none of ours."""
    digits = part.stem.removeprefix("part-")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None


def map_identity(facts: Facts, weights: str, prompts: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What `map.json` says. weights: a hash of the base's; its name may stand for others tomorrow."""
    return {"facts": facts.to_json(), "weights": weights, "prompts": prompts, "settings": settings}


def _difference(there: Any, here: Any) -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in here:
            if there.get(name) != here[name]:
                return f"have {name} {there.get(name)!r}, not {here[name]!r}"
    return f"are {there!r}, not {here!r}"
