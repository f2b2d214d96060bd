"""Names and addresses: from a link in a listing to a file name, and from a file's address to its URL.

Part of the backend ``http``, without I/O. A path segment is bytes, percent-encoded; a file name is the same bytes, with
those that no name can have (``%2F``) escaped reversibly by `fusekit.api.names`. So each name leads back to its URL
whatever encoding the server thinks in.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

import attrs

from fusekit.api import ConfigError, names

# A link that means what it says: one segment, perhaps with a slash behind it.
_PLAIN = re.compile(r"(?!\.{1,2}/?\Z)[!$&'()*+,\-.0-9;=@A-Z_a-z~%]+/?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What may stand in a path as it is. "%" is among them: an address from a browser is encoded already.
_PATH = "/%:@!$&'()*+,;=~"


def base_url(text: str) -> str:
    """Return the URL of the folder to mount: ``https://host/path/``, from that or from ``//host/path``.

    Blanks and letters of the path are encoded; what is encoded stays.

    Raises:
        ValueError: it is none.
    """
    text = text.strip()
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme.lower() not in {"http", "https", ""} or not host or _CONTROL.search(text) or " " in parts.netloc:
        raise ValueError(f"{text.partition('?')[0][:200]!r} is no URL of a folder; write https://HOST/PATH/")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL has a user name or password in it, which every user can see; use the environment")
    if parts.query or parts.fragment:
        raise ValueError("the URL of a folder has no ? and no # in it; write them as %3F and %23")
    path = quote(names.encode(parts.path.rstrip("/")), safe=_PATH)
    return f"{parts.scheme.lower()}{':' if parts.scheme else ''}//{parts.netloc.lower()}{path}/"


def with_scheme(url: str, scheme: str) -> str:
    """Return ``url`` with ``scheme`` where it has none of its own.

    Raises:
        ConfigError: there is none at all.
    """
    if not url:
        raise ConfigError(f"{scheme} needs the URL of a folder: write {scheme}://HOST/PATH/")
    return f"{scheme}:{url}" if url.startswith("//") else url


def url_of(ref: str, *, directory: bool = False) -> str:
    """Return the URL below the mounted one of the entry with address ``ref``, as core makes addresses."""
    encoded = "/".join(quote(names.encode(names.to_remote(part)), safe="") for part in ref.split("/") if part)
    return f"{encoded}/" if directory and encoded else encoded


def segments(path: str) -> tuple[str, ...]:
    """Return the decoded segments of a URL's path, as file names before the escape."""
    return tuple(names.decode(unquote_to_bytes(names.encode(part))) for part in path.split("/") if part)


@attrs.frozen
class Link:
    """One name in a directory, as it was linked."""

    name: str
    directory: bool


@attrs.frozen
class Folder:
    """The place of a listing: which links lead to something directly in it."""

    url: str
    _origin: tuple[str, str] = attrs.field(init=False)
    _path: tuple[str, ...] = attrs.field(init=False)
    _written: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        parts = urlsplit(self.url)
        object.__setattr__(self, "_written", parts.path)
        object.__setattr__(self, "_origin", (parts.scheme, parts.netloc))
        object.__setattr__(self, "_path", segments(parts.path))

    def child(self, href: str) -> Link | None:
        """Return what ``href`` of a page at this place names, None for all that is not directly in it.

        Links with a query sort the listing or do something; those of other hosts, of the folder itself and of what is
        above or deeper are not its entries.
        """
        href = href.strip()
        if _PLAIN.fullmatch(href):
            return self.below(self._written + href)  # nearly all of them, at a fraction of the cost
        if not href or href[0] in "?#":
            return None
        try:
            parts = urlsplit(urljoin(self.url, href))
        except ValueError:
            return None
        if (parts.scheme, parts.netloc) != self._origin or parts.query:
            return None
        return self.below(parts.path)

    def below(self, path: str) -> Link | None:
        """Return the name directly in this place that the URL path ``path`` leads to."""
        if path.startswith(self._written) and _PLAIN.fullmatch(path, len(self._written)):
            last = path[len(self._written) :].rstrip("/")
            name = names.decode(unquote_to_bytes(last)) if "%" in last else last
            return None if name in {".", ".."} else Link(names.to_local(name), path.endswith("/"))
        found = segments(path)
        if len(found) != len(self._path) + 1 or found[:-1] != self._path or found[-1] in {".", ".."}:
            return None
        return Link(names.to_local(found[-1]), path.endswith("/"))

    def is_at(self, path: str) -> bool:
        """Return whether the URL path ``path`` is that of this place itself."""
        return segments(path)[-1:] == self._path[-1:]
