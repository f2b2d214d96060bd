"""How the workspace words its refusals.

Part of the emulator. Every call of the workspace API answers errors in one JSON shape; cloud storage answers XML.
"""

from __future__ import annotations

from typing import Any

from fusekit.testing.replies import Refused, Reply, json_reply, text_reply

BY_STATUS = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    409: "RESOURCE_ALREADY_EXISTS",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error_reply(status: int, code: str, message: str, details: list[dict[str, Any]] | None = None) -> Reply:
    """Return an error of the workspace API."""
    body: dict[str, Any] = {"error_code": code, "message": message}
    if details is not None:
        body["details"] = details
    return json_reply(body, status)


def refuse(status: int, code: str, message: str, *, reason: str | None = None) -> Refused:
    """Return what to raise; ``reason`` goes into ``details`` as an ErrorInfo."""
    details = None
    if reason is not None:
        info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "databricks.com"}
        details = [{**info, "metadata": {}}]
    return Refused(error_reply(status, code, message, details))


def missing(path: str) -> Refused:
    """Return the refusal of a path that is not there, or that the user may not know of; quoted as it was asked for."""
    return refuse(404, "RESOURCE_DOES_NOT_EXIST", f"Path ({path}) doesn't exist.")


def no_parent(parent: str) -> Refused:
    """Return the refusal of a new object whose folder is not there."""
    return refuse(404, "RESOURCE_DOES_NOT_EXIST", f"The parent folder ({parent}) does not exist.")


def denied(user: str, level: str, path: str) -> Refused:
    """Return the refusal of a user who may see ``path`` but not do this to it."""
    return refuse(403, "PERMISSION_DENIED", f"{user} does not have {level} permissions on {path}.")


def taken(path: str, status: int = 400) -> Refused:
    """Return the refusal of a name that is in use."""
    return refuse(status, "RESOURCE_ALREADY_EXISTS", f"Path ({path}) already exists.")


def invalid(message: str) -> Refused:
    """Return the refusal of a value that makes no sense."""
    return refuse(400, "INVALID_PARAMETER_VALUE", message)


def xml_reply(status: int, code: str, message: str, more: str = "") -> Reply:
    """Return an error of cloud storage."""
    text = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>'
    return text_reply(text, status, "application/xml")
