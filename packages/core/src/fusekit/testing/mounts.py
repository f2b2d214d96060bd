"""A real mount inside the test's own process: the engine in a thread, the kernel between it and the test.

Outside the layers. pyfuse3 keeps one session a process, so one such mount at a time. What would block without giving
up the interpreter's lock (a page fault in mapped memory) must be done in another process, or both stand still.
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from fusekit.backends.memory import MemoryBackend, Options
from fusekit.fuse.mounts import detach
from fusekit.fuse.session import serve
from fusekit.settings import Settings
from fusekit.testing.volumes import Recorder, open_backend
from fusekit.types import Mount
from fusekit.volume import Volume

T = TypeVar("T")

START_TIMEOUT_S = 60.0

# subprocess starts programs by vfork and holds the interpreter's lock until the child has changed into its directory. If that is
# in the mount, the kernel asks the engine's thread, which needs the lock: both wait for ever, and no timeout of a test ends it.
# After a fork the child does this on its own.
subprocess._USE_VFORK = False  # type: ignore[misc]  # Final in the stubs; a switch in the documentation


@attrs.define(eq=False)
class Mounted:
    """A mount in use: its directory, the volume behind it, and the hooks as they are counted."""

    path: Path
    volume: Volume
    recorder: Recorder
    _token: trio.lowlevel.TrioToken

    def run(self, call: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Return what ``call(*args)`` returns, run beside the mount."""
        return trio.from_thread.run(call, *args, trio_token=self._token)

    def run_sync(self, call: Callable[..., T], *args: Any) -> T:
        """As `run`, for a plain function."""
        return trio.from_thread.run_sync(call, *args, trio_token=self._token)


def memory(mount: Mount) -> MemoryBackend:
    """Return a backend in memory, for `mounted`."""
    return MemoryBackend(Options(), mount)


@contextmanager
def mounted(
    make: Callable[[Mount], object],
    directory: Path,
    settings: Settings | None = None,
    *,
    options: frozenset[str] = frozenset(),
) -> Iterator[Mounted]:
    """Mount the backend that ``make`` returns on a new directory below ``directory``, and take it away at the end."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir(exist_ok=True)
    recorder = Recorder()
    started: queue.SimpleQueue[Mounted | BaseException] = queue.SimpleQueue()
    stop: list[Callable[[], None]] = []

    async def main() -> None:
        stopping = trio.Event()
        token = trio.lowlevel.current_trio_token()
        stop.append(lambda: token.run_sync_soon(stopping.set))
        async with open_backend(make, directory, settings, recorder=recorder) as volume:
            there = Mounted(mountpoint, volume, recorder, token)
            await serve(volume, mountpoint, options=options, ready=lambda: started.put(there), stopping=stopping)

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            started.put(error)

    thread = threading.Thread(target=run, name="mount", daemon=True)
    thread.start()
    try:
        there = started.get(timeout=START_TIMEOUT_S)
        if isinstance(there, BaseException):
            raise there
        os.stat(mountpoint)
        recorder.calls.clear()
        yield there
    finally:
        recorder.before = recorder.after = None
        if stop:
            stop[0]()
        thread.join(START_TIMEOUT_S)
        if os.path.ismount(mountpoint):
            detach(mountpoint, lazy=True)
    if not started.empty() and isinstance(failed := started.get(), BaseException):
        raise failed
