"""A session: a volume on a mount point, from the first request to the last file sent.

Fuse layer. pyfuse3 keeps one session a process. A plain ``umount`` ends the loop without waiting for us, so what is
dirty then is drained afterwards, with the journal's lock still held.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from fusekit.errors import MountError
from fusekit.fuse.adapter import Adapter
from fusekit.fuse.kernel import Notifier
from fusekit.fuse.knobs import raise_limits
from fusekit.fuse.mounts import detach, mounted_at
from fusekit.volume import Volume

logger = logging.getLogger(__name__)

# Handlers at once. The kernel keeps at most `max_background` reads of its own in flight, but each program may wait
# in one more; with pyfuse3's default of 99 stuck ones would starve all others.
TASKS_MAX: Final = 1024

DEVICE: Final = "/dev/fuse"

# How often is looked whether the kernel has gone without a word; it has no other way to tell than an error of `poll`.
LOOK_INTERVAL_S: Final = 2.0

# What handlers that hear of the end have for their answers, when the time for sending is over.
LAST_WORDS_S: Final = 0.5

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


class _Unanswered(logging.Filter):
    """Drops what pyfuse3 says when nobody waited for the answer to a release, which is so after every detach."""

    def filter(self, record: logging.LogRecord) -> bool:
        gone = record.args == (os.strerror(errno.ENOENT),)
        return not (gone and str(record.msg).startswith(("fuse_release():", "fuse_releasedir():")))


_UNANSWERED: Final = _Unanswered()


async def _serve(
    volume: Volume, mountpoint: Path, options: frozenset[str], ready: Callable[[], None], stopping: trio.Event
) -> int:
    filesystem = volume.filesystem
    wanted = {f"fsname={_escaped(volume.source)}", "subtype=fusekit", "nosuid", "nodev", *options}
    if filesystem.tree.one_view:
        wanted.add("default_permissions")
    logging.getLogger("pyfuse3").addFilter(_UNANSWERED)
    others = _devices()
    try:
        pyfuse3.init(Adapter(filesystem), str(mountpoint), wanted)
    except RuntimeError as error:
        raise MountError(
            f"cannot mount on {mountpoint}: the kernel or fusermount3 refused; see `fusekit doctor`"
        ) from error
    (device,) = _devices() - others
    unmounted = False
    try:
        with Notifier() as notifier:
            volume.mount.invalidate = notifier.changed
            filesystem.tree.kernel = notifier
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as serving:
                    nursery.start_soon(_stop, volume, mountpoint, stopping, serving)
                    nursery.start_soon(_notice_end, volume, device, serving)
                    nursery.start_soon(_raise_limits, volume, mountpoint)
                    ready()
                    await pyfuse3.main(max_tasks=TASKS_MAX)
                if serving.cancelled_caught:
                    logger.error("operations that did not end were given up after the drain timeout")
                unmounted = True
                nursery.cancel_scope.cancel()
    finally:
        volume.mount.invalidate = None
        filesystem.tree.kernel = None
        pyfuse3.close(unmount=not unmounted)
        with trio.CancelScope(shield=True, deadline=volume.end_by()):
            await volume.drain()
    return len(await volume.journal.rows())


async def _raise_limits(volume: Volume, mountpoint: Path) -> None:
    """Let the kernel read further ahead and have more under way, where that is permitted, once it has begun."""
    point = mounted_at(mountpoint)
    if point is None:
        return
    with contextlib.suppress(OSError):  # the answer does not matter: after one the kernel has set its own values
        await trio.to_thread.run_sync(os.lstat, mountpoint, abandon_on_cancel=True)
    volume.kernel = (await trio.to_thread.run_sync(raise_limits, point.device)).as_dict()
    volume.kernel_known.set()
    for note in volume.kernel["notes"]:
        logger.info("%s", note)


async def _stop(volume: Volume, mountpoint: Path, stopping: trio.Event, serving: trio.CancelScope) -> None:
    """Wait for the word, send what is dirty, and take the mount away; a busy one is detached."""
    await stopping.wait()
    ends = volume.end_by()
    volume.filesystem.refuse_writers()
    with trio.CancelScope(deadline=ends):
        await volume.filesystem.send_all()
    if mounted_at(mountpoint) is not None:  # else it was taken away meanwhile
        await trio.to_thread.run_sync(lambda: detach(mountpoint, lazy=True))
    # The drain timeout is for sending. A read that hangs, of a mount that is no longer there, is worth no wait.
    _give_up_at(ends if volume.filesystem.unsent() else trio.current_time(), serving)
    pyfuse3.terminate()


async def _notice_end(volume: Volume, device: int, serving: trio.CancelScope) -> None:
    """Begin the end when the kernel is gone: after an umount(8), nobody else says so while a handler is stuck."""
    poll = select.poll()
    poll.register(device, 0)  # errors alone
    while not poll.poll(0):  # noqa: ASYNC110 - trio waits for bytes only, and pyfuse3 already does on this one
        await trio.sleep(LOOK_INTERVAL_S)
    _give_up_at(volume.end_by(), serving)


def _give_up_at(ends: float, serving: trio.CancelScope) -> None:
    """Bound the handlers that still run: pyfuse3 waits for each of them, and a hook may never return."""
    serving.deadline = max(ends, trio.current_time() + LAST_WORDS_S)


def _devices() -> set[int]:
    """Return the descriptors of FUSE sessions in this process; pyfuse3 does not tell which is its own."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == DEVICE:
                found.add(int(name))
    return found


def _escaped(text: str) -> str:
    """Return ``text`` as the value of a mount option, in which a comma would begin the next one."""
    ascii_only = text.encode("ascii", "backslashreplace").decode().replace("\\", "\\\\")
    return ascii_only.replace(",", "\\,")
