"""What a run was told, kept in its folder: a resumed run must be told the same, and no run overwrites another."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from depthdial.core.lock import foreign, locked
from depthdial.core.whole import disk_errors, write_json
from depthdial.train import processes
from depthdial.train.checkpoints import finished_checkpoints, last_checkpoint

METRICS_FILE, CHECKPOINTS = "metrics.jsonl", "checkpoints"


class RunConfig(Protocol):
    """A frozen dataclass with a folder."""

    @property
    def output(self) -> str: ...


def config_json(config: Any) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


@contextmanager
def claim(
    config: RunConfig, resume: bool, name: str, free: Collection[str], begins: Collection[str] = ()
) -> Iterator[Path]:
    """The output folder, this run's alone for the length of the block; `check_output` has the rest.

    Raises ValueError where another run is at work in it, OSError, with what to do, where the disk is full.
    """
    output = check_output(config, resume, name, free, begins)
    processes.wait()  # nobody writes before everybody has looked
    with locked(output) if processes.is_main() else nullcontext(), disk_errors(lambda: _remedy(output)):
        if processes.is_main():
            check_output(config, resume, name, free, begins)  # another run may have ended in between
        yield output


def _remedy(output: Path) -> str:
    good = last_checkpoint(output / CHECKPOINTS)
    if good is None:
        return f"free some space for {output} and start again: no checkpoint was written yet"
    return f"free some space for {output} and repeat the command with --resume: {good.name} is good"


def check_output(
    config: RunConfig, resume: bool, name: str, free: Collection[str], begins: Collection[str] = ()
) -> Path:
    """The output folder, if this run may use it. ValueError if it holds another run, one of other settings, or
    anything that no such run wrote.

    name: the file of settings; free: settings that a resumed run may change; begins: what a run may write before its
    settings.
    """
    output, now = Path(config.output), config_json(config)
    file = output / name
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; choose a folder for --output")
    if resume and not file.is_file():
        raise ValueError(f"nothing to resume: {output} holds no {name}; start without --resume")
    before = _read(file, now)
    if resume:
        if before is None:
            raise ValueError(
                f"{file} is damaged, or of another program: it cannot be told what to resume; choose another --output"
            )
        if changes := [k for k in now if now[k] != before.get(k) and k not in free]:
            raise ValueError(
                f"{output} was trained with other settings ({', '.join(changes)}); resume with the same ones, or "
                "choose another --output"
            )
        return output
    own = begins if before is None else (*begins, name, METRICS_FILE, CHECKPOINTS)
    if before is not None and finished_checkpoints(output / CHECKPOINTS):
        raise ValueError(f"{output} holds a training run; add --resume to go on with it, or choose another --output")
    if strange := foreign(output, own):
        raise ValueError(
            f"{output} holds {strange[0]}, which would be mixed up with this run or written over; choose an empty or "
            "new folder for --output"
        )
    return output


def settings_in(file: Path) -> dict[str, Any]:
    """What `write_settings` wrote. Raises ValueError for what cannot be read."""
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); choose another --output") from error


def _read(file: Path, now: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of a run of this kind; None where the file is none: its name alone makes it none of ours."""
    try:
        settings = settings_in(file)
    except (OSError, ValueError):
        return None
    return settings if len(now.keys() & settings.keys()) * 2 > len(now) else None


def write_settings(output: Path, settings: dict[str, Any], name: str) -> None:
    """Whole or not at all, by the main process."""
    if not processes.is_main():
        return
    write_json(output / name, settings)
