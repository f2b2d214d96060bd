"""Mount points as the kernel sees them: which are fusekit's, which are dead, and how to detach one.

Fuse layer, but without pyfuse3. Everything goes by path and ``/proc/self/mountinfo``, never through the mount itself
unless said so: a call into a mount whose process is stuck would wait for ever.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Final

import attrs

from fusekit.errors import MountError

FILESYSTEM: Final = "fuse.fusekit"
MOUNTINFO: Final = Path("/proc/self/mountinfo")
FUSERMOUNT: Final = "fusermount3"

# A process that was killed answers at once (ENOTCONN); one that is merely slow is alive. So this only bounds how
# long a stuck one can hold up `status` and `mount`.
ANSWER_TIMEOUT_S: Final = 2.0

_DEAD: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
_ESCAPE = re.compile(r"\\([0-7]{3})")


@attrs.frozen
class MountPoint:
    """One line of mountinfo: where, what kind of filesystem, of what source, its ``st_dev``, and whether read-only."""

    path: Path
    filesystem: str
    source: str
    device: int
    read_only: bool

    @property
    def ours(self) -> bool:
        return self.filesystem == FILESYSTEM


def mount_points(mountinfo: Path = MOUNTINFO) -> list[MountPoint]:
    """Return all mounts of this namespace, in the order in which they were made; a later one hides an earlier."""
    return [_parse(line) for line in mountinfo.read_bytes().decode("utf-8", "surrogateescape").splitlines()]


def mounted_at(path: Path, mountinfo: Path = MOUNTINFO) -> MountPoint | None:
    """Return the mount that is visible at ``path`` (made by `real_path`), None where nothing is mounted there."""
    return next((point for point in reversed(mount_points(mountinfo)) if point.path == path), None)


def real_path(path: Path) -> Path:
    """Return ``path`` absolute and without links, without asking a filesystem that is mounted right there."""
    absolute = path.expanduser().absolute()
    parent = Path(os.path.realpath(absolute.parent)) / absolute.name
    if absolute.name in {"", ".."} or mounted_at(parent) is None:
        return Path(os.path.realpath(absolute))
    return parent


def is_dead(path: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
    """Return whether the process behind the mount at ``path`` is gone.

    statvfs is asked because the kernel keeps no answer to it: attributes of a dead mount can still be in its cache.
    """
    found: list[int] = []

    def ask() -> None:
        try:
            os.statvfs(path)
        except OSError as error:
            found.append(error.errno or 0)

    # A thread, because a stuck process never answers; as a daemon it does not keep this one from ending.
    thread = threading.Thread(target=ask, name="statvfs", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return bool(_DEAD.intersection(found))


def detach(path: Path, *, lazy: bool) -> None:
    """Unmount ``path``; ``lazy`` takes it out of the tree now, and what is open stays usable until it is closed.

    Raises:
        MountError: it is busy or not permitted, in the words of the tool.
    """
    fusermount = shutil.which(FUSERMOUNT)
    attempts = [[fusermount, "-u", *(["-z"] if lazy else []), "--", str(path)]] if fusermount else []
    attempts.append(["umount", *(["-l"] if lazy else []), "--", str(path)])
    said = ""
    for command in attempts:
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            said = said or str(error)
            continue
        if done.returncode == 0:
            return
        said = said or done.stderr.strip()
    raise MountError(" ".join(said.split()) or f"cannot unmount {path}")


def clear_dead(path: Path) -> bool:
    """Detach what a crashed run left at ``path``, all layers of it; return whether there was anything."""
    cleared = False
    while (point := mounted_at(path)) is not None and point.filesystem.startswith("fuse") and is_dead(path):
        detach(path, lazy=True)
        cleared = True
    return cleared


def users(path: Path) -> list[str]:
    """Return the processes that have something open in ``path``, as ``vim (4711)``, as far as we may see."""
    inside = f"{path}/"
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _uses(process, str(path), inside):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue
            found.append(f"{name} ({process.name})")
    return sorted(found)


def _uses(process: Path, path: str, inside: str) -> bool:
    try:
        links = [process / "cwd", process / "root", *(process / "fd").iterdir()]
    except OSError:
        return False
    for link in links:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target == path or target.startswith(inside):
            return True
    return False


def _parse(line: str) -> MountPoint:
    """Read one line. Source: proc(5), /proc/pid/mountinfo."""
    before, _, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    major, _, minor = fields[2].partition(":")
    return MountPoint(
        path=Path(_unescape(fields[4])),
        filesystem=rest[0],
        source=_unescape(rest[1]),
        device=os.makedev(int(major), int(minor)),
        read_only="ro" in fields[5].split(","),
    )


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)
