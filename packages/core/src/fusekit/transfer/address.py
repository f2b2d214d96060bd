"""Where a request goes: host, port and the exact target, kept apart so that secrets in URLs are shown nowhere.

Transfer layer, without I/O. A target (path and query) goes out exactly as it came: signed URLs are signatures over
these bytes, and a path such as ``a%2Fb`` must not be "normalised". What is shown is the host alone, because paths
may be capabilities and queries may be signatures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, urlencode, urljoin, urlsplit

import attrs

from fusekit.errors import ConfigError, Unavailable

Params = Mapping[str, str | int | bool]

_PORTS: Final = {"http": 80, "https": 443}
_ABSOLUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ILLEGAL: Final = re.compile(r"[^!-~]")
_BLANK: Final = re.compile(r"[\x00-\x20\x7f]")


@attrs.frozen
class Address:
    """One URL in parts. ``host`` is lower-case and without brackets, ``target`` is path and query."""

    scheme: str
    host: str
    port: int
    target: str = attrs.field(repr=False)
    authority: str = attrs.field(init=False, eq=False, repr=False)
    """``host:port``, with brackets around an IPv6 address."""

    @authority.default
    def _make_authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Return what must be equal for a request to be signed."""
        return self.scheme, self.host, self.port

    @property
    def path(self) -> str:
        """Return the target without its query."""
        return self.target.partition("?")[0]

    @property
    def server(self) -> str:
        """Return the URL of the server alone."""
        return f"{self.scheme}://{self.authority}"

    @property
    def public(self) -> str:
        """Return the URL without its query, for whoever asked for it; not for logs."""
        return f"{self.server}{self.path}"

    def at(self, url: str, params: Params | None = None) -> Address:
        """Return the address of ``url``, absolute or relative to this one, which is taken as a folder.

        Raises:
            Unavailable: an absolute URL that the service gave is none, or gives up TLS.
        """
        if _ABSOLUTE.match(url):
            found = parse(url)
            if found is None:
                raise Unavailable(f"{self.authority} gave a URL that is none")
            if self.scheme == "https" and found.scheme == "http":
                raise Unavailable(f"{self.authority} gave a URL without TLS; it is not used")
        else:
            found = attrs.evolve(self, target=_legal(f"{self.path.rstrip('/')}/{url.lstrip('/')}"))
        if not params:
            return found
        words = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in params.items()}
        joint = "&" if "?" in found.target else "?"
        return attrs.evolve(found, target=f"{found.target}{joint}{urlencode(words, quote_via=quote, safe='')}")

    def redirected(self, location: str) -> Address | None:
        """Return where a Location header leads from here, None where nobody should go: no URL, or TLS given up."""
        try:
            found = parse(urljoin(f"{self.server}{self.target}", location.strip()))
        except ValueError:
            return None
        if found is None or (self.scheme == "https" and found.scheme == "http"):
            return None
        return found


def parse(url: str) -> Address | None:
    """Return the address of an absolute http or https URL, None where it is none. User names in it are dropped."""
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
        port = parts.port or _PORTS.get(scheme, 0)
    except ValueError:
        return None
    if scheme not in _PORTS or not host or _BLANK.search(host):
        return None
    query = f"?{parts.query}" if parts.query else ""
    return Address(scheme, host, port, _legal(f"{parts.path or '/'}{query}"))


def parse_base(url: str) -> Address:
    """Return the address of a service.

    Raises:
        ConfigError: it is no http or https URL, or has a user name, a query or a fragment.
    """
    found = parse(url)
    if found is None:
        raise ConfigError(f"{url.partition('?')[0][:200]!r} is no address of a service; write https://HOST")
    parts = urlsplit(url)
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(f"the address of {found.authority} must be a host and a path, with nothing else in it")
    return found


def _legal(target: str) -> str:
    """Return ``target`` with what no request line may hold percent-encoded, and everything else untouched."""
    return _ILLEGAL.sub(lambda found: quote(found[0], safe="", errors="surrogateescape"), target)
