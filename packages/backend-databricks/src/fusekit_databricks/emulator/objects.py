"""How objects look in answers, and how content becomes an object.

Part of the emulator; shared by the documented and the undocumented calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusekit.testing.blobs import Blob
from fusekit_databricks.emulator import errors
from fusekit_databricks.emulator.notebooks import HEAD_BYTES, detect, is_jupyter
from fusekit_databricks.emulator.tree import Node

if TYPE_CHECKING:
    from fusekit_databricks.emulator.service import DatabricksEmulator


def object_info(node: Node) -> dict[str, Any]:
    """Return the ObjectInfo of ``node``: which fields it has depends on its type."""
    found: dict[str, Any] = {
        "path": node.path,
        "object_type": node.type,
        "object_id": node.object_id,
        "resource_id": str(node.object_id),
    }
    if node.type == "DIRECTORY":
        found["directory_info"] = {"is_git_folder": node.git is not None}
    elif not node.is_folder:
        found |= {"created_at": node.created_ms, "modified_at": node.modified_ms}
    if node.type == "FILE":
        found["size"] = node.content.size
    if node.language is not None:
        found["language"] = node.language
    return found


def automatic(service: DatabricksEmulator, path: str, blob: Blob) -> Node:
    """Return what content sent to ``path`` with format AUTO becomes: a notebook without suffix, or a file."""
    now_ms = service.clock.now_ms()
    found = detect(path, blob.read(0, HEAD_BYTES))
    if found is not None:
        name, language = found
        return Node(name, "NOTEBOOK", service.tree.new_id(), now_ms, now_ms, blob, language, "SOURCE")
    if service.setup.auto_jupyter and path.endswith(".ipynb") and is_jupyter(blob.read()):
        name = path.removesuffix(".ipynb")
        return Node(name, "NOTEBOOK", service.tree.new_id(), now_ms, now_ms, blob, "PYTHON", "JUPYTER")
    return Node(path, "FILE", service.tree.new_id(), now_ms, now_ms, blob)


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that the body of a call is.

    Raises:
        Refused: it is something else.
    """
    try:
        found = json.loads(body or b"{}")
    except ValueError as error:
        raise errors.refuse(400, "MALFORMED_REQUEST", "The body is not JSON.") from error
    if not isinstance(found, dict):
        raise errors.refuse(400, "MALFORMED_REQUEST", "The body is no JSON object.")
    return found


def text_field(wanted: Mapping[str, Any], name: str) -> str:
    """Return a field of a call that must be there.

    Raises:
        Refused: it is missing, or no text.
    """
    value = wanted.get(name)
    if not isinstance(value, str):
        raise errors.invalid(f"Missing required field: {name}")
    return value


def check_type(old: Node, new: Node) -> None:
    """Refuse to overwrite an object with one of another type."""
    if old.type != new.type:
        raise errors.invalid(
            f"Cannot overwrite the asset at {old.path} due to type mismatch (asked: {new.type}, actual: {old.type})."
        )
