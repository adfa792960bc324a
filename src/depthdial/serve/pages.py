"""The page at `/`: plain files of this package, and the depth map of a conversation as a file to keep."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response

from depthdial.serve import openapi
from depthdial.serve.engine_process import EngineProcess
from depthdial.serve.schema import MapRequest
from depthdial.serve.settings import Limits

FOLDER = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MAP_KINDS = {"html": "text/html; charset=utf-8", "parquet": "application/octet-stream"}


def add(app: FastAPI, engine: EngineProcess, limits: Limits) -> None:
    """Add the page's routes, and those of what it exports."""
    for file in sorted(FOLDER.iterdir()):
        if file.suffix in KINDS:
            _serve(app, "/" if file.name == "index.html" else f"/page/{file.name}", file)

    @app.post("/v1/depth/map", responses=openapi.MAP)
    async def depth_map(body: MapRequest) -> Response:
        """The depth map of a conversation: a page that stands alone, or Parquet."""
        order = body.model_dump()
        async with asyncio.timeout(limits.timeout):
            data = await engine.map(order)
        name = f'attachment; filename="depth-map.{body.format}"'
        headers = {"Content-Disposition": name, "Content-Security-Policy": "sandbox"}
        return Response(base64.b64decode(data), media_type=MAP_KINDS[body.format], headers=headers)


def _serve(app: FastAPI, path: str, file: Path) -> None:
    @app.get(path, include_in_schema=False)
    async def page_file() -> Response:
        return FileResponse(file, media_type=KINDS[file.suffix], headers={"Cache-Control": "no-cache"})
