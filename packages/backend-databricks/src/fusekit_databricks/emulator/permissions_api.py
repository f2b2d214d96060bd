"""Access control lists of objects.

Part of the emulator. An admin's level comes from being one and is not granted on any object.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from fusekit.testing.replies import Reply, json_reply
from fusekit.testing.routes import route
from fusekit.testing.server import Request
from fusekit_databricks.emulator import errors
from fusekit_databricks.emulator.access import LEVELS, User
from fusekit_databricks.emulator.tree import Node

if TYPE_CHECKING:
    from fusekit_databricks.emulator.service import DatabricksEmulator

_BASE: Final = "/api/2.0/permissions/{kind}/{id}"
_KINDS: Final = {"directories": "DIRECTORY", "files": "FILE", "notebooks": "NOTEBOOK", "repos": "REPO"}


class PermissionsApi:
    """``/api/2.0/permissions`` for workspace objects."""

    def __init__(self, service: DatabricksEmulator) -> None:
        self._service = service

    @route("permissions-get", "GET", _BASE)
    def get(self, request: Request) -> Reply:
        """Return who may do what with an object."""
        with self._service.lock:
            _, node = self._object(request, "CAN_READ")
            return json_reply(self._listed(request.params["kind"], node))

    @route("permissions-update", "PATCH", _BASE)
    @route("permissions-set", "PUT", _BASE)
    def change(self, request: Request) -> Reply:
        """Grant levels to users: besides the ones granted so far (PATCH), or in their place (PUT)."""
        wanted = self._wanted(request)
        with self._service.lock:
            _, node = self._object(request, "CAN_MANAGE")
            users = self._service.accounts.users
            if unknown := wanted.keys() - users.keys():
                raise errors.refuse(404, "RESOURCE_DOES_NOT_EXIST", f"Principal: {min(unknown)} does not exist")
            if request.method == "PUT":
                for user in users.values():
                    user.grants.pop(node.path, None)
            for name, level in wanted.items():
                users[name].grants[node.path] = level
            return json_reply(self._listed(request.params["kind"], node))

    def _object(self, request: Request, level: str) -> tuple[User, Node]:
        service, user = self._service, self._service.sign_in(request)
        kind, text = request.params["kind"], request.params["id"]
        if kind not in _KINDS:
            raise errors.invalid(f"{kind} is no type of object with permissions.")
        node = service.tree.by_id(int(text)) if text.isdigit() else None
        if node is None or node.type != _KINDS[kind] or not user.may("CAN_READ", node.path):
            raise errors.refuse(404, "RESOURCE_DOES_NOT_EXIST", f"{_KINDS[kind].title()} {text} does not exist.")
        if not user.may(level, node.path):
            raise errors.denied(user.name, level, node.path)
        return user, node

    def _wanted(self, request: Request) -> dict[str, str]:
        try:
            entries = json.loads(request.body.read())["access_control_list"]
            found = {str(entry["user_name"]): str(entry["permission_level"]) for entry in entries}
        except (ValueError, KeyError, TypeError) as error:
            message = "The body needs access_control_list with user_name and permission_level."
            raise errors.refuse(400, "MALFORMED_REQUEST", message) from error
        for level in found.values():
            if level not in LEVELS[1:]:
                raise errors.invalid(f"{level} is none of {', '.join(LEVELS[1:])}.")
        return found

    def _listed(self, kind: str, node: Node) -> dict[str, Any]:
        entries: list[dict[str, Any]] = []
        for user in self._service.accounts.users.values():
            level, origin = user.origin(node.path)
            if level == "NONE":
                continue
            permission: dict[str, Any] = {"permission_level": level, "inherited": origin != node.path}
            above = self._service.tree.get(origin)
            if origin != node.path and above is not None:
                permission["inherited_from_object"] = [f"/directories/{above.object_id}"]
            entries.append({"user_name": user.name, "display_name": user.name, "all_permissions": [permission]})
        object_type = _KINDS[kind].lower()
        return {"object_id": f"/{kind}/{node.object_id}", "object_type": object_type, "access_control_list": entries}
