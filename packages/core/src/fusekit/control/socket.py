"""The control socket of a mount: status, info and the request to end, as lines of JSON.

Control layer; runs in the mount process beside the FUSE session. Only the user who mounted can connect: the socket
is 0600 in a 0700 directory. A request is ``{"do": "status"}``, with more keys for some; the answer
``{"ok": true, "result": …}`` or ``{"ok": false, "error": "…"}``, and while something drains ``{"progress": …}`` before it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from fusekit.control.registry import endpoint, short_path
from fusekit.errors import FusekitError

logger = logging.getLogger(__name__)

REQUEST_BYTES_MAX: Final = 64 << 10
PROGRESS_INTERVAL_S: Final = 0.5

# How long the answers to those who wait for the end may hold up the end itself.
GOODBYE_TIMEOUT_S: Final = 2.0


@attrs.define(eq=False)
class Control:
    """What a mount answers on its socket.

    ``stop`` is called once somebody asks for the end. ``actions`` are other things to do, by name; each gets the request.
    """

    status: Callable[[], Awaitable[dict[str, Any]]]
    info: Callable[[], Awaitable[dict[str, Any]]]
    stop: Callable[[], None]
    actions: Mapping[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = attrs.field(factory=dict)
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    _result: dict[str, Any] = attrs.field(factory=dict, init=False)
    _waiting: int = attrs.field(default=0, init=False)
    _answered: trio.Event = attrs.field(factory=trio.Event, init=False)

    @asynccontextmanager
    async def listening(self, directory: Path, mountpoint: Path) -> AsyncIterator[None]:
        """Answer on the socket of ``mountpoint`` in ``directory`` as long as the block runs, and remove it then."""
        listener, path = _listen(directory, mountpoint)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, self._serve, [listener])
                yield
                nursery.cancel_scope.cancel()
        finally:
            path.unlink(missing_ok=True)

    async def finish(self, result: dict[str, Any]) -> None:
        """Tell all who asked for the end how it went; returns when they were told."""
        self._result = result
        self._ended.set()
        with trio.move_on_after(GOODBYE_TIMEOUT_S):
            while self._waiting:
                self._answered = trio.Event()
                await self._answered.wait()

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                line = await _line(stream)
                if line is not None:
                    await self._answer(stream, line)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            logger.debug("a client of the control socket went away")

    async def _answer(self, stream: trio.SocketStream, line: bytes) -> None:
        try:
            request = json.loads(line)
            do = request.get("do") if isinstance(request, dict) else None
        except ValueError:
            do = None
        try:
            if do == "status":
                answer: dict[str, Any] = {"ok": True, "result": await self.status()}
            elif do == "info":
                answer = {"ok": True, "result": await self.info()}
            elif do == "unmount":
                await self._end(stream)
                return
            elif isinstance(do, str) and do in self.actions:
                answer = {"ok": True, "result": await self._act(stream, self.actions[do], request)}
            else:
                answer = {"ok": False, "error": 'a request is one line such as {"do": "status"}'}
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except FusekitError as error:
            answer = {"ok": False, "error": str(error)}
        except Exception as error:  # who asks must not be able to end the mount
            logger.exception("the control socket cannot answer %r", do)
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        await _send(stream, answer)

    async def _act(
        self, stream: trio.SocketStream, action: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
        request: dict[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        """Return what ``action`` does, and report while it takes long; it ends with who asked for it."""
        result: dict[str, Any] = {}
        failed: BaseException | None = None

        async def act() -> None:
            nonlocal result, failed
            try:
                result = await action(request)
            except Exception as error:  # noqa: BLE001 - raised below; a nursery would put it into a group
                failed = error
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            while True:
                await trio.sleep(PROGRESS_INTERVAL_S)
                await _send(stream, {"progress": await self.status()})
        if failed is not None:
            raise failed
        return result

    async def _end(self, stream: trio.SocketStream) -> None:
        """Ask for the end and report until it came; `finish` waits for the last line of this."""
        self.stop()
        self._waiting += 1
        try:
            await _send(stream, {"progress": await self.status()})
            logger.info("asked to unmount")
            while not self._ended.is_set():
                await _send(stream, {"progress": await self.status()})
                with trio.move_on_after(PROGRESS_INTERVAL_S):
                    await self._ended.wait()
            await _send(stream, {"ok": True, "result": self._result})
        finally:
            self._waiting -= 1
            self._answered.set()


def _listen(directory: Path, mountpoint: Path) -> tuple[trio.SocketListener, Path]:
    final = endpoint(directory, mountpoint, os.getpid())
    early = f"{final.name}.new"
    (directory / early).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with short_path(directory, early) as path:
        listener.bind(path)
    (directory / early).chmod(0o600)
    listener.listen(16)
    # Renamed when it listens: a client takes a socket that refuses for one that a crash left, and removes it.
    (directory / early).rename(final.path)
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener)), final.path


async def _line(stream: trio.SocketStream) -> bytes | None:
    received = bytearray()
    while len(received) <= REQUEST_BYTES_MAX:
        data = await stream.receive_some()
        if not data:
            return None
        received += data
        if b"\n" in data:
            return bytes(received.partition(b"\n")[0])
    return None


async def _send(stream: trio.SocketStream, message: dict[str, Any]) -> None:
    await stream.send_all(json.dumps(message, default=str).encode() + b"\n")
