"""Maps on disk: a folder of Parquet parts that `datasets.load_dataset` reads, or one Parquet file.

    FOLDER/README.md                  the data-set card
    FOLDER/map.json                   what was mapped, and how: what makes it the same run
    FOLDER/data/part-00000.parquet    a fixed number of texts each, in order

Every file is there whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from depthdial.core.extras import need
from depthdial.core.whole import whole
from depthdial.maps.parse import from_text, parse_table
from depthdial.maps.schema import FORMAT_VERSION, DepthMap, MapRow, arrow_table

RUN_FILE, CARD_FILE, PARTS = "map.json", "README.md", "data"


def need_pyarrow() -> None:
    """ValueError where what reads and writes Parquet is not there: to be asked before work starts."""
    need("pyarrow", "maps", "a map, which is Parquet,")


def write_map(map_: DepthMap, path: str | Path) -> Path:
    """Write one Parquet file; returns its path."""
    need_pyarrow()
    import pyarrow.parquet as parquet

    path = Path(path)
    with whole(path) as part:
        parquet.write_table(arrow_table(map_), part, compression="zstd")
    return path


def read_map(path: str | Path) -> DepthMap:
    """A whole map, from a folder or one Parquet file. Raises ValueError for what is none, is empty, or is of another
    version."""
    parts = list(read_map_parts(path))
    if not any(part.rows for part in parts):
        raise ValueError(f"{path} holds no text yet; finish the map with `depthdial map ... --resume`")
    rows: list[MapRow] = [row for part in parts for row in part.rows]
    return DepthMap(parts[0].facts, rows)


def read_map_parts(path: str | Path) -> Iterator[DepthMap]:
    """A map part by part. Raises ValueError as `read` does, and for parts of different maps."""
    need_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = Path(path)
    if path.is_dir():
        read_run(path)
        # a killed process may have left half a file
        files = sorted(file for file in (path / PARTS).glob("[!.]*.parquet") if file.is_file())
        if not files:
            raise ValueError(f"{path} holds no part of a map yet; finish it with `depthdial map ... --resume`")
    elif path.is_file():
        files = [path]
    else:
        raise ValueError(f"{path}: no such map; make one with `depthdial map`")
    facts = None
    for file in files:
        try:
            table = parquet.read_table(file)
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's, not Arrow's
                raise
            raise ValueError(
                f"{file} is damaged or no Parquet file; remove it and `depthdial map ... --resume`"
            ) from error
        part = parse_table(table, str(file))
        if part.facts != (facts := facts or part.facts):
            raise ValueError(f"{path} holds parts of different maps; keep each map in a folder of its own")
        yield part


def read_run(folder: Path) -> dict[str, Any]:
    """map.json of a folder. Raises ValueError for a folder that holds no map or one of another version."""
    file = folder / RUN_FILE
    if not file.is_file():
        raise ValueError(f"{folder} is not a depth map: it has no {RUN_FILE}")
    try:
        run = from_text(file.read_text("utf-8"))
        version = run["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); make the map again in another folder") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file} is of format version {version}; this depthdial reads {FORMAT_VERSION}: upgrade one of the two, "
            "or make the map again"
        )
    return run


def part_file(folder: Path, number: int) -> Path:
    """The place of a part."""
    return folder / PARTS / f"part-{number:05d}.parquet"
