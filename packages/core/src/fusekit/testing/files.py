"""The simplest service: files by path over plain HTTP, for tests of transfers and of the emulator base itself.

GET and HEAD with ranges and preconditions, PUT, DELETE, and a JSON listing of a directory. With ``token`` set every
request needs it as a bearer token.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs

from fusekit.config import option
from fusekit.testing.blobs import Blob
from fusekit.testing.emulator import Emulator, EmulatorOptions
from fusekit.testing.replies import Refused, Reply, json_reply, serve_blob
from fusekit.testing.routes import route
from fusekit.testing.running import command_line
from fusekit.testing.server import Request


@attrs.frozen
class FilesOptions(EmulatorOptions):
    """Options of the file server."""

    token: str = option(default="", secret=True, env=("FUSEKIT_FILES_TOKEN",), help="bearer token to ask for")


@attrs.frozen
class _Stored:
    blob: Blob
    modified_s: float
    type: str = "application/octet-stream"


class FilesEmulator(Emulator):
    """Files under ``/files/``. State: ``{"files": {path: {"content": base64}}}`` or ``{"file": path on this machine}``."""

    scheme: ClassVar[str] = "http"
    options: ClassVar[type[EmulatorOptions]] = FilesOptions

    def __init__(self, settings: FilesOptions) -> None:
        super().__init__(settings)
        self._token = settings.token
        self._files: dict[str, _Stored] = {}
        self.add_routes(self)

    def environment(self) -> dict[str, str]:
        """Return where the files are."""
        return {"FUSEKIT_FILES_URL": f"{self.url}/files/"} | (
            {"FUSEKIT_FILES_TOKEN": self._token} if self._token else {}
        )

    def expire(self, what: str) -> None:
        """Take another token than the one handed out so far (``tokens``)."""
        if what != "tokens":
            super().expire(what)
        self._token += "-renewed"

    def state(self) -> dict[str, Any]:
        """Return all files."""
        with self.lock:
            stored = dict(self._files)
        return {
            "files": {
                path: {"content": base64.b64encode(one.blob.read()).decode(), "modified_s": one.modified_s}
                for path, one in stored.items()
            }
        }

    def replace_state(self, state: Mapping[str, Any], *, merge: bool = False) -> None:
        """Hold these files."""
        files: dict[str, _Stored] = {}
        for path, facts in state["files"].items():
            if "file" in facts:
                blob = self.blobs.adopt(Path(facts["file"]))
            else:
                blob = self.blobs.keep(base64.b64decode(facts["content"], validate=True))
            files[path] = _Stored(blob, facts.get("modified_s", self.clock.now()))
        with self.lock:
            self._files = {**self._files, **files} if merge else files

    @route("get", "GET", "/files/{path...}")
    def get(self, request: Request) -> Reply:
        """Return a file, or a listing where the path ends with a slash."""
        self._sign_in(request)
        path = request.params["path"]
        if not path or path.endswith("/"):
            return self._listing(path)
        stored = self._files.get(path)
        if stored is None:
            raise Refused(self.failure(404, request, "get"))
        return serve_blob(
            request, stored.blob, etag=f'"{stored.blob.number:x}"', modified_s=stored.modified_s, type=stored.type
        )

    @route("put", "PUT", "/files/{path...}")
    def put(self, request: Request) -> Reply:
        """Store a file."""
        self._sign_in(request)
        blob = self.blobs.receive(request.body.blocks())
        media_type = request.headers.get("content-type", "application/octet-stream")
        with self.lock:
            new = request.params["path"] not in self._files
            self._files[request.params["path"]] = _Stored(blob, self.clock.now(), media_type)
        return Reply(201 if new else 204, {"ETag": f'"{blob.number:x}"'})

    @route("delete", "DELETE", "/files/{path...}")
    def delete(self, request: Request) -> Reply:
        """Remove a file."""
        self._sign_in(request)
        with self.lock:
            if self._files.pop(request.params["path"], None) is None:
                raise Refused(self.failure(404, request, "delete"))
        return Reply(204)

    def _listing(self, directory: str) -> Reply:
        with self.lock:
            below = {path[len(directory) :]: one for path, one in self._files.items() if path.startswith(directory)}
        entries: dict[str, dict[str, Any]] = {}
        for path, one in sorted(below.items()):
            name, slash, _ = path.partition("/")
            entries[name + slash] = {"name": name + slash} if slash else {"name": name, "size": one.blob.size}
        return json_reply({"entries": list(entries.values())})

    def _sign_in(self, request: Request) -> None:
        if self._token and request.headers.get("authorization") != f"Bearer {self._token}":
            raise Refused(self.failure(401, request, "sign-in"))


if __name__ == "__main__":
    command_line(FilesEmulator)
