"""A server on loopback that answers exactly the bytes a test wants, and the answers to give it.

Outside the layers, for tests of HTTP clients on trio: where an emulator speaks a protocol well, this one speaks it
as badly as it is told to.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import attrs
import trio


@attrs.frozen
class Request:
    """What a client sent."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Reply = bytes | Callable[[Request, trio.abc.Stream], Awaitable[None]]


@attrs.define(eq=False)
class Server:
    """Answers request after request from ``replies``; the last one again and again. Closes where a reply says so."""

    host: str = "127.0.0.1"
    port: int = 0
    replies: list[Reply] = attrs.field(factory=list)
    requests: list[Request] = attrs.field(factory=list)
    connections: int = 0
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    def reply(self, *replies: Reply) -> None:
        self.replies[:] = replies

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        received = b""
        try:
            while True:
                while b"\r\n\r\n" not in received:
                    more = await stream.receive_some()
                    if not more:
                        return
                    received += more
                head, _, received = received.partition(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                method, target, _version = first.split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                while len(received) < int(headers.get("content-length", 0)):
                    received += await stream.receive_some()
                length = int(headers.get("content-length", 0))
                request = Request(method, target, headers, received[:length])
                received = received[length:]
                self.requests.append(request)
                reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
                if isinstance(reply, bytes):
                    await stream.send_all(reply)
                    if b"connection: close" in reply.lower():
                        return
                else:
                    await reply(request, stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def running(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[Server]:
    """Run a server on a free port of loopback, with TLS where a context is given."""
    server = Server(host, scheme="https" if tls else "http")
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=host)
        server.port = listeners[0].socket.getsockname()[1]

        async def handle(stream: trio.SocketStream) -> None:
            await server.serve(trio.SSLStream(stream, tls, server_side=True, https_compatible=True) if tls else stream)

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield server
        nursery.cancel_scope.cancel()


def answer(
    body: bytes = b"",
    status: str = "200 OK",
    *,
    length: int | None = None,
    close: bool = False,
    headers: Mapping[str, str] | None = None,
    **more: str,
) -> bytes:
    """Return a raw answer; ``length`` announces another number of bytes, -1 none at all."""
    lines = [f"HTTP/1.1 {status}"]
    if length != -1:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in {**(headers or {}), **more}.items()]
    if close:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def part(body: bytes, first: int, total: int | str, **headers: str) -> bytes:
    """Return a raw 206 with ``body`` as the bytes from ``first``."""
    headers["Content_Range"] = f"bytes {first}-{first + len(body) - 1}/{total}"
    return answer(body, "206 Partial Content", headers=headers)


@attrs.define
class Kept:
    """A sink that keeps what it got, by offset."""

    blocks: list[tuple[int | None, bytes]] = attrs.field(factory=list)

    async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self.blocks.append((at, bytes(data)))

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.blocks)
