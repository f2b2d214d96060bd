"""The signed URLs that listings and stats brought along, until they expire: addresses only, never content.

Part of the backend. A URL belongs to the version of the file that it was given out with. Bounded: the one that was
not used for longest goes first, and reading that file then costs one more request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import attrs
import trio

# A URL with its headers is about a kilobyte: some ten megabytes for a mount.
LINKS_MAX: Final = 10_000
# Not used in its last seconds: a transfer that begins must not be refused under way.
MARGIN_S: Final = 20.0


@attrs.define(eq=False)
class Link:
    """One signed URL. ``ends`` is on trio's clock; ``etag`` is what its first answer had.

    ``confirmed`` is a Last-Modified that was found to be of this version although it is later than the file's time.
    """

    url: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)
    ends: float
    version: str | None = None
    etag: str | None = None
    confirmed: str | None = None


class Links:
    """The signed URLs of plain files by path."""

    def __init__(self, links_max: int = LINKS_MAX) -> None:
        self._links_max = links_max
        self._by_path: OrderedDict[str, Link] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_path)

    def keep(self, path: str, version: str | None, link: Link | None) -> None:
        """Remember ``link`` for this version of the file, None that there is none.

        What the answers of an older URL told about the same version goes on to hold.
        """
        old = self._by_path.pop(path, None)
        if link is None:
            return
        link.version = version
        if old is not None and old.version == version:
            link.etag, link.confirmed = link.etag or old.etag, link.confirmed or old.confirmed
        self._by_path[path] = link
        while len(self._by_path) > self._links_max:
            self._by_path.popitem(last=False)

    def find(self, path: str, version: str | None) -> Link | None:
        """Return a URL that is good for this version of the file now."""
        link = self._by_path.get(path)
        if link is None or link.version != version or link.ends - MARGIN_S <= trio.current_time():
            return None
        self._by_path.move_to_end(path)
        return link

    def drop(self, path: str, link: Link | None = None) -> None:
        """Forget the URL of ``path``; with ``link`` only if it is still that one."""
        if link is None or self._by_path.get(path) is link:
            self._by_path.pop(path, None)

    def drop_below(self, path: str) -> None:
        """Forget the URLs of all files below the folder ``path``."""
        for known in [known for known in self._by_path if known.startswith(f"{path}/")]:
            del self._by_path[known]
