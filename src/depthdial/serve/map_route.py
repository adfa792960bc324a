"""The depth map of a conversation as a file to keep. It waits in the same queue as texts; who hangs up takes it out."""

from __future__ import annotations

import asyncio
import base64

from fastapi import FastAPI, Request
from fastapi.responses import Response

from depthdial.serve import openapi
from depthdial.serve.schema import MapRequest
from depthdial.serve.service import Service
from depthdial.serve.stream import while_listening

KINDS = {"html": "text/html; charset=utf-8", "parquet": "application/octet-stream"}


def add(app: FastAPI, service: Service) -> None:
    """Add the route."""

    @app.post("/v1/depth/map", responses=openapi.MAP)
    async def depth_map(body: MapRequest, request: Request) -> Response:
        """The depth map of a conversation: a page that stands alone, or Parquet."""
        if (other := service.other(body.model)) is not None:
            return other
        order = body.model_dump(exclude={"messages", "model"})
        order["messages"] = [message.plain() for message in body.messages]
        result: list[str] = []

        async def make() -> None:
            result.append(await service.engine.map(order))

        async with asyncio.timeout(service.settings.limits.timeout):
            if not await while_listening(request.receive, make()):
                return Response(status_code=499)  # nobody reads it
        name = f'attachment; filename="depth-map.{body.format}"'
        headers = {"Content-Disposition": name, "Content-Security-Policy": "sandbox"}
        return Response(base64.b64decode(result[0]), media_type=KINDS[body.format], headers=headers)
