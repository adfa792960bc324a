"""What a run was told, kept in its folder: a resumed run must be told the same, and no run overwrites another."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from depthdial.core.whole import write_json
from depthdial.train import processes
from depthdial.train.checkpoints import last_checkpoint


class Settings(Protocol):
    """A frozen dataclass with a folder."""

    @property
    def output(self) -> str: ...


def told(config: Any) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def check_output(config: Settings, resume: bool, name: str, free: Collection[str]) -> Path:
    """The output folder, if this run may use it. ValueError if it holds another run, or one of other settings.

    name: the file of settings; free: settings that a resumed run may change.
    """
    output, now = Path(config.output), told(config)
    file = output / name
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; choose a folder for --output")
    if not resume and last_checkpoint(output / "checkpoints") is not None:
        raise ValueError(f"{output} holds a training run; add --resume to go on with it, or choose another --output")
    if resume and not file.is_file():
        raise ValueError(f"nothing to resume: {output} holds no {name}; start without --resume")
    if resume:
        before = json.loads(file.read_text())
        if changed := [k for k in now if now[k] != before.get(k) and k not in free]:
            raise ValueError(
                f"{output} was trained with other settings ({', '.join(changed)}); resume with the same ones, or "
                "choose another --output"
            )
    return output


def write_settings(output: Path, settings: dict[str, Any], name: str) -> None:
    """Whole or not at all, by the main process."""
    if not processes.is_main():
        return
    write_json(output / name, settings)
