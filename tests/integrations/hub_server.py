# SPDX-License-Identifier: Apache-2.0
"""As much of the Hugging Face hub's interface as uploading and downloading a folder needs, on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Hub(ThreadingHTTPServer):
    """Repositories as name -> revision -> file -> content; `commits` counts; requests are noted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that runs."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def sha(files: dict[str, bytes]) -> str:
    """The commit of a content."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            files = self._files(found[1], found[2] or "main")
            if files is None:
                return self._missing(found[1])
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            return self._json({"id": found[1], "modelId": found[1], "sha": sha(files), "siblings": siblings})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            files = self._files(found[1], found[2]) or {}
            blobs = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
            return self._json([{"type": "file", "path": n, "oid": o, "size": len(files[n])} for n, o in blobs.items()])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self._files(found[1], found[2])
            if files is None or found[3] not in files:
                return self._missing(found[1], "EntryNotFound")
            content = files[found[3]]
            headers = {"X-Repo-Commit": sha(files), "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            return self._send(200, content, **headers)
        return self._missing(path)

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repositories.setdefault(name, {"main": {}})
            return self._json({"url": f"{self.server.address}/{name}", "name": name})
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/[^/]+", self.path.partition("?")[0]):
            paths = [entry["path"] for entry in json.loads(body)["files"]]
            return self._json({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self.path.partition("?")[0]):
            branch = self.server.repositories[found[1]].setdefault(found[2], {})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    branch[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = {"commitUrl": f"{self.server.address}/{found[1]}/commit/{sha(branch)}", "commitOid": sha(branch)}
            return self._json({**commit, "pullRequestUrl": None, "success": True})
        return self._missing(self.path)

    def _files(self, name: str, revision: str) -> dict[str, bytes] | None:
        branches = self.server.repositories.get(name, {})
        by_commit = {sha(files): files for files in branches.values()}
        return branches.get(revision) or by_commit.get(revision)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _missing(self, what: str, code: str = "") -> None:
        known = what in self.server.repositories
        code = code or ("RevisionNotFound" if known else "RepoNotFound")
        self._send(404, b"{}", **{"X-Error-Code": code, "X-Error-Message": f"{what} not found"})

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
