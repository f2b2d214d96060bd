"""Listings as web servers show them: HTML for people, and the JSON of nginx and Caddy.

Part of the backend ``http``, without I/O. Known are nginx autoindex and fancyindex, Apache mod_autoindex (table, pre and
plain), ``python -m http.server``, ``rclone serve`` and Caddy; of any other page the links that lead into the directory
are its entries. A size or time is taken only from a form that is known to give it exactly: Apache rounds sizes and
tells times in a zone of its own, so of it only names are used.
"""

from __future__ import annotations

import codecs
import email.utils
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any, Final

import attrs

from fusekit.api import Unavailable, names
from fusekit.backends.http_facts import MINUTE_S, Found, date_s, moment_s, number
from fusekit.backends.http_links import Folder, Link

# nginx: "26-Nov-2026 11:25    150000", fancyindex: "150000  2026-Nov-26 11:25" out of two cells. Both in GMT unless told
# otherwise, which the backend finds out with a HEAD. A size without a unit is exact in both.
_NGINX: Final = re.compile(r"\s*(\d{2})-([A-Z][a-z]{2})-(\d{4}) (\d{2}):(\d{2})\s+(-|\d+)\s*")
_FANCY: Final = re.compile(r"\s*(-|\d+)\s+(\d{4})-([A-Z][a-z]{2})-(\d{2}) (\d{2}):(\d{2})\s*")
# rclone: "2026-11-26 11:25:47.487013833 +0000 UTC"; Caddy: "2026-11-26T11:25:47Z".
_STAMP: Final = re.compile(r"(\d{4}-\d{2}-\d{2})[ T](\d{2}:\d{2}:\d{2})(?:\.\d+)? ?(Z|[+-]\d{2}:?\d{2})(?: [A-Za-z]+)?")
_PIECE: Final = 64 << 10  # parsed between two checkpoints: some ten milliseconds
# The parser begins anew at what it could not finish with each piece, so an endless comment would cost more and more.
_UNPARSED_MAX: Final = 1 << 20


@attrs.define
class _Row:
    """One link, and what stands around it up to the next row."""

    link: Link
    after: list[str] = attrs.field(factory=list)
    order: str = ""
    stamp: str = ""

    def found(self) -> Found:
        size, modified_s, step_s = None, None, 1
        if self.stamp and (modified_s := stamp_s(self.stamp)) is not None:
            # Both servers that show times with a zone give the size in bytes as the cell's sort key.
            size = number(self.order)
        else:
            size, modified_s = _by_minute("".join(self.after))
            step_s = MINUTE_S if modified_s is not None else 1
        if self.link.directory:
            return Found(self.link.name, directory=True)  # a HEAD of it tells no time, so a listing should not
        return Found(self.link.name, False, size, modified_s, step_s=step_s)


class _Page(HTMLParser):
    """Collects the rows of a page."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(convert_charrefs=True)
        self._folder = folder
        self._row: _Row | None = None
        self._inside = False
        self._done: dict[str, Found] = {}

    def take(self) -> list[Found]:
        """Return the rows that are complete by now."""
        found, self._done = list(self._done.values()), {}
        return found

    def close(self) -> None:
        super().close()
        self._end_row()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a":
            link = self._folder.child(given.get("href") or "")
            if self._row is not None and link is not None and link == self._row.link:
                self._inside = True  # an icon and the name beside it, both linked
                return
            self._end_row()
            self._row, self._inside = (_Row(link), True) if link is not None else (None, False)
        elif tag in {"tr", "li"}:
            self._end_row()
        elif self._row is not None and tag == "td":
            self._row.after.append(" ")
            self._row.order = self._row.order or given.get("data-order") or ""
        elif self._row is not None and tag == "time":
            self._row.stamp = given.get("datetime") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._inside = False
        elif tag in {"tr", "li", "pre", "table"}:
            self._end_row()

    def handle_data(self, data: str) -> None:
        if self._row is not None and not self._inside:
            self._row.after.append(data)

    def _end_row(self) -> None:
        if self._row is not None:
            found = self._row.found()
            before = self._done.get(found.name)
            if before is None or not before.exact:
                self._done[found.name] = found
        self._row = None


def read_html(content: bytes, folder: Folder) -> Iterator[list[Found]]:
    """Yield the entries of an HTML page, in pieces between which other tasks may run.

    Names come from the links alone, which are ASCII, or else bytes, whatever the page says that it is encoded in.

    Raises:
        Unavailable: it is no page.
    """
    page = _Page(folder)
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for start in range(0, len(content), _PIECE):
        page.feed(decoder.decode(content[start : start + _PIECE]))
        if len(page.rawdata) > _UNPARSED_MAX:
            raise Unavailable("the page is no listing: it has a tag or comment without an end")
        yield page.take()
    page.close()
    yield page.take()


def read_json(content: bytes, folder: Folder) -> Iterator[list[Found]]:
    """Yield the entries of a listing of nginx (``autoindex_format json``) or Caddy.

    Raises:
        Unavailable: it is none.
    """
    try:
        # nginx copies the bytes of names, whatever they are.
        rows: Any = json.loads(content.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"the listing is no JSON: {error}") from error
    if rows is None:
        rows = []  # Caddy's empty directory
    if not isinstance(rows, list):
        raise Unavailable("the JSON is no listing: a list of files was expected")
    for start in range(0, len(rows), 512):
        yield [found for row in rows[start : start + 512] if (found := _from_json(row, folder)) is not None]


def stamp_s(text: str) -> int | None:
    """Return the seconds since 1970 of a time with its zone, as Go's programs print it."""
    found = _STAMP.fullmatch(text.strip())
    if found is None:
        return None
    zone = "+00:00" if found[3] == "Z" else found[3]
    try:
        moment = datetime.fromisoformat(f"{found[1]}T{found[2]}{zone}")
    except ValueError:
        return None
    utc = moment.astimezone(UTC)
    return date_s(email.utils.format_datetime(utc, usegmt=True))


def _by_minute(text: str) -> tuple[int | None, int | None]:
    """Return size and time of a row of nginx or fancyindex; None, None of any other."""
    if (found := _NGINX.fullmatch(text)) is not None:
        day, month, year, hour, minute, size = found.groups()
    elif (found := _FANCY.fullmatch(text)) is not None:
        size, year, month, day, hour, minute = found.groups()
    else:
        return None, None
    return number(size), moment_s(int(year), month, int(day), int(hour), int(minute))


def _from_json(row: Any, folder: Folder) -> Found | None:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or row.get("type", "file") == "other":
        return None
    if isinstance(row.get("url"), str):
        # Caddy: a name that is no UTF-8 has lost its bytes, the link has not.
        link = folder.child(row["url"])
        name = link.name if link is not None else ""
    else:
        name = row["name"].rstrip("/")
        name = "" if name in {".", ".."} else names.to_local(name)
    if not name:
        return None
    if row.get("type") == "directory" or row.get("is_dir") is True:
        return Found(name, directory=True)
    if row.get("is_symlink") is True:
        return Found(name)  # size and time are the link's own
    size, when = row.get("size"), row.get("mtime", row.get("mod_time"))
    size = number(str(size)) if isinstance(size, int) and not isinstance(size, bool) else None
    modified_s = None
    if isinstance(when, str):
        modified_s = date_s(when) if when[:1].isalpha() else stamp_s(when)
    return Found(name, size=size, modified_s=modified_s)
