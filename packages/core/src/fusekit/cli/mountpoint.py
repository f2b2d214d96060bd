"""What must hold before a mount is tried: the directory, FUSE on this machine, and where cache and state lie.

Cli layer. Each check ends in one line that says what to do.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Final

from fusekit.cli.output import say
from fusekit.errors import ConfigError, MountError
from fusekit.fuse.mounts import FUSERMOUNT, clear_dead, mounted_at, real_path
from fusekit.settings import Settings

DEVICE: Final = Path("/dev/fuse")
FUSE_CONF: Final = Path("/etc/fuse.conf")


def prepare(directory: Path, *, nonempty: bool) -> Path:
    """Return the real path of a directory that can be mounted on, after clearing what a crashed run left there.

    Raises:
        MountError: it is missing, no directory, not empty (unless ``nonempty``) or mounted already.
    """
    target = real_path(directory)
    if clear_dead(target):
        say(f"cleared the dead mount at {target}")
    point = mounted_at(target)
    if point is not None and point.filesystem.startswith("fuse"):
        raise MountError(f"{directory} is already mounted ({point.source}); leave it with: fusekit unmount {directory}")
    try:
        names = os.listdir(target)
    except FileNotFoundError as error:
        raise MountError(f"the mount point {directory} does not exist; run: mkdir -p {directory}") from error
    except NotADirectoryError as error:
        raise MountError(f"the mount point {directory} is no directory; choose another") from error
    except OSError as error:
        raise MountError(f"cannot use the mount point {directory}: {error.strerror}") from error
    if names and not nonempty:
        raise MountError(
            f"the mount point {directory} is not empty; choose an empty one, or hide what is there with -o nonempty"
        )
    if not os.access(target, os.W_OK):
        raise MountError(f"the mount point {directory} is not yours to write; choose another")
    return target


def check_fuse(fuse_options: frozenset[str]) -> None:
    """Check that this user can mount with FUSE here.

    Raises:
        MountError: no device, no right to it, no fusermount3. ConfigError: allow_other is not allowed.
    """
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise MountError(
                f"{DEVICE} may not be opened; in a container add: --device {DEVICE} --cap-add SYS_ADMIN; "
                f"else ask root for: chmod 666 {DEVICE}"
            ) from error
        raise MountError(
            f"{DEVICE} is missing; run as root: modprobe fuse; in a container add: --device {DEVICE} --cap-add SYS_ADMIN"
        ) from error
    if os.geteuid() == 0:
        return  # root mounts without help, and for others
    if shutil.which(FUSERMOUNT) is None:
        raise MountError(f"{FUSERMOUNT} is missing; run: apt install fuse3")
    for option in sorted(fuse_options & {"allow_other", "allow_root"}):
        if not _others_allowed():
            raise ConfigError(
                f"{option} needs the line user_allow_other in {FUSE_CONF}; ask root for it, or leave it out"
            )


def check_directories(settings: Settings, target: Path) -> None:
    """Check that cache and state do not end up in the mount itself, where each write would wait for another.

    Raises:
        ConfigError: one does.
    """
    for what, directory in (("cache", settings.cache_dir), ("state", settings.state_dir)):
        if directory is not None and real_path(directory).is_relative_to(target):
            raise ConfigError(
                f"the {what} directory {directory} is inside the mount point; choose another with --{what}-dir"
            )


def _others_allowed() -> bool:
    try:
        lines = FUSE_CONF.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.partition("#")[0].strip() == "user_allow_other" for line in lines)
