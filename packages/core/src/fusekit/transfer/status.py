"""The one table from HTTP statuses to errors, and the one place that turns an error body into a line for people.

Transfer layer. A service's own codes are the backend's: its ``explain`` is asked first. Nothing here retries; what
is retried is decided by the class of the error, elsewhere.
"""

from __future__ import annotations

import email.utils
import html
import json
import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from fusekit.errors import (
    Aborted,
    BackendError,
    Busy,
    Denied,
    Exists,
    Invalid,
    NoSpace,
    NotFound,
    NotSupported,
    Stale,
    Throttled,
    TooLarge,
    Unavailable,
)
from fusekit.types import Answer, Explain

_BY_STATUS: Final[Mapping[int, type[BackendError]]] = {
    400: Invalid,
    401: Denied,
    402: Denied,
    403: Denied,
    404: NotFound,
    405: NotSupported,
    407: Denied,  # the proxy's, not the service's; signing in there is the user's task all the same
    408: Unavailable,  # the server waited for us; the same request may well succeed
    409: Exists,
    410: NotFound,
    412: Stale,
    413: TooLarge,
    421: Unavailable,
    422: Invalid,
    423: Busy,
    425: Unavailable,
    428: Stale,
    429: Throttled,
    451: Denied,
    499: Aborted,
    500: Unavailable,
    501: NotSupported,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
    505: NotSupported,
    507: NoSpace,
    509: Throttled,
    511: Denied,  # a captive portal wants a sign-in
}

_REQUEST_ID_HEADERS: Final = (
    "x-request-id",
    "x-databricks-request-id",
    "x-amz-request-id",
    "x-ms-request-id",
    "x-guploader-uploadid",
)

# Long enough for a sentence with a path in it, short enough for one line of a log.
_REASON_CHARS_MAX: Final = 240
_JSON_MESSAGE_KEYS: Final = ("message", "error_description", "detail", "error", "title", "reason")
_JSON_CODE_KEYS: Final = ("error_code", "code", "type", "error")

_XML_FIELD: Final = re.compile(r"<(Message|Code)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_HTML_TITLE: Final = re.compile(r"<title[^>]*>(.*?)</title>", re.DOTALL | re.IGNORECASE)
_QUERY: Final = re.compile(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]*")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f\s]+")
_CODE: Final = re.compile(r"[A-Za-z][\w.:-]{0,63}")


def error_for(answer: Answer, explain: Explain | None = None) -> BackendError:
    """Return the error that ``answer`` stands for: the backend's word first, else the table's.

    Status, request id and Retry-After are filled in where ``explain`` left them open.
    """
    error = explain(answer) if explain is not None else None
    if error is None:
        error = _by_table(answer)
    if error.status is None:
        error.status = answer.status
    if error.request_id is None:
        error.request_id = next(
            (answer.headers[name][:128] for name in _REQUEST_ID_HEADERS if name in answer.headers), None
        )
    if error.retry_after_s is None:
        error.retry_after_s = retry_after_s(answer.headers)
    return error


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return how long the service wants to be left alone: Retry-After as a number of seconds or as an HTTP date.

    A date is taken against the answer's own Date header, so that a clock that is wrong on either side cancels out.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    until = http_date_s(value)
    if until is None:
        return None
    now = http_date_s(headers.get("date", ""))
    return max(0.0, until - (time.time() if now is None else now))


def http_date_s(value: str) -> float | None:
    """Return the seconds since 1970 that an HTTP date names, None where it is none."""
    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _by_table(answer: Answer) -> BackendError:
    others = Invalid if 400 <= answer.status < 500 else Unavailable
    reason, code = reason_and_code(answer)
    cls = _BY_STATUS.get(answer.status, others)
    return cls(f"{_host(answer)}: {reason}", status=answer.status, code=code)


def reason_and_code(answer: Answer) -> tuple[str, str | None]:
    """Return one line that says what went wrong, and the service's code where it gave one; never a whole page."""
    standard = _standard(answer.status)
    text = answer.content[:65536].decode("utf-8", "replace").strip()
    reason, code = "", None
    if text[:1] in {"{", "["}:
        reason, code = _from_json(text)
    elif text[:1] == "<":
        reason, code = _from_markup(text)
    elif answer.headers.get("content-type", "").startswith("text/plain"):
        reason = text.partition("\n")[0]
    reason = one_line(reason)
    if not reason or reason.lower() == standard.lower():
        return standard, code
    return f"{reason} ({standard})", code


def one_line(text: str) -> str:
    """Return ``text`` as one printable line of bounded length, without the query strings of URLs (they may sign)."""
    line = _UNPRINTABLE.sub(" ", _QUERY.sub(r"\1?…", text)).strip()
    return line if len(line) <= _REASON_CHARS_MAX else f"{line[: _REASON_CHARS_MAX - 1]}…"


def _from_json(text: str) -> tuple[str, str | None]:
    try:
        body: Any = json.loads(text)
    except (ValueError, RecursionError):
        return "", None
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return "", None
    inner = body.get("error")
    merged = {**body, **inner} if isinstance(inner, dict) else body
    reason = next((found for key in _JSON_MESSAGE_KEYS if isinstance(found := merged.get(key), str) and found), "")
    codes = (found for key in _JSON_CODE_KEYS if isinstance(found := merged.get(key), str))
    return reason, next((found for found in codes if _CODE.fullmatch(found)), None)


def _from_markup(text: str) -> tuple[str, str | None]:
    fields = {name.lower(): html.unescape(value) for name, value in _XML_FIELD.findall(text)}
    if fields:
        code = fields.get("code", "").strip()
        return fields.get("message", code), code if _CODE.fullmatch(code) else None
    title = _HTML_TITLE.search(text)
    return (html.unescape(title[1]) if title else ""), None


def _standard(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"


def _host(answer: Answer) -> str:
    return urlsplit(answer.url).netloc.rpartition("@")[2] or "the service"
