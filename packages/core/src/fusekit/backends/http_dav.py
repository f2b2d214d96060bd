"""WebDAV listings: the answer to a PROPFIND.

Part of the backend ``http``, without I/O. The parser is expat with document types refused: an answer has no use for
entities, and entities are how a small answer becomes a large one.
Source: RFC 4918, sections 9.1 and 14.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit
from xml.parsers import expat

import attrs

from fusekit.api import Unavailable, names
from fusekit.backends.http_facts import Found, date_s, number, strong
from fusekit.backends.http_links import Folder, segments

QUERY: Final = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop>'
    b"<resourcetype/><getcontentlength/><getlastmodified/><getetag/></prop></propfind>"
)
_SPACE: Final = "DAV: "
_PIECE: Final = 64 << 10
_TEXTS: Final = frozenset({"href", "status", "getcontentlength", "getlastmodified", "getetag"})


@attrs.define
class Resource:
    """One resource of an answer, by the path in its URL."""

    path: str = ""
    collection: bool = False
    size: int | None = None
    modified_s: int | None = None
    etag: str | None = None

    def found(self, name: str) -> Found:
        """Return it as an entry called ``name``."""
        if self.collection:
            return Found(name, directory=True, modified_s=self.modified_s)
        return Found(name, False, self.size, self.modified_s, self.etag)


class _Answer:
    """Collects the resources of a multistatus answer; properties count only where the server says that it has them."""

    def __init__(self) -> None:
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.EntityDeclHandler = self._refuse
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text_comes
        self._done: list[Resource] = []
        self._now = Resource()
        self._properties: dict[str, str] = {}
        self._status = ""
        self._text: list[str] | None = None
        self._in_propstat = False
        self.multistatus = False

    def feed(self, data: bytes, *, last: bool) -> list[Resource]:
        """Return the resources that are complete by now."""
        self._parser.Parse(data, last)
        found, self._done = self._done, []
        return found

    def _refuse(self, *_: object) -> None:
        raise Unavailable("the server's listing declares a document type; that is no WebDAV, and not read")

    def _start(self, tag: str, _: dict[str, str]) -> None:
        name = tag.removeprefix(_SPACE)
        if name == tag:
            return
        if name == "multistatus":
            self.multistatus = True
        elif name == "response":
            self._now = Resource()
        elif name == "propstat":
            self._properties, self._status, self._in_propstat = {}, "", True
        elif name == "collection":
            self._properties["collection"] = ""
        elif name in _TEXTS:
            self._text = []

    def _end(self, tag: str) -> None:
        name = tag.removeprefix(_SPACE)
        if name == tag:
            return
        if name in _TEXTS and self._text is not None:
            self._keep(name, "".join(self._text).strip())
            self._text = None
        elif name == "propstat":
            self._in_propstat = False
            if " 200" in self._status or not self._status:
                self._apply()
        elif name == "response" and self._now.path:
            self._done.append(self._now)

    def _keep(self, name: str, text: str) -> None:
        if name == "href":
            if not self._in_propstat and not self._now.path:
                self._now.path = _path(text)
        elif name == "status":
            if self._in_propstat:
                self._status = text
        else:
            self._properties[name] = text

    def _apply(self) -> None:
        given, now = self._properties, self._now
        now.collection = now.collection or "collection" in given
        if "getcontentlength" in given:
            now.size = number(given["getcontentlength"])
        if "getlastmodified" in given:
            now.modified_s = date_s(given["getlastmodified"])
        if "getetag" in given:
            now.etag = strong(given["getetag"])

    def _text_comes(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)


def read_resources(content: bytes) -> Iterator[list[Resource]]:
    """Yield the resources of an answer, in pieces between which other tasks may run.

    Raises:
        Unavailable: it is no multistatus answer, or ends in the middle.
    """
    answer = _Answer()
    try:
        for start in range(0, max(1, len(content)), _PIECE):
            yield answer.feed(content[start : start + _PIECE], last=start + _PIECE >= len(content))
    except expat.ExpatError as error:
        raise Unavailable(f"the server's WebDAV listing is no XML: {error}") from error
    if not answer.multistatus:
        raise Unavailable("the server's answer is no WebDAV listing")


def read_listing(content: bytes, folder: Folder) -> Iterator[list[Found]]:
    """Yield the entries directly in ``folder``.

    Behind a proxy the server may know its folders by other paths than we do. Then the resource that all others lie
    directly in is the folder.
    """
    strange: list[Resource] = []
    known = False
    own = segments(urlsplit(folder.url).path)
    for resources in read_resources(content):
        found: list[Found] = []
        for resource in resources:
            link = folder.below(resource.path)
            if link is not None:
                known = True
                found.append(resource.found(link.name))
            elif segments(resource.path) == own:
                known = True
            else:
                strange.append(resource)
        yield found
    if not known and strange:
        yield _rebased(strange)


def read_one(content: bytes, name: str) -> Found:
    """Return the one resource of an answer of depth 0 as ``name``.

    Raises:
        Unavailable: there is none in it.
    """
    for resources in read_resources(content):
        for resource in resources:
            return resource.found(name)
    raise Unavailable("the server's WebDAV answer describes nothing")


def _rebased(resources: list[Resource]) -> list[Found]:
    paths = [segments(resource.path) for resource in resources]
    top = min(paths, key=len)
    return [
        resource.found(names.to_local(path[-1]))
        for resource, path in zip(resources, paths, strict=True)
        if len(path) == len(top) + 1 and path[:-1] == top
    ]


def _path(href: str) -> str:
    if href.startswith("/") and not href.startswith("//") and "?" not in href and "#" not in href:
        return href
    try:
        return urlsplit(href).path or "/"
    except ValueError:
        return ""
