"""The emulated workspace: what it holds, how it is set up, and the parts that answer for it.

Part of the emulator. This module owns state, knobs and the questions that every handler asks (who is it, what is at
that path, may they); the handlers are in `accounts_api`, `workspace_api`, `files_api`, `permissions_api`, `repos_api`
and `cloud`.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs

from fusekit.config import option
from fusekit.testing.emulator import Emulator, EmulatorOptions
from fusekit.testing.replies import Reply
from fusekit.testing.server import Request
from fusekit_databricks.emulator import errors
from fusekit_databricks.emulator.access import Accounts, User
from fusekit_databricks.emulator.accounts_api import AccountsApi
from fusekit_databricks.emulator.cloud import Cloud
from fusekit_databricks.emulator.files_api import FilesApi
from fusekit_databricks.emulator.notebooks import HEADERS
from fusekit_databricks.emulator.permissions_api import PermissionsApi
from fusekit_databricks.emulator.repos_api import ReposApi
from fusekit_databricks.emulator.tree import FOLDERS, TYPES, BadPath, Git, Node, Tree, canonical, parent_of
from fusekit_databricks.emulator.workspace_api import WorkspaceApi

_EMPTY_JUPYTER: Final = b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 0}'


@attrs.frozen
class DatabricksEmulatorOptions(EmulatorOptions):
    """Options of the emulated workspace."""

    user: str = option(default="me@example.com", help="name of the user, an admin")
    token: str = option(
        factory=lambda: f"emulated-{secrets.token_hex(16)}",
        secret=True,
        env=("FUSEKIT_EMULATOR_DATABRICKS_TOKEN",),  # never the service's own: what is given here gets printed
        help="access token of the user; made up if none is given",
    )
    auth: str = option(
        default="token",
        validator=attrs.validators.in_(("token", "oauth")),
        help="what the printed variables sign in with: token, or oauth (client id and secret)",
    )


@attrs.define
class Knobs:
    """How the workspace is set up. Times are in the unit of the name and go by the emulator's clock.

    Sizes: ``import_bytes_max`` and ``export_bytes_max`` bound the documented calls, ``file_bytes_max`` the others,
    ``list_max`` the objects of one listing. Features: ``new_files`` (uploads by signed URL), ``signed_urls`` (in
    object-info and list-files), ``workspace_files`` and ``rename`` (the undocumented calls), ``host_metadata``.
    ``normalise_notebooks`` adds header and final newline to exports; ``auto_jupyter`` makes notebooks of ``.ipynb``
    files that are imported with format AUTO; ``overwrite_bug`` refuses AUTO imports over existing files;
    ``keep_replaced`` lets URLs of replaced content work until they expire. ``list_lag_ms`` and ``stat_lag_ms`` make
    answers as old as that. ``cloud`` is AWS, AZURE or GCP; ``chunked`` sends JSON in chunks, as the service often does.
    """

    import_bytes_max: int = 10 << 20
    export_bytes_max: int = 10 << 20
    file_bytes_max: int = 500 << 20
    list_max: int = 0
    new_files: bool = True
    signed_urls: bool = True
    workspace_files: bool = True
    rename: bool = True
    host_metadata: bool = True
    normalise_notebooks: bool = True
    auto_jupyter: bool = False
    overwrite_bug: bool = False
    keep_replaced: bool = True
    url_lifetime_s: float = 900.0
    token_lifetime_s: float = 3600.0
    list_lag_ms: int = 0
    stat_lag_ms: int = 0
    cloud: str = attrs.field(default="AWS", validator=attrs.validators.in_(("AWS", "AZURE", "GCP")))
    chunked: bool = False


class DatabricksEmulator(Emulator):
    """A workspace on loopback.

    State: ``users`` by name (see `access.User.to_json`) and ``objects`` by path, each with ``type`` (FILE where it is
    left out), content as ``text``, base64 ``content`` or ``file`` (a path on this machine), and what `Node` has;
    folders above are made.
    """

    scheme: ClassVar[str] = "databricks"
    options: ClassVar[type[EmulatorOptions]] = DatabricksEmulatorOptions
    secret_parameters: ClassVar[frozenset[str]] = frozenset({"signature"})

    def __init__(self, settings: DatabricksEmulatorOptions) -> None:
        super().__init__(settings)
        self._user, self._token, self._auth = settings.user, settings.token, settings.auth
        self.setup = Knobs()
        self.tree = Tree(self.clock.now_ms)
        self.accounts = Accounts()
        self.cloud = Cloud(self)
        self.accounts.add(self._user, {"token": self._token, "admin": True})
        self.accounts.add("emulated-client", {"client_secret": f"emulated-{secrets.token_hex(16)}", "admin": True})
        self._make_homes()
        for part in (
            AccountsApi(self), WorkspaceApi(self), FilesApi(self), PermissionsApi(self), ReposApi(self), self.cloud,
        ):  # fmt: skip
            self.add_routes(part)

    def environment(self) -> dict[str, str]:
        """Return the variables that the vendor's tools and the backend read."""
        if self._auth == "oauth":
            client = self.accounts.users["emulated-client"]
            credentials = {"DATABRICKS_CLIENT_ID": client.name, "DATABRICKS_CLIENT_SECRET": client.client_secret or ""}
        else:
            credentials = {"DATABRICKS_TOKEN": self._token}
        return {"DATABRICKS_HOST": self.url, **credentials}

    # --- what handlers ask -------------------------------------------------------------------------------------

    def sign_in(self, request: Request) -> User:
        """Return who sends the request.

        Raises:
            Refused: nobody that is known (401).
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not token:
            message = "Credential was not sent or was of an unsupported type for this API."
            raise errors.refuse(401, "UNAUTHENTICATED", message)
        user = self.accounts.by_token(token.strip(), self.clock.now()) if scheme.lower() == "bearer" else None
        if user is None:
            raise errors.refuse(401, "UNAUTHENTICATED", "Invalid access token.")
        return user

    def path(self, given: str | None) -> str:
        """Return the canonical form of a path as it was sent.

        Raises:
            Refused: it is missing or no path (400).
        """
        if not given:
            raise errors.invalid("Missing required field: path")
        try:
            return canonical(given)
        except BadPath as error:
            raise errors.invalid(str(error)) from error

    def readable(self, user: User, given: str | None, *, lag_ms: int = 0) -> Node:
        """Return the object at a path as sent, for somebody who wants to see it.

        Raises:
            Refused: it is not there, or not for this user to know of (404 either way).
        """
        path = self.path(given)
        node = self.tree.get_at(path, lag_ms)
        if node is None or not user.may("CAN_READ", path):
            raise errors.missing(given or path)
        return node

    def writable(self, user: User, given: str) -> Node:
        """Return the object at a path as sent, for somebody who wants to change it.

        Raises:
            Refused: 404 as `readable`, or 403 where it may only be read.
        """
        node = self.readable(user, given)
        if not user.may("CAN_EDIT", node.path):
            raise errors.denied(user.name, "CAN_EDIT", node.path)
        return node

    def parent(self, user: User, path: str) -> Node:
        """Return the folder in which the object ``path`` is to be made.

        Raises:
            Refused: there is no such folder (404), it is no folder (400), or nothing may be made there (403).
        """
        place = parent_of(path)
        node = self.tree.get(place)
        if node is None or not user.may("CAN_READ", place):
            raise errors.no_parent(place)
        if not node.is_folder:
            raise errors.invalid(f"The parent ({place}) is not a directory.")
        if not user.may("CAN_EDIT", place):
            raise errors.denied(user.name, "CAN_EDIT", place)
        if place == "/Repos" or parent_of(place) == "/Repos":
            raise errors.invalid(f"Only Git folders can be made in {place}.")
        return node

    def visible(self, user: User, folder: Node, lag_ms: int) -> list[Node]:
        """Return what this user sees in ``folder``, by name, as it was ``lag_ms`` ago."""
        found = [node for node in self.tree.children_at(folder.path, lag_ms) if user.may("CAN_READ", node.path)]
        if self.setup.list_max and len(found) > self.setup.list_max:
            message = f"The directory {folder.path} has more than {self.setup.list_max} objects."
            raise errors.refuse(400, "MAX_LIST_SIZE_EXCEEDED", message)
        return found

    def folder(self, path: str) -> Node:
        """Make the folder ``path`` and those above it where they are missing, and return it.

        Raises:
            Refused: something else has one of the names (400).
        """
        node = self.tree.get(path)
        if node is None:
            self.folder(parent_of(path))
            now_ms = self.clock.now_ms()
            node = Node(path, "DIRECTORY", self.tree.new_id(), now_ms, now_ms)
            self.tree.put(node)
        elif not node.is_folder:
            raise errors.taken(path)
        return node

    def store(self, node: Node) -> None:
        """Put a file or notebook at its path, as a change of what is there or as something new."""
        old = self.tree.get(node.path)
        if old is not None:
            if old.blob is not None:
                self.cloud.retire(old.blob)
            node = attrs.evolve(node, object_id=old.object_id, created_ms=old.created_ms)
            if not self.clock.frozen:  # the service itself takes longer than a millisecond for a change
                node = attrs.evolve(node, modified_ms=max(node.modified_ms, old.modified_ms + 1))
        self.tree.put(node)

    # --- what the base asks ------------------------------------------------------------------------------------

    def failure(self, status: int, request: Request, route: str) -> Reply:
        """Return an error as the workspace, or for signed URLs as cloud storage, words it."""
        if request.path.startswith(Cloud.PREFIX):
            return self.cloud.failure(status)
        code = errors.BY_STATUS.get(status, "UNKNOWN")
        if route == "unknown" and status == 404:
            return errors.error_reply(404, "ENDPOINT_NOT_FOUND", f"No API found for '{request.method} {request.path}'")
        return errors.error_reply(status, code, f"The service answered {status}.")

    def finish(self, request: Request, reply: Reply) -> None:
        """Add the request id, and send JSON in chunks where the knob says so."""
        if not request.path.startswith(Cloud.PREFIX):
            reply.headers.setdefault("X-Databricks-Request-Id", secrets.token_hex(16))
            reply.chunked = self.setup.chunked and isinstance(reply.body, bytes) and bool(reply.body)

    def expire(self, what: str) -> None:
        """Make ``tokens`` or signed ``urls`` that were handed out so far invalid."""
        if what == "tokens":
            with self.lock:
                self.accounts.expire()
        elif what == "urls":
            self.cloud.expire()
        else:
            super().expire(what)

    def knobs(self) -> dict[str, Any]:
        """Return the knobs."""
        return attrs.asdict(self.setup)

    def set_knobs(self, changes: Mapping[str, Any]) -> None:
        """Change some knobs."""
        defaults = attrs.asdict(Knobs())
        wanted: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in defaults:
                raise ValueError(f"there is no knob {name!r}")
            kind = type(defaults[name])
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"{name} must be like {defaults[name]!r}, not {value!r}")
            wanted[name] = kind(value)
        with self.lock:
            self.setup = attrs.evolve(self.setup, **wanted)
            self.tree.keep_ms = max(self.setup.list_lag_ms, self.setup.stat_lag_ms)

    def state(self) -> dict[str, Any]:
        """Return users and objects."""
        with self.lock:
            nodes = [node for node in self.tree.walk() if node.path != "/"]
            users = {user.name: user.to_json() for user in self.accounts.users.values()}
        return {"users": users, "objects": {node.path: _to_json(node) for node in nodes}}

    def replace_state(self, state: Mapping[str, Any], *, merge: bool = False) -> None:
        """Hold the users and objects of ``state``; without ``merge`` no other objects, and the given users only if any are."""
        if unknown := state.keys() - {"users", "objects"}:
            raise ValueError(f"a workspace has no {', '.join(sorted(unknown))}")
        accounts = Accounts()
        for name, facts in state.get("users", {}).items():
            accounts.add(name, facts)  # a trial, so that a mistake changes nothing
        objects = {self._key(path): self._parsed(path, facts) for path, facts in state.get("objects", {}).items()}
        with self.lock:
            self._check_places(objects, merge)
            if not merge:
                if state.get("users"):
                    self.accounts.users.clear()
                self.tree.clear()
            for name, facts in state.get("users", {}).items():
                known = self.accounts.users.get(name)
                self.accounts.add(name, {**known.to_json(), **facts} if known else facts)
            self._make_homes()
            for path in sorted(objects):
                self._load(path, objects[path])

    def _make_homes(self) -> None:
        for path in ("/Users", "/Shared", "/Repos", *(f"/Users/{name}" for name in self.accounts.users)):
            self.folder(path)

    def _check_places(self, objects: Mapping[str, Mapping[str, Any]], merge: bool) -> None:
        """Refuse objects that would be below something that is no folder, or take the place of one."""
        for path, facts in objects.items():
            there = self.tree.get(path) if merge else None
            if there is not None and there.is_folder and facts["type"] not in FOLDERS:
                raise ValueError(f"{path} is a folder")
            above = path
            while above != "/":
                above = parent_of(above)
                node = self.tree.get(above) if merge else None
                kind = objects[above]["type"] if above in objects else node.type if node else "DIRECTORY"
                if kind not in FOLDERS:
                    raise ValueError(f"{path} cannot be below {above}, which is a {kind}")

    def _key(self, path: str) -> str:
        try:
            return canonical(path)
        except BadPath as error:
            raise ValueError(str(error)) from error

    def _parsed(self, path: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``facts`` checked, with content as a blob."""
        known = {
            "type", "text", "content", "file", "object_id", "created_at", "modified_at", "language",
            "repos_export_format", "git",
        }  # fmt: skip
        if unknown := facts.keys() - known:
            raise ValueError(f"{path}: an object has no {', '.join(sorted(unknown))}")
        kind = facts.get("type", "FILE")
        if kind not in TYPES:
            raise ValueError(f"{path}: {kind!r} is none of {', '.join(sorted(TYPES))}")
        if kind == "NOTEBOOK" and facts.get("language", "PYTHON") not in HEADERS:
            raise ValueError(f"{path}: {facts['language']!r} is none of {', '.join(HEADERS)}")
        if "file" in facts:
            blob = self.blobs.adopt(Path(facts["file"]))
        elif "content" in facts:
            blob = self.blobs.keep(base64.b64decode(facts["content"], validate=True))
        elif kind == "NOTEBOOK" and facts.get("repos_export_format") == "JUPYTER" and "text" not in facts:
            blob = self.blobs.keep(_EMPTY_JUPYTER)
        else:
            blob = self.blobs.keep(str(facts.get("text", "")).encode())
        return {**facts, "type": kind, "blob": blob}

    def _load(self, path: str, facts: Mapping[str, Any]) -> None:
        kind = facts["type"]
        if path != "/":
            self.folder(parent_of(path))
        if kind == "DIRECTORY" and "object_id" not in facts:
            self.folder(path)
            return
        now_ms = self.clock.now_ms()
        old = self.tree.get(path)
        git = facts.get("git")
        self.tree.put(
            Node(
                path=path,
                type=kind,
                object_id=int(facts.get("object_id") or (old.object_id if old else self.tree.new_id())),
                created_ms=int(facts.get("created_at", old.created_ms if old else now_ms)),
                modified_ms=int(facts.get("modified_at", now_ms)),
                blob=None if kind in FOLDERS else facts["blob"],
                language=facts.get("language", "PYTHON") if kind == "NOTEBOOK" else None,
                export_format=facts.get("repos_export_format", "SOURCE") if kind == "NOTEBOOK" else None,
                git=Git(**git) if git else None,
            )
        )


def _to_json(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": node.type,
        "object_id": node.object_id,
        "created_at": node.created_ms,
        "modified_at": node.modified_ms,
    }
    if node.blob is not None:
        found["content"] = base64.b64encode(node.blob.read()).decode()
    if node.language is not None:
        found |= {"language": node.language, "repos_export_format": node.export_format}
    if node.git is not None:
        found["git"] = attrs.asdict(node.git)
    return found
