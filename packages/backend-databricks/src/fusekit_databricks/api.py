"""Typed calls to the workspace: one method, one request.

Part of the backend. The calls under ``workspace-files`` and ``workspace/rename`` are not documented by the vendor;
they are what its own tools use, and the only ones with sizes and signed URLs in a listing.
"""

from __future__ import annotations

import base64
import email.utils
import time
from collections.abc import Awaitable
from typing import Any, Final
from urllib.parse import quote, urlencode

import attrs
import trio

from fusekit.api import Answer, Expect, Http, NotFound, Part, Sink, Unavailable
from fusekit_databricks.layout import Info
from fusekit_databricks.links import Link

FILE_BYTES_MAX: Final = 10_485_760
"""What one import or export may carry; the service's limit, not ours."""

_API: Final = "/api/2.0"
# Where the service does not say when a URL ends: shorter than any that was seen (15 minutes).
_LINK_S: Final = 300.0


@attrs.frozen
class Found:
    """One object, and for a plain file where its bytes are."""

    info: Info
    link: Link | None = None


class Workspace:
    """The calls, over HTTP that signs them."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def object_info(self, path: str) -> Found:
        """Return one object.

        Raises:
            NotFound: it is not there, or not to be seen by this user; the service does not tell which.
        """
        answer = await self._call("GET", "/workspace-files/object-info", params={"path": path})
        found = _found(_object(answer).get("wsfs_object_info"), answer)
        if found is None:
            raise Unavailable("the service described an object without a path", status=answer.status)
        return found

    async def list_files(self, path: str) -> list[Found]:
        """Return all that is in a folder; of something else, that alone."""
        answer = await self._call("GET", "/workspace-files/list-files", params={"path": path})
        objects = _object(answer).get("objects") or []
        if not isinstance(objects, list):
            raise Unavailable("the service answered a listing that is no list", status=answer.status)
        return [found for one in objects if (found := _found(one, answer)) is not None]

    async def import_file(self, path: str, part: Part, *, overwrite: bool) -> None:
        """Store the bytes of ``part`` as ``path``; source with a notebook's header becomes a notebook."""
        answer = await _known_call(
            self._http.send(
                f"{_API}/workspace-files/import-file/{quote(path.lstrip('/'), safe='/')}",
                part,
                method="POST",
                params={"overwrite": overwrite},
                headers={"Content-Type": "application/octet-stream"},
            )
        )
        _object(answer)

    async def import_raw(self, path: str, part: Part, *, overwrite: bool) -> None:
        """Store the bytes of ``part`` as the plain file ``path``, whatever they look like."""
        content = base64.b64encode(await part.read()).decode("ascii")
        body = {"path": path, "content": content, "format": "RAW", "overwrite": overwrite}
        _object(await self._call("POST", "/workspace/import", json=body))

    async def mkdirs(self, path: str) -> None:
        """Make a folder and all above it; one that is there is no error."""
        _object(await self._call("POST", "/workspace/mkdirs", json={"path": path}))

    async def delete(self, path: str) -> None:
        """Delete a file, notebook or empty folder; never more than that."""
        _object(await self._call("POST", "/workspace/delete", json={"path": path, "recursive": False}))

    async def rename(self, source: str, destination: str) -> None:
        """Move an object. A file in the way of a file is replaced without a word."""
        _object(
            await self._call("POST", "/workspace/rename", json={"source_path": source, "destination_path": destination})
        )

    async def download(self, link: Link, start: int, stop: int | None, sink: Sink, expect: Expect) -> Answer:
        """Read a range straight from cloud storage, which refuses the workspace's own credentials."""
        return await self._http.fetch(link.url, start, stop, sink, headers=link.headers, expect=expect, signed=False)

    async def export(self, path: str, form: str, start: int, stop: int | None, sink: Sink, size: int | None) -> None:
        """Read an object in a format; the service sends all of it, at most `FILE_BYTES_MAX`."""
        query = urlencode({"path": path, "format": form, "direct_download": "true"}, quote_via=quote)
        await _known_call(
            self._http.fetch(f"{_API}/workspace/export?{query}", start, stop, sink, expect=Expect(size=size))
        )

    async def _call(self, method: str, path: str, **arguments: Any) -> Answer:
        return await _known_call(self._http.request(method, f"{_API}{path}", **arguments))


async def _known_call(call: Awaitable[Answer]) -> Answer:
    """Await a call of the workspace's API, and take a 404 for an answer only where it comes from there."""
    try:
        return await call
    except NotFound as error:
        if error.code is None:
            raise Unavailable(
                f"a 404 that is not the workspace's own: {error}", status=404, request_id=error.request_id
            ) from error
        raise


def _object(answer: Answer) -> dict[str, Any]:
    """Return the body, which is a JSON object or empty; a page that somebody on the way answered with is no success."""
    body = answer.json()
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise Unavailable("the service answered JSON that is no object", status=answer.status)
    return body


def _found(fields: Any, answer: Answer) -> Found | None:
    if not isinstance(fields, dict) or not isinstance(fields.get("object_info"), dict):
        return None
    info = Info.parse(fields["object_info"])
    return None if info is None else Found(info, _link(fields.get("signed_url"), answer))


def _link(fields: Any, answer: Answer) -> Link | None:
    if not isinstance(fields, dict) or not isinstance(fields.get("url"), str) or not fields["url"]:
        return None
    headers = fields.get("headers")
    given = headers if isinstance(headers, dict) else {}
    ends_ms = fields.get("expiry_time_millis")
    # The service's end on the service's clock: ours may be wrong. A URL that was just made cannot be over, so where it
    # seems to be, the clocks are what is wrong.
    left_s = ends_ms / 1000 - _now_s(answer) if isinstance(ends_ms, int | float) else 0
    return Link(
        fields["url"],
        {name: value for name, value in given.items() if isinstance(name, str) and isinstance(value, str)},
        trio.current_time() + (left_s if left_s > 0 else _LINK_S),
    )


def _now_s(answer: Answer) -> float:
    found = http_date_s(answer.headers.get("date"))
    return time.time() if found is None else found


def http_date_s(value: str | None) -> float | None:
    """Return the seconds since 1970 of an HTTP date, None where it is none."""
    try:
        return email.utils.parsedate_to_datetime(value or "").timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
