"""The undocumented calls for workspace files: metadata with signed URLs, raw import, uploads by URL, rename.

Part of the emulator.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from fusekit.testing.blobs import TooLarge
from fusekit.testing.replies import Refused, Reply, json_reply
from fusekit.testing.routes import route
from fusekit.testing.server import Request
from fusekit_databricks.emulator import errors
from fusekit_databricks.emulator.access import User
from fusekit_databricks.emulator.objects import automatic, check_type, json_object, object_info, text_field
from fusekit_databricks.emulator.tree import Node, parent_of

if TYPE_CHECKING:
    from fusekit_databricks.emulator.service import DatabricksEmulator

_BASE = "/api/2.0/workspace-files"


class FilesApi:
    """``/api/2.0/workspace-files`` and ``/api/2.0/workspace/rename``."""

    def __init__(self, service: DatabricksEmulator) -> None:
        self._service = service

    @route("object-info", "GET", f"{_BASE}/object-info")
    def object_info(self, request: Request) -> Reply:
        """Return the metadata of one object, of a file with a signed URL."""
        service, user = self._service, self._begin(request)
        with service.lock:
            node = service.readable(user, request.query.get("path"), lag_ms=service.setup.stat_lag_ms)
            return json_reply({"wsfs_object_info": self._described(node)})

    @route("list-files", "GET", f"{_BASE}/list-files")
    def list_files(self, request: Request) -> Reply:
        """Return everything in a folder as object-info would."""
        service, user = self._service, self._begin(request)
        with service.lock:
            lag_ms = service.setup.list_lag_ms
            node = service.readable(user, request.query.get("path"), lag_ms=lag_ms)
            found = service.visible(user, node, lag_ms) if node.is_folder else [node]
            objects = [self._described(one) for one in found]
        return json_reply({"objects": objects} if objects else {})

    @route("import-file", "POST", f"{_BASE}/import-file/{{path...}}")
    def import_file(self, request: Request) -> Reply:
        """Store the body, which is the file's bytes whatever the content type says."""
        service, user = self._service, self._begin(request)
        path = service.path("/" + request.params["path"])
        try:
            blob = service.blobs.receive(request.body.blocks(), service.setup.file_bytes_max)
        except TooLarge as error:
            message = f"The file is larger than {service.setup.file_bytes_max} bytes."
            raise errors.refuse(400, "MAX_NOTEBOOK_SIZE_EXCEEDED", message) from error
        with service.lock:
            node = automatic(service, path, blob)
            service.parent(user, node.path)
            old = service.tree.get(node.path)
            if old is not None:
                self._check_overwrite(old, node, request.query.get("overwrite") == "true")
                service.writable(user, node.path)
            service.store(node)
        return json_reply({})

    @route("new-files", "POST", f"{_BASE}/new-files")
    def new_files(self, request: Request) -> Reply:
        """Return a signed URL to PUT the content of a file to; the file is there when that is done."""
        service, user = self._service, self._begin(request)
        if not service.setup.new_files:
            raise errors.refuse(403, "FEATURE_DISABLED", "The feature is not enabled for this workspace.")
        wanted = json_object(request.body.read())
        path = service.path(text_field(wanted, "path"))
        try:
            base64.b64decode(wanted.get("content") or "", validate=True)
        except (TypeError, binascii.Error) as error:
            raise errors.invalid("The content is not base64.") from error
        with service.lock:
            service.parent(user, path)
            old = service.tree.get(path)
            if old is not None:
                if old.type != "FILE":
                    raise errors.taken(path)
                service.writable(user, path)
        signed = service.cloud.upload_url(path)
        return json_reply({"signed_urls": [{"url": signed["url"], "headers": signed["headers"]}]})

    @route("rename", "POST", "/api/2.0/workspace/rename")
    def rename(self, request: Request) -> Reply:
        """Move an object; an existing file in the way of a file is replaced."""
        service, user = self._service, self._service.sign_in(request)
        if not service.setup.rename:
            return service.failure(404, request, "unknown")
        wanted = json_object(request.body.read())
        given, target = text_field(wanted, "source_path"), service.path(text_field(wanted, "destination_path"))
        with service.lock:
            node = service.writable(user, given)
            service.parent(user, target)
            if node.path == target:
                return json_reply({})
            if protected(node.path):
                raise errors.refuse(400, "BAD_REQUEST", f"{node.path} cannot be moved.")
            if target.startswith(f"{node.path}/"):
                raise errors.invalid(f"{node.path} cannot be moved into itself.")
            old = service.tree.get(target)
            if old is not None:
                if (node.type, old.type) != ("FILE", "FILE"):
                    raise errors.taken(target, 409)
                service.writable(user, target)
                service.cloud.retire(old.content)
                service.tree.remove(target)
            service.tree.move(node.path, target)
        return json_reply({})

    def _begin(self, request: Request) -> User:
        """Return who asks, if this workspace has these calls at all."""
        user = self._service.sign_in(request)
        if not self._service.setup.workspace_files:
            raise Refused(self._service.failure(404, request, "unknown"))
        return user

    def _described(self, node: Node) -> dict[str, Any]:
        found: dict[str, Any] = {"object_info": object_info(node)}
        if node.type == "FILE" and self._service.setup.signed_urls:
            found["signed_url"] = self._service.cloud.download_url(node)
        return found

    def _check_overwrite(self, old: Node, new: Node, overwrite: bool) -> None:
        if not overwrite:
            if old.type == "FILE":
                message = f"File already exists at ({old.path})"
                raise errors.refuse(409, "RESOURCE_ALREADY_EXISTS", message)
            raise errors.taken(old.path)
        if old.is_folder or old.type != new.type:
            if old.type == "NOTEBOOK":
                raise errors.taken(old.path)
            check_type(old, new)


def protected(path: str) -> bool:
    """Return whether a folder belongs to the workspace itself and can be neither moved nor deleted."""
    return path in {"/", "/Users", "/Shared", "/Repos"} or parent_of(path) == "/Users"
