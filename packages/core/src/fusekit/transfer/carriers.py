"""Which way a request goes: over connections of our own, or by the HTTP library where those do not do.

Transfer layer. The library serves hosts behind a proxy, hosts that speak HTTP/2 only, and hosts whose name has letters of
other scripts, which it knows how to spell. Each such host is named in the log once, since it costs more CPU.
"""

from __future__ import annotations

import logging
import ssl
import urllib.request
from typing import TYPE_CHECKING

from fusekit.errors import Unreachable
from fusekit.transfer.address import Address
from fusekit.transfer.exchange import Ask, Deadlines, T, Traffic, Use
from fusekit.transfer.pool import Origin, OtherProtocol, Pool

if TYPE_CHECKING:
    from fusekit.transfer.library import Library

logger = logging.getLogger(__name__)


class Carriers:
    """All carriers of one client; closed by it."""

    def __init__(self, tls: ssl.SSLContext, deadlines: Deadlines, traffic: Traffic, agent: str) -> None:
        self._tls = tls
        self._deadlines = deadlines
        self._traffic = traffic
        self._agent = agent
        self.pool = Pool(tls, deadlines, traffic, agent)
        # Whether any proxy is set at all costs next to nothing to know; for which hosts is the library's to say.
        proxies = urllib.request.getproxies()
        self._proxies = any(name in proxies for name in ("http", "https", "all"))
        # One for each version of HTTP, by whether it is 2: what offers both to a server would be given the newer.
        self._libraries: dict[bool, Library] = {}
        self._by_library: dict[Origin, Library] = {}

    async def aclose(self) -> None:
        """Close all connections."""
        self.pool.close()
        for library in self._libraries.values():
            await library.aclose()

    async def exchange(self, ask: Ask, use: Use[T]) -> T:
        """Make the request and return what ``use`` makes of the answer; trouble comes out as one of our errors."""
        origin = ask.address.origin
        if origin not in self._by_library:
            self._choose(ask.address)
        if origin not in self._by_library:
            try:
                return await self.pool.exchange(ask, use)
            except OtherProtocol as refused:
                from fusekit.transfer.library import speaks_http2

                if not speaks_http2():
                    raise Unreachable(
                        f"{ask.address.authority} does not speak HTTP/1.1; for HTTP/2: pip install 'fusekit[http2]'"
                    ) from refused
                self._leave(ask.address, "it speaks HTTP/2 only", http2=True)
        return await self._by_library[origin].exchange(ask, use)

    def _choose(self, address: Address) -> None:
        if not address.host.isascii():
            self._leave(address, "its name has letters of other scripts")
        elif self._proxies and self._library().has_proxy_for(address):
            self._leave(address, "a proxy is set for it")

    def _leave(self, address: Address, why: str, *, http2: bool = False) -> None:
        """Let the library serve a host from now on."""
        if address.origin not in self._by_library:
            logger.info("%s is served by the HTTP library, which takes more CPU: %s", address.authority, why)
            self._by_library[address.origin] = self._library(http2=http2)

    def _library(self, *, http2: bool = False) -> Library:
        if http2 not in self._libraries:
            # Imported late: it takes as long as all the rest, and most mounts never need it.
            from fusekit.transfer.library import Library

            self._libraries[http2] = Library(self._tls, self._deadlines, self._traffic, self._agent, http2=http2)
        return self._libraries[http2]
