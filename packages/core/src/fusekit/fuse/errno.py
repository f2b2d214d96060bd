"""The one table from errors to numbers.

Fuse layer. An error may carry a finer ``errno`` of its own. ENOSYS never leaves: to the kernel it means "this
operation does not exist on this mount", after which an fsync, say, *succeeds* without ever arriving.
"""

from __future__ import annotations

import errno
from typing import Final

from fusekit.errors import (
    Aborted,
    BackendError,
    Busy,
    Corrupt,
    Denied,
    Exists,
    Invalid,
    IsDirectory,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotSupported,
    ReadOnly,
    Stale,
    Throttled,
    TimedOut,
    TooLarge,
    Unavailable,
)

TABLE: Final[dict[type[BackendError], int]] = {
    NotFound: errno.ENOENT,
    Exists: errno.EEXIST,
    NotEmpty: errno.ENOTEMPTY,
    NotDirectory: errno.ENOTDIR,
    IsDirectory: errno.EISDIR,
    Denied: errno.EACCES,
    ReadOnly: errno.EROFS,
    Invalid: errno.EINVAL,
    TooLarge: errno.EFBIG,
    NoSpace: errno.ENOSPC,
    Busy: errno.EBUSY,
    Stale: errno.ESTALE,
    NotSupported: errno.EOPNOTSUPP,
    # Not EAGAIN: of a file that was opened as usual it means "no data yet" to Python (read returns None), and event
    # loops try again at once.
    Throttled: errno.EBUSY,
    Unavailable: errno.EIO,
    TimedOut: errno.ETIMEDOUT,
    Aborted: errno.ECANCELED,
    Corrupt: errno.EIO,
}


def number(error: BaseException) -> int:
    """Return the errno for what a file system operation raised; EIO for what nobody expected."""
    found: int | None = None
    if isinstance(error, BackendError):
        found = error.errno
        if found is None:
            found = next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), None)
    elif isinstance(error, OSError):
        found = error.errno
    return errno.EIO if found in {None, 0, errno.ENOSYS} else found
