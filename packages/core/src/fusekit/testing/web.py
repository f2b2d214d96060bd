"""A web server with files: every form of listing that the backend ``http`` reads, for tests and benchmarks.

Part of the emulator base. The same files are below ``/FORM/``, one path for each form of `fusekit.testing.web_forms`.
Generated folders hold names without number at no cost, so that a tree of a million is served from a small process.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote_to_bytes

import attrs

from fusekit.config import option
from fusekit.testing.blobs import Blob
from fusekit.testing.emulator import Emulator, EmulatorOptions
from fusekit.testing.replies import Refused, Reply, serve_blob
from fusekit.testing.routes import route
from fusekit.testing.running import command_line
from fusekit.testing.server import Request
from fusekit.testing.web_forms import FORMS, MODIFIED_S, Form, Item, multistatus


@attrs.frozen
class WebOptions(EmulatorOptions):
    """Options of the web server."""

    authorization: str = option(
        default="", secret=True, env=("FUSEKIT_WEB_AUTHORIZATION",), help="value of the header that each request needs"
    )


@attrs.frozen
class _File:
    blob: Blob
    modified_s: float

    @property
    def etag(self) -> str:
        return f'"{self.blob.number:x}-{self.blob.size:x}"'


_Folder = dict[str, "_File | _Folder"]


class WebEmulator(Emulator):
    """Files over plain HTTP.

    State: ``{"files": {path: {"content": base64}}}``, ``{"file": path on this machine}`` or ``{"size": bytes}`` (zeros),
    each with ``modified_s``; and ``{"generated": {path: {"folders": n, "files": m, "size": bytes}}}``: ``m`` files in
    each of ``n`` folders, which are one folder under many names.
    """

    scheme: ClassVar[str] = "http"
    options: ClassVar[type[EmulatorOptions]] = WebOptions

    def __init__(self, settings: WebOptions) -> None:
        super().__init__(settings)
        self._authorization = settings.authorization
        self._top: _Folder = {}
        self._state: dict[str, Any] = {"files": {}, "generated": {}}
        self._etag_suffix = ""
        self._zone_s = 0.0
        self._file_times = True
        self.add_routes(self)

    def environment(self) -> dict[str, str]:
        """Return where the files are."""
        return {"FUSEKIT_WEB_URL": f"{self.url}/webdav/"}

    def state(self) -> dict[str, Any]:
        """Return what `replace_state` was given."""
        with self.lock:
            return dict(self._state)

    def replace_state(self, state: Mapping[str, Any], *, merge: bool = False) -> None:
        """Hold these files."""
        with self.lock:
            top: _Folder = self._top if merge else {}
            before = self._state if merge else {"files": {}, "generated": {}}
            for path, facts in state.get("files", {}).items():
                self._put(top, path, _File(self._blob(facts), float(facts.get("modified_s", MODIFIED_S))))
            for path, facts in state.get("generated", {}).items():
                file = _File(self._blob({"size": facts.get("size", 0)}), MODIFIED_S)
                inside: _Folder = {f"file-{number:06}": file for number in range(facts["files"])}
                for number in range(facts["folders"]):
                    self._put(top, f"{path}/folder-{number:04}".lstrip("/"), inside)
            self._top = top
            self._state = {key: {**before[key], **state.get(key, {})} for key in ("files", "generated")}

    def knobs(self) -> dict[str, Any]:
        """Return how the server is set up.

        ``etag_suffix`` stands behind the ETags of files, but not of listings (a compressing proxy); pages of links show
        times of a zone that is ``zone_s`` ahead of GMT; without ``file_times`` files come without Last-Modified.
        """
        return {"etag_suffix": self._etag_suffix, "zone_s": self._zone_s, "file_times": self._file_times}

    def set_knobs(self, changes: Mapping[str, Any]) -> None:
        """Change some of them."""
        changes = dict(changes)
        self._etag_suffix = str(changes.pop("etag_suffix", self._etag_suffix))
        self._zone_s = float(changes.pop("zone_s", self._zone_s))
        self._file_times = bool(changes.pop("file_times", self._file_times))
        super().set_knobs(changes)

    @route("get", "GET", "/{form}/{path...}")
    def get(self, request: Request) -> Reply:
        """Return a file or the listing of a folder."""
        form, found = self._find(request)
        if isinstance(found, dict):
            return Reply(200, {"Content-Type": form.type}, form.render(request.path, _items(found, self._zone_s)))
        return self._file(request, form, found)

    @route("head", "HEAD", "/{form}/{path...}")
    def head(self, request: Request) -> Reply:
        """Return the head of a file; of a folder without its listing, which nobody would read."""
        form, found = self._find(request)
        if isinstance(found, dict):
            return Reply(200, {"Content-Type": form.type, "Content-Length": "0"})
        return self._file(request, form, found)

    @route("propfind", "PROPFIND", "/{form}/{path...}")
    def propfind(self, request: Request) -> Reply:
        """Return the properties of a file or folder, and of all in it at depth 1."""
        if request.params["form"] != "webdav":
            raise Refused(self.failure(405, request, "propfind"))
        _, found = self._find(request)
        headers = {"Content-Type": "text/xml; charset=utf-8", "DAV": "1"}
        if not isinstance(found, dict):
            item = Item("", found.modified_s, found.blob.size, found.etag)
            return Reply(207, headers, multistatus(request.path, (), item))
        inside = _items(found) if request.headers.get("depth") == "1" else ()
        return Reply(207, headers, multistatus(request.path.rstrip("/") + "/", inside))

    def _file(self, request: Request, form: Form, file: _File) -> Reply:
        if not form.ranges:
            request.headers.pop("range", None)
        etag = f'{file.etag[:-1]}{self._etag_suffix}"'
        reply = serve_blob(request, file.blob, etag=etag, modified_s=file.modified_s)
        if not self._file_times:
            del reply.headers["Last-Modified"]
        if not form.etags:
            del reply.headers["ETag"]
        if not form.ranges:
            del reply.headers["Accept-Ranges"]
        return reply

    def _find(self, request: Request) -> tuple[Form, _File | _Folder]:
        if self._authorization and request.headers.get("authorization") != self._authorization:
            raise Refused(Reply(401, {"WWW-Authenticate": 'Basic realm="files"'}))
        form = FORMS.get(request.params["form"])
        if form is None:
            raise Refused(self.failure(404, request, "get"))
        found: _File | _Folder | None = self._top
        path = request.path.split("/", 2)[2]
        for part in filter(None, path.split("/")):
            name = unquote_to_bytes(part).decode("utf-8", "surrogateescape")
            found = found.get(name) if isinstance(found, dict) else None
            if found is None:
                raise Refused(self.failure(404, request, "get"))
        slash = path.endswith("/") or not path
        if isinstance(found, dict) and not slash and request.method != "PROPFIND":
            if form.redirects:
                raise Refused(Reply(301, {"Location": f"{self.url}{request.path}/"}))
            raise Refused(self.failure(404, request, "get"))
        if not isinstance(found, dict) and slash and request.method != "PROPFIND":
            raise Refused(self.failure(404, request, "get"))
        assert found is not None
        return form, found

    def _blob(self, facts: Mapping[str, Any]) -> Blob:
        if "file" in facts:
            return self.blobs.adopt(Path(facts["file"]))
        if "size" in facts:
            return self.blobs.keep(bytes(facts["size"]))
        return self.blobs.keep(base64.b64decode(facts["content"], validate=True))

    def _put(self, top: _Folder, path: str, what: _File | _Folder) -> None:
        *parents, name = path.split("/")
        for parent in parents:
            inside = top.setdefault(parent, {})
            if not isinstance(inside, dict):
                raise ValueError(f"{parent!r} is a file and cannot hold {path!r}")  # noqa: TRY004 - what the base asks for
            top = inside
        top[name] = what


def _items(folder: _Folder, zone_s: float = 0.0) -> list[Item]:
    return [
        Item(name, MODIFIED_S + zone_s)
        if isinstance(one, dict)
        else Item(name, one.modified_s + zone_s, one.blob.size, one.etag)
        for name, one in folder.items()
    ]


def files_state(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the state that holds ``files``, by path."""
    return {"files": {path: {"content": base64.b64encode(data).decode()} for path, data in files.items()}}


if __name__ == "__main__":
    command_line(WebEmulator)
