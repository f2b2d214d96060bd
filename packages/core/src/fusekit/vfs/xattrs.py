"""Extended attributes: the service's own, and those in which fusekit tells about a file.

Vfs layer. Hooks see names without ``user.``; ``user.prop.x`` and ``prop.x`` are one attribute, listed as the first
(special files, to which the kernel refuses ``user.``, list the bare form). ``user.fusekit.*`` is ours. The kernel's
own namespaces never reach a backend: one is asked before each write.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final

from fusekit.errors import Invalid, NotFound, NotSupported
from fusekit.types import Kind
from fusekit.vfs.inodes import Node

USER: Final = "user."
OWN: Final = "fusekit."
_FOREIGN: Final = ("security.", "system.", "trusted.")


def plain(name: str) -> str | None:
    """Return ``name`` as a hook sees it; None for the namespaces that never reach a backend."""
    if name.startswith(_FOREIGN):
        return None
    return name.removeprefix(USER)


def shown(node: Node, names: Mapping[str, bytes]) -> list[str]:
    """Return the names to list for ``node``."""
    bare = node.kind not in {Kind.FILE, Kind.DIRECTORY}
    return [name if bare else USER + name for name in names]


def no_such(name: str) -> NotFound:
    """Return the error for an attribute that is not there."""
    return NotFound(f"no extended attribute {name!r}", errno=errno.ENODATA)


def refused(name: str) -> NotSupported:
    """Return the error for an attribute that cannot be set here."""
    return NotSupported(f"extended attribute {name!r} cannot be set here", errno=errno.EOPNOTSUPP)


def own(name: str) -> Invalid:
    """Return the error for an attempt to change what fusekit tells."""
    return Invalid(f"{USER}{name} is read-only", errno=errno.EPERM)
