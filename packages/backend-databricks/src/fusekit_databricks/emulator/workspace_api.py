"""The documented calls of the workspace: get-status, list, export, import, mkdirs, delete.

Part of the emulator.
"""

from __future__ import annotations

import base64
import binascii
import io
import zipfile
from email.parser import BytesParser
from email.policy import HTTP
from typing import TYPE_CHECKING, Any

from fusekit.testing.blobs import Blob
from fusekit.testing.replies import Reply, json_reply
from fusekit.testing.routes import route
from fusekit.testing.server import BodyTooLong, Request
from fusekit_databricks.emulator import errors
from fusekit_databricks.emulator.access import User
from fusekit_databricks.emulator.files_api import protected
from fusekit_databricks.emulator.notebooks import (
    FILE_TYPES,
    HEADERS,
    from_jupyter,
    is_jupyter,
    normalised,
    to_html,
    to_jupyter,
    to_r_markdown,
)
from fusekit_databricks.emulator.objects import automatic, check_type, json_object, object_info, text_field
from fusekit_databricks.emulator.tree import Node, name_of, parent_of

if TYPE_CHECKING:
    from fusekit_databricks.emulator.service import DatabricksEmulator

_BASE = "/api/2.0/workspace"


class WorkspaceApi:
    """``/api/2.0/workspace``, but for rename, which is not documented."""

    def __init__(self, service: DatabricksEmulator) -> None:
        self._service = service

    @route("get-status", "GET", f"{_BASE}/get-status")
    def get_status(self, request: Request) -> Reply:
        """Return the metadata of one object."""
        service, user, query = self._service, self._service.sign_in(request), request.query
        with service.lock:
            node = service.readable(user, query.get("path"), lag_ms=service.setup.stat_lag_ms)
            found = object_info(node)
            if query.get("return_export_info") == "true" and node.export_format is not None:
                found["repos_export_format"] = node.export_format
            if query.get("return_git_info") == "true":
                found |= self._git_info(node)
        return json_reply(found)

    @route("list", "GET", f"{_BASE}/list")
    def list(self, request: Request) -> Reply:
        """Return what is in a folder, or the object itself where it is none."""
        service, user, query = self._service, self._service.sign_in(request), request.query
        since = query.get("notebooks_modified_after", "0")
        if not since.isdigit():
            raise errors.invalid("notebooks_modified_after is no number of milliseconds.")
        with service.lock:
            lag_ms = service.setup.list_lag_ms
            node = service.readable(user, query.get("path"), lag_ms=lag_ms)
            found = service.visible(user, node, lag_ms) if node.is_folder else [node]
        objects = [object_info(one) for one in found if one.type != "NOTEBOOK" or one.modified_ms >= int(since)]
        return json_reply({"objects": objects} if objects else {})

    @route("export", "GET", f"{_BASE}/export")
    def export(self, request: Request) -> Reply:
        """Return the content of an object in some format, as base64 in JSON or as it is."""
        service, user, query = self._service, self._service.sign_in(request), request.query
        with service.lock:
            node = service.readable(user, query.get("path"))
        data, file_type = self._exported(node, query.get("format", "SOURCE"), user)
        if len(data) > service.setup.export_bytes_max:
            raise _too_big(service.setup.export_bytes_max)
        if query.get("direct_download") == "true":
            name = name_of(node.path)
            headers = {"Content-Type": "application/octet-stream"}
            if name.isascii():
                headers["Content-Disposition"] = f'attachment; filename="{name}"'
            return Reply(200, headers, data)
        return json_reply({"content": base64.b64encode(data).decode(), "file_type": file_type})

    @route("import", "POST", f"{_BASE}/import")
    def import_(self, request: Request) -> Reply:
        """Store content as a file or notebook, as its format says."""
        service, user = self._service, self._service.sign_in(request)
        # In base64 and with the other fields a body of the largest content is not much longer than this.
        try:
            fields, content = _import_fields(request, service.setup.import_bytes_max * 4 // 3 + (64 << 10))
        except BodyTooLong as error:
            raise _too_big(service.setup.import_bytes_max) from error
        if len(content) > service.setup.import_bytes_max:
            raise _too_big(service.setup.import_bytes_max)
        path = service.path(fields.get("path"))
        wanted, overwrite = fields.get("format", "SOURCE"), fields.get("overwrite") == "true"
        with service.lock:
            node = self._imported(path, wanted, fields.get("language"), service.blobs.keep(content))
            service.parent(user, node.path)
            old = service.tree.get(node.path)
            if old is not None:
                if not overwrite:
                    raise errors.taken(node.path)
                if wanted == "AUTO" and old.type == "FILE" and service.setup.overwrite_bug:
                    message = f"Node named '{name_of(node.path)}' already exists"
                    raise errors.refuse(400, "RESOURCE_ALREADY_EXISTS", message)
                check_type(old, node)
                service.writable(user, node.path)
            service.store(node)
        return json_reply({})

    @route("mkdirs", "POST", f"{_BASE}/mkdirs")
    def mkdirs(self, request: Request) -> Reply:
        """Make a folder and those above it; one that is there is fine."""
        service, user = self._service, self._service.sign_in(request)
        path = service.path(text_field(json_object(request.body.read()), "path"))
        with service.lock:
            missing: list[str] = []
            place = path
            while (node := service.tree.get(place)) is None:
                missing.append(place)
                place = parent_of(place)
            if not node.is_folder:
                raise errors.taken(place)
            if not user.may("CAN_READ", place):
                raise errors.missing(place)
            if missing:
                service.parent(user, missing[-1])
            service.folder(path)
        return json_reply({})

    @route("delete", "POST", f"{_BASE}/delete")
    def delete(self, request: Request) -> Reply:
        """Remove an object; a folder with something in it only where ``recursive``."""
        service, user = self._service, self._service.sign_in(request)
        wanted = json_object(request.body.read())
        with service.lock:
            node = service.writable(user, text_field(wanted, "path"))
            if protected(node.path):
                raise errors.refuse(400, "BAD_REQUEST", f"{node.path} cannot be deleted.")
            if service.tree.has_children(node.path) and not wanted.get("recursive"):
                raise errors.refuse(400, "DIRECTORY_NOT_EMPTY", f"Folder ({node.path}) is not empty")
            for removed in service.tree.remove(node.path):
                if removed.blob is not None:
                    service.cloud.retire(removed.blob)
        return json_reply({})

    def _git_info(self, node: Node) -> dict[str, Any]:
        place: Node | None = node
        while place is not None and place.path != "/":
            if place.git is not None:
                git = place.git
                facts = {"url": git.url, "branch": git.branch, "head_commit_id": git.head_commit_id}
                return {"git_info": {"id": place.object_id, "path": place.path, **facts}}
            place = self._service.tree.get(parent_of(place.path))
        return {}

    def _exported(self, node: Node, format: str, user: User) -> tuple[bytes, str]:
        """Return the content in ``format``, and what sort of file that is."""
        if format not in {"SOURCE", "HTML", "JUPYTER", "DBC", "R_MARKDOWN", "AUTO", "RAW"}:
            raise errors.invalid(f"{format} is no export format.")
        if node.is_folder:
            return self._archive(node, user), "dbc" if format == "DBC" else "zip"
        if node.type != "NOTEBOOK":
            if format not in {"SOURCE", "AUTO", "RAW"}:
                raise errors.invalid(f"A {node.type} cannot be exported as {format}.")
            return node.content.read(), node.path.rpartition(".")[2] if "." in name_of(node.path) else ""
        assert node.language is not None
        if format == "JUPYTER" or (format in {"AUTO", "RAW"} and node.export_format == "JUPYTER"):
            if node.export_format == "JUPYTER":
                return node.content.read(), "ipynb"
            return to_jupyter(self._source(node), node.language, name_of(node.path)), "ipynb"
        if format in {"SOURCE", "AUTO", "RAW"}:
            if node.export_format == "SOURCE" and not self._service.setup.normalise_notebooks:
                return node.content.read(), FILE_TYPES[node.language]
            return self._source(node).encode(), FILE_TYPES[node.language]
        if format == "HTML":
            return to_html(self._source(node), name_of(node.path)), "html"
        if format == "R_MARKDOWN":
            if node.language != "R":
                raise errors.invalid("Only notebooks in R can be exported as R_MARKDOWN.")
            return to_r_markdown(self._source(node)), "rmd"
        return self._archive(node, user), "dbc"

    def _source(self, node: Node) -> str:
        assert node.language is not None
        data = node.content.read()
        if node.export_format == "JUPYTER":
            return from_jupyter(data, node.language)
        return normalised(data.decode("utf-8", "replace"), node.language)

    def _archive(self, node: Node, user: User) -> bytes:
        """Return all below ``node`` as a zip file, which is what the service makes of a folder."""
        packed = io.BytesIO()
        with self._service.lock:
            found = [one for one in self._service.tree.walk(node.path) if user.may("CAN_READ", one.path)]
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for one in found:
                name = one.path[len(parent_of(node.path).rstrip("/")) + 1 :]
                if one.type == "NOTEBOOK" and one.language is not None:
                    archive.writestr(f"{name}.{FILE_TYPES[one.language]}", self._source(one))
                elif one.blob is not None:
                    archive.writestr(name, one.blob.read())
        return packed.getvalue()

    def _imported(self, path: str, format: str, language: str | None, blob: Blob) -> Node:
        """Return the object that content imported to ``path`` becomes."""
        service = self._service
        if format == "AUTO":
            return automatic(service, path, blob)
        now_ms, number = service.clock.now_ms(), service.tree.new_id()
        if format == "RAW":
            return Node(path, "FILE", number, now_ms, now_ms, blob)
        if format == "JUPYTER":
            if not is_jupyter(blob.read()):
                raise errors.invalid("The content is no Jupyter notebook.")
            return Node(path, "NOTEBOOK", number, now_ms, now_ms, blob, "PYTHON", "JUPYTER")
        if format == "SOURCE" and language is not None:
            if language not in HEADERS:
                raise errors.invalid(f"{language} is no language of notebooks.")
            return Node(path, "NOTEBOOK", number, now_ms, now_ms, blob, language, "SOURCE")
        if format == "SOURCE":
            raise errors.invalid("The zip archive is invalid: without a language the content is taken as a directory.")
        raise errors.invalid(f"The content cannot be imported as {format}.")


def _import_fields(request: Request, bytes_max: int) -> tuple[dict[str, str], bytes]:
    """Return the fields of an import as text, and the content, from JSON or from a form."""
    kind = request.headers.get("content-type", "")
    if kind.lower().startswith("multipart/form-data"):
        return _form(kind, request.body.read(bytes_max))
    wanted = json_object(request.body.read(bytes_max))
    fields = {name: _as_text(value) for name, value in wanted.items() if name != "content" and value is not None}
    try:
        return fields, base64.b64decode(wanted.get("content") or "", validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise errors.invalid("The content is not base64.") from error


def _form(kind: str, body: bytes) -> tuple[dict[str, str], bytes]:
    """Return the text parts of a form by name, and its part ``content`` byte for byte."""
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + kind.encode("latin-1") + b"\r\n\r\n")
    boundary = message.get_boundary()
    if not boundary:
        raise errors.refuse(400, "MALFORMED_REQUEST", "The form has no boundary.")
    fields: dict[str, str] = {}
    content = b""
    mark = b"--" + boundary.encode("latin-1")
    # Split by hand: an e-mail parser would decode, fold or normalise the lines of a binary part.
    for part in (b"\r\n" + body).split(b"\r\n" + mark)[1:]:
        head, found, data = part.partition(b"\r\n\r\n")
        if not found:
            continue
        disposition = BytesParser(policy=HTTP).parsebytes(head.strip() + b"\r\n\r\n")["content-disposition"]
        name = disposition.params.get("name") if disposition is not None else None
        if name == "content":
            content = data
        elif name is not None:
            fields[str(name)] = data.decode("utf-8", "replace")
    return fields, content


def _as_text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _too_big(limit: int) -> Exception:
    message = f"File size imported or exported is larger than {limit} bytes (DBC, HTML, JUPYTER, SOURCE, AUTO)."
    return errors.refuse(400, "MAX_NOTEBOOK_SIZE_EXCEEDED", message)
