"""A hub on this machine: what huggingface_hub asks of a server to make a repository, to commit and to download."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "1" * 40


@dataclass
class Hub:
    """Repositories by name, each with its files."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def _respond(self) -> None:
        hub, path = self.hub, unquote(self.path.partition("?")[0]).strip("/").split("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append(f"{self.command} {'/'.join(path)}")
        if path[:3] == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = "/".join(filter(None, [wanted.get("organization"), wanted["name"]]))
            hub.files.setdefault(name, {})
            hub.private[name] = bool(wanted.get("private") or wanted.get("visibility") == "private")
            return self._json({"url": f"{hub.url}/{name}", "name": name, "id": name})
        if path == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if path[0] == "api" and path[1] in ("models", "datasets"):
            name, rest = "/".join(path[2:4]), path[4:]
            if name not in hub.files:
                return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            if rest[:1] == ["preupload"]:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for f in json.loads(body)["files"]
                ]
                return self._json({"files": files})
            if rest[:1] == ["commit"]:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return self._json({"commitUrl": f"{hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
            if rest[:1] in (["tree"], ["paths-info"]):
                wanted = json.loads(body)["paths"] if body else hub.files[name]
                return self._json([
                    {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for p, c in hub.files[name].items() if p in wanted
                ])  # fmt: skip
            return self._json({
                "id": name, "sha": COMMIT, "private": hub.private[name], "tags": [], "downloads": 0, "likes": 0,
                "siblings": [{"rfilename": file} for file in hub.files[name]],
            })  # fmt: skip
        path = path[1:] if path[0] == "datasets" else path
        name, file = "/".join(path[:2]), "/".join(path[4:])
        content = hub.files.get(name, {}).get(file)
        if path[2:3] != ["resolve"] or content is None:
            return self._json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        self.send_response(200)
        etag = hashlib.sha1(content).hexdigest()
        for header, value in {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Length": len(content)}.items():
            self.send_header(header, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for header, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(header, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def fake_hub() -> Iterator[Hub]:
    """A hub that answers at `url` until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
