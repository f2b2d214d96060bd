"""The kernel's limits for one mount: how far it reads ahead, and how much it has under way at once.

Fuse layer, but without pyfuse3. Both are files of sysfs; the first takes root, the second its owner or root. Without
them everything works, slower: so nothing here fails, and `fusekit info` says what is in force, and why.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Final

import attrs

BDI: Final = Path("/sys/class/bdi")
CONNECTIONS: Final = Path("/sys/fs/fuse/connections")

# The kernel puts at most 256 pages into one request, as libfuse asks for; it does so from 1 MiB of read-ahead on (tried:
# 32 MiB by cat are 34 requests, and 128 with the default of 128 KiB; 4 MiB of read-ahead are 34 as well). A larger one
# would only read more in vain: what lies further ahead is the engine's affair, which knows the bandwidth.
READ_AHEAD_KB: Final = 1024
REQUEST_BYTES_MAX: Final = 1 << 20

# Reads ahead, and writes of mapped pages, that may be under way at once. The kernel's own 12 are used up by as many
# stuck ones, and even those that the cache would answer then wait (trap 18 of the tests).
MAX_BACKGROUND: Final = 64
DEFAULT_BACKGROUND: Final = 12

# Beyond this the kernel begins no read-ahead of its own; its own ratio.
CONGESTION: Final = MAX_BACKGROUND * 3 // 4


@attrs.frozen
class Knobs:
    """What is in force; None where it cannot be read. ``notes`` say what could not be raised, why and what follows."""

    read_ahead_kb: int | None
    max_background: int | None
    congestion_threshold: int | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, with what the requests of the kernel can take of memory."""
        background = self.max_background or DEFAULT_BACKGROUND
        return {**attrs.asdict(self), "notes": list(self.notes), "buffers_bytes": background * REQUEST_BYTES_MAX}


def raise_limits(device: int, bdi: Path = BDI, connections: Path = CONNECTIONS) -> Knobs:
    """Raise what can be raised for the mount whose ``st_dev`` is ``device``; never lower anything.

    To be called after the kernel's first request was answered: with that answer it sets its own values.
    """
    notes: list[str] = []
    ahead = bdi / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb"
    connection = connections / str(os.minor(device))
    read_ahead, why = _raised(ahead, READ_AHEAD_KB)
    if why:
        notes.append(
            f"read_ahead_kb: {why}; the kernel asks for smaller pieces, up to four times as many for the same file"
        )
    background, why = _raised(connection / "max_background", MAX_BACKGROUND)
    if why:
        left = DEFAULT_BACKGROUND if background is None else background
        notes.append(f"max_background: {why}; at most {left} of the kernel's reads are in flight in this mount")
    congestion, _ = _raised(connection / "congestion_threshold", CONGESTION)
    return Knobs(read_ahead, background, congestion, tuple(notes))


def _raised(path: Path, wanted: int) -> tuple[int | None, str]:
    """Return the value in force after trying for at least ``wanted``, and why it is less."""
    why = ""
    try:
        if int(path.read_text()) < wanted:
            path.write_text(f"{wanted}\n")
    except (OSError, ValueError) as error:
        why = _reason(path, error)
    try:
        return int(path.read_text()), why
    except (OSError, ValueError):
        return None, why


def _reason(path: Path, error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in {errno.EACCES, errno.EPERM}:
        return "not permitted, it takes root"
    if number == errno.EROFS:
        return "/sys is read-only here, as in most containers"
    if number == errno.ENOENT and path.is_relative_to(CONNECTIONS) and not any(_entries(CONNECTIONS)):
        return f"{CONNECTIONS} is not mounted"
    if number == errno.EINVAL:
        return "more than /sys/module/fuse/parameters/max_user_bgreq allows who is not root"
    return f"{path}: {error.strerror if isinstance(error, OSError) else error}"


def _entries(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
