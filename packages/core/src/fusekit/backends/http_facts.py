"""What HTTP tells about a file, and the version that follows from it.

Part of the backend ``http``, without I/O. A listing, a HEAD and a GET tell different things about the same content, and
a version must come out the same from all of them; so a server has one *measure*, the finest that all its answers know,
and versions are made by it alone.
"""

from __future__ import annotations

import calendar
import email.utils
import enum
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import attrs

from fusekit.api import Answer, Entry, Expect

_DATE: Final = re.compile(r"[A-Z][a-z]{2}, (\d{2}) ([A-Z][a-z]{2}) (\d{4}) (\d{2}):(\d{2}):(\d{2}) GMT")
MONTHS: Final[Mapping[str, int]] = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), start=1
    )
}
_VERSION: Final = re.compile(r"(?P<measure>[ms]):(?P<at>-?\d+)-(?P<size>\d*)")
MINUTE_S: Final = 60
_DIGITS_MAX: Final = 18
_SECONDS_MAX: Final = 1 << 33


class Measure(enum.Enum):
    """What versions are made of: the ETag, or the time in seconds or minutes with the size."""

    ETAG = "e"
    SECOND = "s"
    MINUTE = "m"

    @property
    def step_s(self) -> int:
        """Return how fine times are that go with it."""
        return MINUTE_S if self is Measure.MINUTE else 1


@attrs.frozen
class Found:
    """One name and what was told about it; what was rounded counts as not told. ``step_s`` is how fine its time is."""

    name: str
    directory: bool = False
    size: int | None = None
    modified_s: int | None = None
    etag: str | None = None
    step_s: int = 1

    @property
    def exact(self) -> bool:
        """Return whether nothing more needs to be asked: the size, and what tells one content from the next."""
        return self.directory or (self.size is not None and (self.etag is not None or self.modified_s is not None))

    @property
    def measure(self) -> Measure:
        """Return the finest measure that this can be told by."""
        if self.etag is not None:
            return Measure.ETAG
        return Measure.SECOND if self.step_s == 1 else Measure.MINUTE

    def entry(self, measure: Measure) -> Entry:
        """Return the directory entry, with its version by ``measure``."""
        mtime_ns = None
        if self.modified_s is not None:
            mtime_ns = self.modified_s // measure.step_s * measure.step_s * 1_000_000_000
        if self.directory:
            return Entry.directory(self.name, mtime_ns=mtime_ns)
        return Entry.file(self.name, size=self.size, version=self._version(measure), mtime_ns=mtime_ns)

    def _version(self, measure: Measure) -> str | None:
        if self.etag is not None and (measure is Measure.ETAG or self.modified_s is None):
            return f"{Measure.ETAG.value}:{self.etag}"
        if self.modified_s is None:
            return None
        coarse = Measure.SECOND if measure is Measure.ETAG else measure
        at = self.modified_s // coarse.step_s * coarse.step_s
        return f"{coarse.value}:{at}-{'' if self.size is None else self.size}"


def told(name: str, answer: Answer) -> Found:
    """Return what the head of ``answer`` tells about the file ``name``."""
    encoded = answer.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}
    return Found(
        name,
        size=None if encoded else number(answer.headers.get("content-length", "")),
        modified_s=date_s(answer.headers.get("last-modified", "")),
        etag=strong(answer.headers.get("etag", "")),
    )


def expected(entry: Entry, *, times: bool = True) -> tuple[Expect, dict[str, str]]:
    """Return what the answer to a GET must show to be ``entry.version``, and the headers that make the server look too.

    A time in minutes is no header to compare with, so the server is asked to refuse what was modified after the minute.
    ``times`` False: answers are known to come without Last-Modified.
    """
    version = entry.version or ""
    if version.startswith("e:"):
        return Expect(size=entry.size, etag=version[2:]), {}
    found = _VERSION.fullmatch(version)
    if found is None:
        return Expect(size=entry.size), {}
    at, size = int(found["at"]), int(found["size"]) if found["size"] else entry.size
    if found["measure"] == Measure.SECOND.value:
        return Expect(size=size, last_modified=email.utils.formatdate(at, usegmt=True) if times else None), {}
    return Expect(size=size), {"If-Unmodified-Since": email.utils.formatdate(at + MINUTE_S - 1, usegmt=True)}


def shifted(known: Entry, found: Entry) -> bool:
    """Return whether two versions in minutes differ as the same time in two zones does: the listing's is not GMT."""
    one, other = _VERSION.fullmatch(known.version or ""), _VERSION.fullmatch(found.version or "")
    if one is None or other is None or one["measure"] != other["measure"] or one["size"] != other["size"]:
        return False
    apart_s = abs(int(one["at"]) - int(other["at"]))
    return 0 < apart_s <= 14 * 3600 and apart_s % (15 * MINUTE_S) == 0


def strong(etag: str) -> str | None:
    """Return an ETag without the mark of a weak one: Apache gives it to what is a second old, and takes it off then."""
    return etag.strip().removeprefix("W/") or None


@lru_cache(maxsize=4096)  # a listing names the same few times over and over, or a hundred thousand once each
def date_s(value: str) -> int | None:
    """Return the seconds since 1970 that an HTTP date names, None where it is none."""
    found = _DATE.fullmatch(value.strip())
    if found is not None:
        day, year, hour, minute, second = (int(found[group]) for group in (1, 3, 4, 5, 6))
        return moment_s(year, found[2], day, hour, minute, second)
    try:
        return _sane(int(email.utils.parsedate_to_datetime(value).timestamp()))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def moment_s(year: int, month: str, day: int, hour: int, minute: int, second: int = 0) -> int | None:
    """Return the seconds since 1970 of a time in GMT, ``month`` as three letters; None where there is no such time."""
    try:
        return _sane(calendar.timegm((year, MONTHS[month], day, hour, minute, second)))
    except (KeyError, ValueError):
        return None


def number(text: str) -> int | None:
    """Return the size that ``text`` says, None where it says none; a file of 10^18 bytes there is not."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX else None


def _sane(seconds: int) -> int | None:
    # What goes to the kernel is nanoseconds in 64 bits, which end in 2262.
    return seconds if abs(seconds) < _SECONDS_MAX else None
