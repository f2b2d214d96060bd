"""What the service's error bodies mean, in all the shapes in which they come.

Part of the backend, shared with other Databricks backends. The code decides, whatever the HTTP status was; phrases
are looked at only where the service is known to send the same trouble under different codes.
Source: the error tables of the vendor's own client, and traces of the real service.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from fusekit.api import (
    Aborted,
    Answer,
    BackendError,
    Corrupt,
    Denied,
    Exists,
    Invalid,
    NoSpace,
    NotEmpty,
    NotFound,
    NotSupported,
    Throttled,
    TimedOut,
    TooLarge,
    Unavailable,
)

_BY_CODE: Final[Mapping[str, type[BackendError]]] = {
    "RESOURCE_DOES_NOT_EXIST": NotFound,
    "NOT_FOUND": NotFound,
    "RESOURCE_ALREADY_EXISTS": Exists,
    "ALREADY_EXISTS": Exists,
    "DIRECTORY_NOT_EMPTY": NotEmpty,
    "PERMISSION_DENIED": Denied,
    "UNAUTHENTICATED": Denied,
    "INVALID_PARAMETER_VALUE": Invalid,
    "BAD_REQUEST": Invalid,
    "MALFORMED_REQUEST": Invalid,
    "INVALID_STATE": Invalid,
    "MAX_NOTEBOOK_SIZE_EXCEEDED": TooLarge,
    "MAX_READ_SIZE_EXCEEDED": TooLarge,
    "MAX_BLOCK_SIZE_EXCEEDED": TooLarge,
    "MAX_LIST_SIZE_EXCEEDED": TooLarge,
    "MAX_CHILD_NODE_SIZE_EXCEEDED": TooLarge,
    "RESOURCE_EXHAUSTED": Throttled,
    "REQUEST_LIMIT_EXCEEDED": Throttled,
    "QUOTA_EXCEEDED": NoSpace,
    "TEMPORARILY_UNAVAILABLE": Unavailable,
    "SERVICE_UNDER_MAINTENANCE": Unavailable,
    "INTERNAL_ERROR": Unavailable,
    # Two changes met and this one was not made: the same request may succeed.
    "ABORTED": Unavailable,
    "DEADLINE_EXCEEDED": TimedOut,
    "CANCELLED": Aborted,
    "DATA_LOSS": Corrupt,
    "NOT_IMPLEMENTED": NotSupported,
    "FEATURE_DISABLED": NotSupported,
    # A call that this workspace does not have is a 404 too, and must not pass for a file that is not there.
    "ENDPOINT_NOT_FOUND": NotSupported,
}

# The same trouble comes as UNKNOWN, BAD_REQUEST or INVALID_PARAMETER_VALUE with status 400 as well.
_BY_PHRASE: Final = (
    (re.compile(r"parent folder .*does not exist", re.IGNORECASE | re.DOTALL), NotFound),
    (re.compile(r"\bis not empty\b", re.IGNORECASE), NotEmpty),
    (re.compile(r"\balready exists\b", re.IGNORECASE), Exists),
)
_VAGUE: Final = frozenset({None, "UNKNOWN", "BAD_REQUEST", "INVALID_PARAMETER_VALUE"})

_PLAIN: Final = re.compile(r"([A-Z][A-Z0-9_]{2,63}): (.*)", re.DOTALL)
_MESSAGE_CHARS_MAX: Final = 240


def explain(answer: Answer) -> BackendError | None:
    """Return the error that the body of ``answer`` names; None leaves it to the table by status."""
    code, message = _code_and_message(answer)
    cls = _BY_CODE.get(code or "")
    if code in _VAGUE and (cls is None or cls is Invalid) and 400 <= answer.status < 500:
        cls = next((found for phrase, found in _BY_PHRASE if phrase.search(message)), cls)
    if cls is None:
        return None
    line = " ".join(message.split())[:_MESSAGE_CHARS_MAX]
    return cls(line or (code or "").replace("_", " ").lower(), code=code, status=answer.status)


def _code_and_message(answer: Answer) -> tuple[str | None, str]:
    text = answer.content[:65536].decode("utf-8", "replace").strip()
    if text.startswith("{"):
        try:
            body: Any = json.loads(text)
        except (ValueError, RecursionError):
            return None, ""
        return _from_json(body)
    found = _PLAIN.fullmatch(text)
    return (found[1], found[2]) if found else (None, "")


def _from_json(body: Mapping[str, Any]) -> tuple[str | None, str]:
    code, message = body.get("error_code"), body.get("message")
    if message is None and isinstance(body.get("error"), str):  # API 1.2
        message = body["error"]
    if message is None and isinstance(body.get("detail"), str):  # SCIM
        message = body["detail"]
    return (code if isinstance(code, str) else None), (message if isinstance(message, str) else "")
