"""Which bytes an answer to a ranged GET really brings, and whether they are the ones that were announced.

Transfer layer, without I/O: both the httpx client and a data plane of our own ask here before a byte becomes data.
`open_body` judges the head, `Body.take` every block, `Body.finish` the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs

from fusekit.errors import Corrupt, Stale
from fusekit.transfer.status import http_date_s
from fusekit.types import Expect

# The statuses that `open_body` can judge; anything else is an error by the table.
STATUSES: Final = frozenset({200, 206, 416})

_CONTENT_RANGE: Final = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", re.IGNORECASE)
_NOTHING: Final = Expect()


@attrs.define
class Body:
    """The bytes on their way: the next one is ``position`` of the file, the last one before ``stop`` (None: unknown).

    ``size`` is what the whole file must have, where the body runs to its end without an announced length; ``framed``
    says that the end of the body is marked, so that a short one is a shorter file and not a cut connection.
    """

    position: int
    stop: int | None
    size: int | None
    framed: bool
    host: str

    def take(self, count: int) -> int:
        """Account for the next ``count`` bytes and return the offset at which they belong.

        Raises:
            Corrupt: they are more than was announced. Stale: the file is longer than it was.
        """
        at = self.position
        self.position += count
        if self.stop is not None and self.position > self.stop:
            raise Corrupt(f"{self.host} sent more bytes than it announced")
        if self.size is not None and self.position > self.size:
            raise Stale(f"the file at {self.host} is longer than the {self.size} bytes that it had")
        return at

    def finish(self) -> None:
        """Check the end.

        Raises:
            Corrupt: bytes are missing. Stale: the file is shorter than it was.
        """
        if self.stop is not None and self.position < self.stop:
            raise self.cut_short()
        if self.size is not None and self.position < self.size:
            if self.framed:
                raise Stale(f"the file at {self.host} has {self.position} bytes instead of the {self.size} it had")
            raise self.cut_short()

    def cut_short(self) -> Corrupt:
        """Return the error for a body that ends here."""
        end = self.stop if self.stop is not None else self.size
        missing = "before its end" if end is None else f"{end - self.position} bytes before its end"
        return Corrupt(f"{self.host} ended the body {missing}")


def range_header(start: int, stop: int | None, expect: Expect | None) -> str | None:
    """Return the Range header for ``start`` to ``stop``, None where the whole file is meant.

    A plain GET is what every server answers, also for an empty file, where ``bytes=0-`` is unsatisfiable.
    """
    size = (expect or _NOTHING).size
    if start == 0 and (stop is None or (size is not None and stop >= size)):
        return None
    return f"bytes={start}-" if stop is None else f"bytes={start}-{stop - 1}"


def open_body(
    status: int, headers: Mapping[str, str], start: int, stop: int | None, expect: Expect | None, host: str
) -> Body | None:
    """Return what the head of the answer promises, None for "there are no bytes there" (416 at or after the end).

    Raises:
        Corrupt: the head is not an answer to this request. Stale: it is about other content than ``expect``.
    """
    expect = expect or _NOTHING
    if status == 416:
        _check_nothing_there(headers, start, expect, host)
        return None
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise Corrupt(f"{host} sent the bytes in an encoding that was not asked for ({encoding[:40]})")
    _check_validators(headers, expect, host)
    if status == 206:
        return _part(headers, start, stop, expect, host)
    return _whole(headers, expect, host)


def _whole(headers: Mapping[str, str], expect: Expect, host: str) -> Body:
    length = _content_length(headers, host)
    if length is None:
        framed = "chunked" in headers.get("transfer-encoding", "").lower()
        return Body(0, None, expect.size, framed, host)
    if expect.size is not None and length != expect.size:
        raise Stale(f"the file at {host} has {length} bytes instead of the {expect.size} it had")
    return Body(0, length, None, True, host)


def _part(headers: Mapping[str, str], start: int, stop: int | None, expect: Expect, host: str) -> Body:
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if found is None or found[1] is None:
        raise Corrupt(f"{host} answered 206 without saying which bytes these are")
    first, end = int(found[1]), int(found[2]) + 1
    total = None if found[3] == "*" else int(found[3])
    if expect.size is not None and total is not None and total != expect.size:
        raise Stale(f"the file at {host} has {total} bytes instead of the {expect.size} it had")
    size = expect.size if total is None else total
    wanted = stop if size is None else min(size if stop is None else stop, size)
    if first != start or end <= first or (wanted is not None and end != wanted):
        asked = f"{start} to {'the end' if wanted is None else wanted}"
        raise Corrupt(f"{host} sent the bytes {first} to {end} where {asked} were asked for")
    length = _content_length(headers, host)
    if length is not None and length != end - first:
        raise Corrupt(f"{host} announced {length} bytes for a range of {end - first}")
    return Body(first, end, None, True, host)


def _check_nothing_there(headers: Mapping[str, str], start: int, expect: Expect, host: str) -> None:
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    total = int(found[3]) if found is not None and found[1] is None and found[3] != "*" else None
    if total is not None and expect.size is not None and total != expect.size:
        raise Stale(f"the file at {host} has {total} bytes instead of the {expect.size} it had")
    size = expect.size if total is None else total
    if size is not None and start < size:
        wrong = Stale if total is None else Corrupt
        raise wrong(f"{host} refuses the bytes from {start} of a file of {size}")
    if size is None and start > 0:
        raise Corrupt(f"{host} refuses the bytes from {start} without saying how many there are")


def _check_validators(headers: Mapping[str, str], expect: Expect, host: str) -> None:
    """Compare ETag and Last-Modified; a server that leaves out what it is known by cannot prove anything."""
    if expect.etag is not None and _strong(headers.get("etag")) != _strong(expect.etag):
        raise Stale(f"the file at {host} has another ETag than before")
    if expect.last_modified is not None:
        given = headers.get("last-modified", "").strip()
        if given != expect.last_modified and http_date_s(given) != (http_date_s(expect.last_modified) or -1.0):
            raise Stale(f"the file at {host} was modified since")


def _strong(etag: str | None) -> str | None:
    # A proxy on the way may weaken the tag (`W/`); it still names the same version.
    return None if etag is None else etag.strip().removeprefix("W/")


def _content_length(headers: Mapping[str, str], host: str) -> int | None:
    value = headers.get("content-length")
    if value is None:
        return None
    # The same length twice, joined by a comma, is legal; two different ones are an attack or a broken proxy.
    values = {part.strip() for part in value.split(",")}
    only = values.pop()
    if values or not re.fullmatch(r"\d{1,19}", only):
        raise Corrupt(f"{host} announced a length that is none")
    return int(only)
