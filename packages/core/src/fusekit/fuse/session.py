"""A session: a volume on a mount point, from the first request to the last file sent.

Fuse layer. pyfuse3 keeps one session a process. A plain ``umount`` ends the loop without waiting for us, so what is
dirty then is drained afterwards, with the journal's lock still held.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from fusekit.errors import MountError
from fusekit.fuse.adapter import Adapter
from fusekit.fuse.kernel import Notifier
from fusekit.fuse.mounts import detach, mounted_at
from fusekit.volume import Volume

logger = logging.getLogger(__name__)

# Handlers at once. The kernel keeps at most `max_background` reads of its own in flight, but each program may wait
# in one more; with pyfuse3's default of 99 stuck ones would starve all others.
TASKS_MAX: Final = 1024

_serving = threading.Lock()


async def serve(
    volume: Volume,
    mountpoint: Path,
    *,
    options: frozenset[str] = frozenset(),
    ready: Callable[[], None] = lambda: None,
    stopping: trio.Event,
) -> int:
    """Serve ``volume`` on ``mountpoint`` until it is unmounted or ``stopping`` is set; return the files left unsent.

    ``ready`` is called once programs can use the directory.

    Raises:
        MountError: the kernel or the helper refuses.
    """
    if _serving.locked():
        raise MountError("this process serves a mount already; pyfuse3 keeps one a process")
    with _serving:
        return await _serve(volume, mountpoint, options, ready, stopping)


async def _serve(
    volume: Volume, mountpoint: Path, options: frozenset[str], ready: Callable[[], None], stopping: trio.Event
) -> int:
    filesystem = volume.filesystem
    wanted = {f"fsname={_escaped(volume.source)}", "subtype=fusekit", "nosuid", "nodev", *options}
    if filesystem.tree.one_view:
        wanted.add("default_permissions")
    try:
        pyfuse3.init(Adapter(filesystem), str(mountpoint), wanted)
    except RuntimeError as error:
        raise MountError(
            f"cannot mount on {mountpoint}: the kernel or fusermount3 refused; see `fusekit doctor`"
        ) from error
    unmounted = False
    try:
        with Notifier() as notifier:
            volume.mount.invalidate = notifier.changed
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop, volume, mountpoint, stopping)
                ready()
                await pyfuse3.main(max_tasks=TASKS_MAX)
                unmounted = True
                nursery.cancel_scope.cancel()
    finally:
        volume.mount.invalidate = None
        pyfuse3.close(unmount=not unmounted)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + volume.settings.drain_timeout_s):
            await filesystem.drain()
    return len(await volume.journal.rows())


async def _stop(volume: Volume, mountpoint: Path, stopping: trio.Event) -> None:
    """Wait for the word, send what is dirty, and take the mount away; a busy one is detached."""
    await stopping.wait()
    with trio.move_on_after(volume.settings.drain_timeout_s):
        await volume.filesystem.send_all()
    if mounted_at(mountpoint) is not None:  # else it was taken away meanwhile
        await trio.to_thread.run_sync(lambda: detach(mountpoint, lazy=True))
    pyfuse3.terminate()


def _escaped(text: str) -> str:
    """Return ``text`` as the value of a mount option, in which a comma would begin the next one."""
    ascii_only = text.encode("ascii", "backslashreplace").decode().replace("\\", "\\\\")
    return ascii_only.replace(",", "\\,")
