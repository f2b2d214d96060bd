"""Answers that an emulator gives: plain, JSON, or the bytes of a blob with ranges and preconditions.

Part of the emulator base. `serve_blob` is what cloud stores do with a GET or HEAD of an object, which every service
with downloads needs.
"""

from __future__ import annotations

import json
import re
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

import attrs

from fusekit.testing.blobs import Blob, Stretch
from fusekit.testing.server import Request

JSON_TYPE: Final = "application/json"
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")


@attrs.define
class Reply:
    """One answer. The sender adds ``Content-Length``, or sends the body in chunks where ``chunked``."""

    status: int = 200
    headers: dict[str, str] = attrs.field(factory=dict)
    body: bytes | Stretch = b""
    chunked: bool = False


class Refused(Exception):
    """Raised in a handler to answer with ``reply`` instead of what it was about to return."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"refused with {reply.status}")
        self.reply = reply


def json_reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """Return ``value`` as JSON."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Reply(status, {"Content-Type": JSON_TYPE, **(headers or {})}, body)


def text_reply(text: str, status: int = 200, type: str = "text/plain; charset=utf-8") -> Reply:
    """Return ``text`` as UTF-8."""
    return Reply(status, {"Content-Type": type}, text.encode())


def phrase(status: int) -> str:
    """Return the reason phrase of ``status``."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def http_date(seconds: float) -> str:
    """Return seconds since 1970 as an HTTP date, which has whole seconds."""
    return formatdate(int(seconds), usegmt=True)


def serve_blob(
    request: Request, blob: Blob, *, etag: str, modified_s: float, type: str = "application/octet-stream"
) -> Reply:
    """Answer a GET or HEAD of ``blob``: whole, a range (206), unsatisfiable (416), unchanged (304), changed (412).

    ``etag`` comes with its quotes. Several ranges in one request, and ranges that make no sense, get the whole, as
    the standard allows. Source: RFC 9110, sections 13 and 14.
    """
    headers = {
        "Content-Type": type,
        "ETag": etag,
        "Last-Modified": http_date(modified_s),
        "Accept-Ranges": "bytes",
    }
    status = _precondition(request, etag, int(modified_s))
    if status is not None:
        return Reply(status, headers)
    wanted = request.headers.get("range") if _range_applies(request, etag, int(modified_s)) else None
    found = _RANGE.fullmatch(wanted.strip()) if wanted else None
    if found is None or found.groups() == ("", ""):
        return Reply(200, headers, Stretch(blob, 0, blob.size))
    first, last = found.groups()
    if first:
        start = int(first)
        stop = min(blob.size, int(last) + 1) if last else blob.size
        if last and int(last) < start:
            return Reply(200, headers, Stretch(blob, 0, blob.size))
    else:
        start, stop = max(0, blob.size - int(last)), blob.size
    if start >= blob.size or (not first and not int(last)):
        return Reply(416, {**headers, "Content-Range": f"bytes */{blob.size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    return Reply(206, headers, Stretch(blob, start, stop))


def _precondition(request: Request, etag: str, modified_s: int) -> int | None:
    given = request.headers
    if "if-match" in given:
        if not _names(given["if-match"], etag):
            return 412
    elif (limit := _date(given.get("if-unmodified-since"))) is not None and modified_s > limit:
        return 412
    if "if-none-match" in given:
        return 304 if _names(given["if-none-match"], etag) else None
    since = _date(given.get("if-modified-since"))
    return 304 if since is not None and modified_s <= since else None


def _range_applies(request: Request, etag: str, modified_s: int) -> bool:
    condition = request.headers.get("if-range")
    if condition is None or condition == etag:
        return True
    return not condition.startswith(('"', "W/")) and _date(condition) == modified_s


def _names(header: str, etag: str) -> bool:
    return header.strip() == "*" or etag in [one.strip() for one in header.split(",")]


def _date(header: str | None) -> int | None:
    if header is None:
        return None
    try:
        return int(parsedate_to_datetime(header).timestamp())
    except ValueError:
        return None
