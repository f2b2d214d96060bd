"""Git folders: listing, making, switching branches, removing; and the few undocumented calls that a token can make.

Part of the emulator. There is no Git behind it: a new Git folder is empty, and a branch is a name with a made-up
commit. What such folders hold is put there as state, or through the other calls.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import attrs

from fusekit.testing.replies import Reply, json_reply
from fusekit.testing.routes import route
from fusekit.testing.server import Request
from fusekit_databricks.emulator import errors
from fusekit_databricks.emulator.objects import json_object
from fusekit_databricks.emulator.tree import Git, Node, parent_of

if TYPE_CHECKING:
    from fusekit_databricks.emulator.service import DatabricksEmulator

_BASE: Final = "/api/2.0/repos"
_PAGE: Final = 20


class ReposApi:
    """``/api/2.0/repos``."""

    def __init__(self, service: DatabricksEmulator) -> None:
        self._service = service

    @route("repos-list", "GET", _BASE)
    def list(self, request: Request) -> Reply:
        """Return the Git folders that the user sees, twenty at a time."""
        service, user, query = self._service, self._service.sign_in(request), request.query
        prefix = service.path(query["path_prefix"]) if query.get("path_prefix") else "/"
        start = query.get("next_page_token", "0")
        if not start.isdigit():
            raise errors.invalid("next_page_token is not valid.")
        with service.lock:
            found = [
                node
                for node in service.tree.walk()
                if node.git is not None and node.path.startswith(prefix) and user.may("CAN_READ", node.path)
            ]
        stop = int(start) + _PAGE
        answer: dict[str, Any] = {"repos": [_described(node) for node in found[int(start) : stop]]}
        if stop < len(found):
            answer["next_page_token"] = str(stop)
        return json_reply(answer)

    @route("repos-get", "GET", _BASE + "/{id}")
    def get(self, request: Request) -> Reply:
        """Return one Git folder."""
        with self._service.lock:
            return json_reply(_described(self._repo(request, "CAN_READ")))

    @route("repos-create", "POST", _BASE)
    def create(self, request: Request) -> Reply:
        """Make an empty Git folder."""
        service, user, wanted = self._service, self._service.sign_in(request), json_object(request.body.read())
        url, provider = str(wanted.get("url") or ""), str(wanted.get("provider") or "")
        if not url or not provider:
            raise errors.invalid("A Git folder needs url and provider.")
        name = url.rstrip("/").rpartition("/")[2].removesuffix(".git")
        path = service.path(wanted.get("path") or f"/Repos/{user.name}/{name}")
        with service.lock:
            if service.tree.get(path) is not None:
                raise errors.taken(path)
            if not user.may("CAN_EDIT", parent_of(path)):
                raise errors.denied(user.name, "CAN_EDIT", parent_of(path))
            service.folder(parent_of(path))
            now_ms = service.clock.now_ms()
            kind = "REPO" if path.startswith("/Repos/") else "DIRECTORY"
            node = Node(path, kind, service.tree.new_id(), now_ms, now_ms, git=_on_branch(Git(url, provider), "main"))
            service.tree.put(node)
        return json_reply(_described(node))

    @route("repos-update", "PATCH", _BASE + "/{id}")
    def update(self, request: Request) -> Reply:
        """Switch to another branch."""
        wanted = json_object(request.body.read())
        with self._service.lock:
            node = self._repo(request, "CAN_EDIT")
            assert node.git is not None
            if wanted.get("branch"):
                self._service.tree.put(attrs.evolve(node, git=_on_branch(node.git, str(wanted["branch"]))))
        return json_reply({})

    @route("repos-delete", "DELETE", _BASE + "/{id}")
    def delete(self, request: Request) -> Reply:
        """Remove a Git folder with all that is in it."""
        with self._service.lock:
            self._service.tree.remove(self._repo(request, "CAN_MANAGE").path)
        return json_reply({})

    @route("projects-get", "GET", "/api/2.0/projects/{id}")
    def project(self, request: Request) -> Reply:
        """Return one Git folder as the undocumented call does, which knows more of its state."""
        with self._service.lock:
            found = _described(self._repo(request, "CAN_READ"))
        return json_reply({**found, "git_state": "CLEAN", "workspace_filesystem_enabled": True})

    @route("branch-metadata", "GET", _BASE + "/{id}/branch-metadata")
    def branches(self, request: Request) -> Reply:
        """Return the branch that is checked out; of others nothing is known here."""
        with self._service.lock:
            git = self._repo(request, "CAN_READ").git
        assert git is not None
        return json_reply({"branches": [{"name": git.branch, "commit_id": git.head_commit_id}]})

    @route("fetch-and-checkout", "POST", "/api/2.0/projects/fetch-and-checkout")
    @route("fetch-and-checkout", "POST", "/api/2.0/projects/{id}/fetch-and-checkout")
    def fetch_and_checkout(self, request: Request) -> Reply:
        """Refuse, as for every user who has left no Git credentials with the service."""
        self._service.sign_in(request)
        message = "Missing Git credential. Add one in the user settings."
        raise errors.refuse(401, "UNAUTHENTICATED", message, reason="GIT_CREDENTIAL_MISSING")

    def _repo(self, request: Request, level: str) -> Node:
        service, user, text = self._service, self._service.sign_in(request), request.params["id"]
        node = service.tree.by_id(int(text)) if text.isdigit() else None
        if node is None or node.git is None or not user.may("CAN_READ", node.path):
            raise errors.refuse(404, "RESOURCE_DOES_NOT_EXIST", f"Repo {text} does not exist.")
        if not user.may(level, node.path):
            raise errors.denied(user.name, level, node.path)
        return node


def _described(node: Node) -> dict[str, Any]:
    assert node.git is not None
    return {"id": node.object_id, "path": node.path, **attrs.asdict(node.git)}


def _on_branch(git: Git, branch: str) -> Git:
    commit = hashlib.sha1(f"{git.url}/{branch}".encode(), usedforsecurity=False).hexdigest()
    return attrs.evolve(git, branch=branch, head_commit_id=commit)
