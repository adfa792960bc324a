"""The page at `/`: plain files of this package."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response

FOLDER = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def add(app: FastAPI) -> None:
    """Add the page's routes."""
    for file in sorted(FOLDER.iterdir()):
        if file.suffix in KINDS:
            _serve(app, "/" if file.name == "index.html" else f"/page/{file.name}", file)


def _serve(app: FastAPI, path: str, file: Path) -> None:
    @app.get(path, include_in_schema=False)
    async def page_file() -> Response:
        return FileResponse(file, media_type=KINDS[file.suffix], headers={"Cache-Control": "no-cache"})
