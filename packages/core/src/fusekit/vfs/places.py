"""What may be done where: the mount's mode, the capabilities of a place, the limits of its names, the caller's rights.

Vfs layer. Every operation asks here before anything is sent or accepted, so that each refusal has one number.
"""

from __future__ import annotations

import errno
from typing import Final

from fusekit import names
from fusekit.errors import Invalid, IsDirectory, NotFound, NotSupported, ReadOnly
from fusekit.settings import Settings, Write
from fusekit.transfer.calls import Calls
from fusekit.types import Caller, Capabilities, Entry, Kind, Want
from fusekit.vfs.file import File
from fusekit.vfs.inodes import Node
from fusekit.vfs.tree import Tree

# Below this no service has a limit worth a look at each write.
_LIMITS_FROM: Final = 1 << 20


class Places:
    """Answers by returning, refuses by raising."""

    def __init__(self, tree: Tree, calls: Calls, settings: Settings) -> None:
        self._tree = tree
        self._calls = calls
        self._read_only = settings.write is Write.OFF
        self.ending = False
        self._access = calls.implements("fusekit_access")

    async def to_make(
        self, directory: Node, name: str, hook: str, caller: Caller, *, missing: int = errno.EPERM
    ) -> tuple[Entry, Capabilities]:
        """Return the directory in which ``hook`` is to make ``name``, and what can be done there."""
        self.writable_mount()
        entry, capabilities = await self._tree.directory(directory, caller)
        if directory.gone:
            raise NotFound(f"{directory.name!r} was removed")
        self.must_have(capabilities, hook, missing)
        if len(names.encode(name)) > min(capabilities.name_bytes_max, names.NAME_BYTES_MAX):
            raise Invalid(f"names have at most {capabilities.name_bytes_max} bytes here", errno=errno.ENAMETOOLONG)
        if capabilities.utf8_names and any("\udc80" <= letter <= "\udcff" for letter in name):
            raise Invalid("names must be UTF-8 here", errno=errno.EILSEQ)
        if (reason := names.problem(name, forbidden=capabilities.forbidden)) is not None:
            raise Invalid(f"the name {name!r} {reason}", errno=errno.EINVAL)
        await self.allowed(directory, Want.WRITE, caller)
        return entry, capabilities

    async def to_remove(self, directory: Node, caller: Caller) -> Entry:
        """Return the directory from which a name is to be removed."""
        self.writable_mount()
        entry, capabilities = await self._tree.directory(directory, caller)
        self.must_have(capabilities, "fusekit_remove")
        await self.allowed(directory, Want.WRITE, caller)
        return entry

    def to_write(self, node: Node, caller: Caller) -> None:
        """Raise unless the content of an existing file can be changed."""
        self.writable_mount()
        if node.kind is Kind.DIRECTORY:
            raise IsDirectory(f"{node.name!r} is a directory")
        if node.gone:
            return
        capabilities = self.around(node, caller)
        self.must_have(capabilities, "fusekit_write")
        if not capabilities.replace and not (node.file is not None and node.file.local):
            raise NotSupported("a file that was closed is final here", errno=errno.EPERM)

    def writable_mount(self) -> None:
        """Raise on a read-only mount."""
        if self._read_only:
            raise ReadOnly("mounted read-only")
        if self.ending:
            raise ReadOnly("the mount is ending")

    def must_have(self, capabilities: Capabilities, hook: str, missing: int = errno.EPERM) -> None:
        """Raise for a hook that is absent here: EROFS where nothing can be changed, else the number ``missing``."""
        if capabilities.has(hook):
            return
        if not (capabilities.has("fusekit_write") or capabilities.has("fusekit_remove")):
            raise ReadOnly("nothing can be changed in this directory")
        raise NotSupported("this cannot be done in this directory", errno=missing)

    def around(self, node: Node, caller: Caller) -> Capabilities:
        """Return what can be done in the directory that ``node`` is in."""
        return self._tree.capabilities_of(self._tree.node(node.parent), caller)

    async def allowed(self, node: Node, want: Want, caller: Caller) -> None:
        """Ask the service whether the caller may, where it has a word in that."""
        if self._access and want and not (node.file is not None and node.file.entry is None):
            await self._calls.access(await self._tree.entry(node, caller), want, caller)

    def fits(self, file: File, stop: int, caller: Caller) -> None:
        """Refuse what the service would refuse at the end, while the program can still do something about it."""
        if file.node.gone or stop <= _LIMITS_FROM:
            return
        limit = self.around(file.node, caller).file_bytes_max
        if limit is not None and stop > limit:
            raise Invalid(f"files have at most {limit} bytes here", errno=errno.EFBIG)
