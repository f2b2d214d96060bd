"""The connections of one client: opened when there is work, kept open between requests, never used when in doubt.

Transfer layer; `fusekit.transfer.wire` moves the bytes. A connection belongs to one request at a time, and goes back
only after its answer was read to the end, with nothing behind it. However else a request ends (an error, a deadline,
somebody cancels), its connection is closed: what is still on its way would be the answer to the next question.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict
from typing import Final

import trio

from fusekit.errors import BackendError, TimedOut, Unavailable, Unreachable
from fusekit.transfer import trouble, wire
from fusekit.transfer.address import Address
from fusekit.transfer.exchange import Ask, Deadlines, T, Traffic, Use
from fusekit.transfer.wire import Broken, Connection, Ended, Garbled

# How many connections wait for the next request, of all origins together: a mount talks to its service and to one or
# two storage hosts, but signed URLs may name a host for each file.
IDLE_MAX: Final = 32
# Shorter than what load balancers allow (60 s, some 30); the look before use finds those that were closed earlier.
IDLE_S: Final = 30.0

Origin = tuple[str, str, int]


class OtherProtocol(Exception):
    """The server does not speak HTTP/1.1, which it said in the handshake."""


class Pool:
    """Carries requests over connections of its own. Closed by whoever made it; requests under way end by themselves."""

    def __init__(self, tls: ssl.SSLContext, deadlines: Deadlines, traffic: Traffic, agent: str) -> None:
        self._tls = tls
        self._deadlines = deadlines
        self._traffic = traffic
        self._agent = agent
        self._buffers: list[memoryview] = []
        # By origin, longest unused first; of one origin the last one used is at the end.
        self._idle: OrderedDict[Origin, list[Connection]] = OrderedDict()
        self._closed = False

    @property
    def idle(self) -> int:
        """Return how many connections wait for a request."""
        return sum(len(waiting) for waiting in self._idle.values())

    def close(self) -> None:
        """Close what waits; what is in use is closed when its request ends."""
        self._closed = True
        for waiting in self._idle.values():
            for connection in waiting:
                connection.close()
        self._idle.clear()
        self._buffers.clear()

    async def exchange(self, ask: Ask, use: Use[T]) -> T:
        """Make the request and return what ``use`` makes of the answer.

        A connection that the server closed while it waited, and that gave no byte of an answer, is tried again with
        a fresh one, once, where the request cannot have acted.

        Raises:
            Unreachable, Unavailable, TimedOut: no connection, or it was lost. OtherProtocol: HTTP/1.1 is refused.
        """
        waiting = self._take(ask.address.origin)
        if waiting is not None:
            try:
                return await self._on(waiting, ask, use)
            except _Stale:
                pass
        return await self._on(await self._connect(ask.address), ask, use)

    async def _on(self, connection: Connection, ask: Ask, use: Use[T]) -> T:
        where = ask.address.authority
        answered = False
        try:
            with trio.CancelScope() as scope:
                try:
                    await connection.ask(ask, self._agent, scope)
                except Broken as error:
                    # Closed in an orderly way, that is: a reset in the middle of a request is trouble to be told.
                    stale = isinstance(error, Ended) and connection.reused and not connection.heard
                    if stale and _cannot_have_acted(ask, connection):
                        raise _Stale from None
                    raise _translated(error, ask.address) from error.__cause__
                answered = True
                try:
                    result = await use(connection)
                except Broken as error:
                    raise _translated(error, ask.address) from error.__cause__
                await connection.finish()
                return result
        finally:
            self._traffic.received_bytes += connection.received
            self._traffic.sent_bytes += connection.sent
            self._give(ask.address.origin, connection)
        raise TimedOut(f"{where} stopped answering" + (" in mid-answer" if answered else ""))

    async def _connect(self, address: Address) -> Connection:
        where = address.authority
        tls = self._tls if address.scheme == "https" else None
        with trio.move_on_after(self._deadlines.connect):
            try:
                sock = await wire.connect(address.host, address.port, tls)
            except (OSError, ValueError) as error:
                if trouble.no_common_protocol(error):
                    raise OtherProtocol from error
                kind = Unreachable if trouble.unreachable(error) else Unavailable
                raise kind(trouble.describe(error, where, address.host, connected=False)) from error
            return Connection(sock, self._deadlines, self._buffers)
        raise TimedOut(f"cannot connect to {where}: no answer")

    def _take(self, origin: Origin) -> Connection | None:
        """Return a connection that waited and is as it was left, the last one used first; close the others met."""
        waiting = self._idle.get(origin, [])
        oldest = trio.current_time() - IDLE_S
        found = None
        while waiting and found is None:
            connection = waiting.pop()
            if connection.idle_since >= oldest and connection.quiet:
                found = connection
                found.reused = True
            else:
                connection.close()
        if not waiting:
            self._idle.pop(origin, None)
        return found

    def _give(self, origin: Origin, connection: Connection) -> None:
        connection.give_back()
        if self._closed or not connection.reusable:
            connection.close()
            return
        connection.idle_since = trio.current_time()
        self._idle.setdefault(origin, []).append(connection)
        self._idle.move_to_end(origin)
        oldest = connection.idle_since - IDLE_S
        while (first := next(iter(self._idle.values()))) and (self.idle > IDLE_MAX or first[0].idle_since < oldest):
            first.pop(0).close()
            if not first:
                self._idle.popitem(last=False)


class _Stale(Exception):
    """The server closed the connection before it heard the request."""


def _cannot_have_acted(ask: Ask, connection: Connection) -> bool:
    """Return whether it does no harm to ask again: reading only, or a body that the server got nothing of."""
    return ask.method in {"GET", "HEAD"} or (len(ask.content) > 0 and connection.sent == 0)


def _translated(error: Broken, address: Address) -> BackendError:
    where = address.authority
    if isinstance(error, Ended):
        return Unavailable(f"{where} ended the connection in mid-answer")
    if isinstance(error, Garbled):
        return Unavailable(f"{where} sent what is not HTTP")
    return Unavailable(trouble.describe(error, where, address.host, connected=True))
