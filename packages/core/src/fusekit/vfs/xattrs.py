"""Extended attributes: the service's own, and those in which fusekit tells about a file.

Vfs layer. Hooks see names without ``user.``; ``user.prop.x`` and ``prop.x`` are one attribute, listed as the first
(special files, to which the kernel refuses ``user.``, list the bare form). ``user.fusekit.*`` is ours, there but not
listed: tools that copy attributes would try to set them at the copy. The kernel's own namespaces never reach a
backend: one is asked before each write.
"""

from __future__ import annotations

import errno
from typing import Final

import attrs

from fusekit import names
from fusekit.cache.blocks import Blocks
from fusekit.errors import Invalid, NotFound, NotSupported
from fusekit.transfer.calls import Calls
from fusekit.types import Caller, Kind
from fusekit.vfs.file import block_key
from fusekit.vfs.files import Files
from fusekit.vfs.inodes import Node
from fusekit.vfs.places import Places
from fusekit.vfs.tree import Tree

USER: Final = "user."
OWN: Final = "fusekit."
_FOREIGN: Final = ("security.", "system.", "trusted.")


class Xattrs:
    """The extended attributes of one mount."""

    def __init__(self, tree: Tree, files: Files, places: Places, calls: Calls, blocks: Blocks) -> None:
        self._tree = tree
        self._files = files
        self._places = places
        self._calls = calls
        self._blocks = blocks

    async def get(self, node: Node, name: str, caller: Caller) -> bytes:
        """Return the value of ``name``.

        Raises:
            NotFound: there is none (ENODATA). NotSupported: it is of a namespace of the kernel's.
        """
        plain = _plain(name)
        if plain is None:
            # "Not here at all", and not "not of this file": `ls -l` then asks once a mount and not twice a file.
            raise NotSupported(f"there are no extended attributes such as {name!r} here", errno=errno.EOPNOTSUPP)
        own = plain.startswith(OWN)
        value = (await self._own(node, caller) if own else await self._all(node, caller)).get(plain)
        if value is None:
            raise _no_such(name)
        return value

    async def list(self, node: Node, caller: Caller) -> list[str]:
        """Return the names to list."""
        bare = node.kind not in {Kind.FILE, Kind.DIRECTORY}
        return [name if bare else USER + name for name in await self._all(node, caller)]

    async def set(self, node: Node, name: str, value: bytes | None, caller: Caller) -> None:
        """Set ``name`` to ``value``; None removes it."""
        plain = _plain(name)
        if plain is None:
            raise _refused(name)
        if plain.startswith(OWN):
            raise Invalid(f"{USER}{plain} is read-only", errno=errno.EPERM)
        self._places.writable_mount()
        if not self._places.around(node, caller).has("fusekit_setxattr"):
            raise _refused(name)
        async with self._files.turns.take(node):
            if node.file is not None and node.file.entry is None:
                await self._files.commits.commit_in_turn(node.file, caller)
            if value is None and plain not in await self._all(node, caller):
                raise _no_such(name)
            await self._calls.setxattr(await self._tree.entry(node, caller), plain, value, caller)
            fact = self._tree.fact(node, caller)
            if fact is not None and fact.entry.xattrs is not None:
                left = {other: kept for other, kept in fact.entry.xattrs.items() if other != plain}
                fact.entry = attrs.evolve(fact.entry, xattrs=left if value is None else {**left, plain: bytes(value)})

    async def _all(self, node: Node, caller: Caller) -> dict[str, bytes]:
        if node.file is not None and node.file.entry is None:
            return {}
        asks = not node.gone and self._places.around(node, caller).has("fusekit_getxattrs")
        known = self._tree.fact(node, caller)
        if known is not None and known.entry.xattrs is None and not asks:
            return {}  # newer `ls` lists them for each file: where there are none, that costs nothing
        fact = await self._tree.refresh(node, caller)
        if fact.entry.xattrs is not None:
            return dict(fact.entry.xattrs)
        if not asks:
            return {}
        return dict(await self._calls.getxattrs(await self._tree.entry(node, caller), caller))

    async def _own(self, node: Node, caller: Caller) -> dict[str, bytes]:
        """Return what fusekit tells about a file: its state, address, version, cached bytes and last error."""
        file = node.file
        told: dict[str, str] = {"fusekit.state": "clean"}
        if file is not None and file.failed is not None:
            told["fusekit.state"] = "failed"
            told["fusekit.error"] = str(file.failed)
        elif file is not None and file.trouble is not None:
            told["fusekit.state"] = "failed"  # and tried again
            told["fusekit.error"] = str(file.trouble)
        elif file is not None and file.local and not node.gone:
            waits = "dirty" if file.dirty or not file.acknowledged else "queued"
            told["fusekit.state"] = "uploading" if file.sending else waits
        elif (error := self._files.commits.kept.reason(self._tree.inodes.path(node))) is not None:
            told["fusekit.error"] = error
        if (file is None or file.entry is not None) and not node.gone:
            entry = await self._tree.entry(node, caller)
            told["fusekit.ref"] = entry.ref
            if entry.version is not None:
                told["fusekit.version"] = entry.version
            if node.kind is Kind.FILE:
                told["fusekit.cached"] = f"{self._blocks.cached(block_key(entry), entry)}/{entry.size or 0}"
        return {name: names.encode(value) for name, value in told.items()}


def _plain(name: str) -> str | None:
    """Return ``name`` as a hook sees it; None for the namespaces that never reach a backend."""
    if name.startswith(_FOREIGN):
        return None
    return name.removeprefix(USER)


def _no_such(name: str) -> NotFound:
    return NotFound(f"no extended attribute {name!r}", errno=errno.ENODATA)


def _refused(name: str) -> NotSupported:
    return NotSupported(f"extended attribute {name!r} cannot be set here", errno=errno.EOPNOTSUPP)
