"""Ask a running mount: one request on a connection, one line of JSON each way, progress in between.

Control layer; the other end is `fusekit.control.socket`. Synchronous and small, for commands that must start fast.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from fusekit.control.registry import Endpoint, connect, endpoints
from fusekit.errors import MountError


class NotAnswered(MountError):
    """The mount process is there, but did not answer in time."""


@attrs.frozen
class LiveMount:
    """A mount process that answered: where it listens and what it told about itself."""

    endpoint: Endpoint
    status: dict[str, Any]


def ask(
    one: Endpoint,
    do: str,
    *,
    timeout_s: float | None = 10.0,
    progress: Callable[[dict[str, Any]], None] | None = None,
    **more: Any,
) -> dict[str, Any] | None:
    """Return the answer to ``do``, or None where the process is gone; ``timeout_s`` bounds the whole of it.

    ``more`` are further keys of the request.

    Raises:
        NotAnswered: not in time. MountError: the process refused.
    """
    connection = connect(one)
    if connection is None:
        return None
    with connection:
        try:
            connection.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
        except ConnectionError:  # it ended between our connecting and asking
            return None
        for line in _lines(connection, timeout_s, one):
            message = json.loads(line)
            if "progress" in message:
                if progress is not None:
                    progress(message["progress"])
            elif message.get("ok"):
                result: dict[str, Any] = message["result"]
                return result
            else:
                raise MountError(str(message.get("error")))
    return None


def live_mounts(directory: Path, mountpoint: Path | None = None) -> list[LiveMount]:
    """Return the mounts that answer, of one mount point or all; what crashed runs left is removed on the way."""
    found = []
    for one in endpoints(directory, mountpoint):
        try:
            status = ask(one, "status", timeout_s=5.0)
        except NotAnswered:
            status = {"pid": one.pid, "state": "does not answer"}
        if status is not None:
            found.append(LiveMount(one, status))
    return found


def wait_for_end(pid: int, timeout_s: float | None) -> bool:
    """Wait until the process ``pid`` ended and return whether it did; one that is gone already has."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


def _lines(connection: socket.socket, timeout_s: float | None, one: Endpoint) -> Iterator[bytes]:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pending = b""
    while True:
        connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
        try:
            data = connection.recv(65536)
        except TimeoutError as error:
            raise NotAnswered(f"the mount process {one.pid} did not answer within {timeout_s:g} s") from error
        except ConnectionError:
            data = b""
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from lines
