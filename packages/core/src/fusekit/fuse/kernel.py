"""Telling the kernel to forget: a thread of its own, because these calls may block on requests that we must answer.

Fuse layer.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
from types import TracebackType
from typing import Final, Self

import pyfuse3

from fusekit import names

logger = logging.getLogger(__name__)

# Names waiting to be forgotten: a kernel that does not keep up is not asked for more, it will be asked again.
_DISOWNED_MAX: Final = 4096


class Notifier:
    """Sends invalidations in the order in which they were asked for; open between enter and exit."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[int, str | None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fusekit-invalidate", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        # Not joined: it may be blocked on a kernel that waits for our last answers. It holds nothing.
        self._queue.put(None)

    def changed(self, ino: int, name: str | None) -> None:
        """Let the kernel forget the entry ``name`` of directory ``ino``, or the attributes and pages of ``ino``."""
        self._queue.put((ino, name))

    def disown(self, ino: int, name: str) -> None:
        """Let the kernel forget the entry ``name`` of directory ``ino`` some time, to save memory; it may use it yet."""
        if self._queue.qsize() < _DISOWNED_MAX:
            self._queue.put((ino, name))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            ino, name = item
            try:
                if name is None:
                    pyfuse3.invalidate_inode(pyfuse3.InodeT(ino))
                else:
                    pyfuse3.invalidate_entry(pyfuse3.InodeT(ino), pyfuse3.FileNameT(names.encode(name)))
            except FileNotFoundError:
                pass  # the kernel does not have it
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EBUSY, errno.ENODEV, errno.EBADF, errno.ENOTCONN}:
                    logger.warning("the kernel did not forget inode %d: %s", ino, error)
            except Exception:
                logger.exception("invalidating inode %d failed", ino)
