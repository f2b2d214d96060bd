"""The layer ``read-only``: whatever is below it, nothing can be changed through it.

A layer. It takes the hooks that change something out of the capabilities, so that core refuses before it begins, and
refuses by itself whoever calls them all the same. Exchange files still work: a request changes no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final, NoReturn

import attrs

from fusekit.api import Caller, Capabilities, Entry, Hooks, Io, Mount, ReadOnly, Rename, Want, hookimpl

CHANGING: Final = frozenset(
    {
        "fusekit_write",
        "fusekit_mkdir",
        "fusekit_symlink",
        "fusekit_mknod",
        "fusekit_link",
        "fusekit_copy",
        "fusekit_rename",
        "fusekit_remove",
        "fusekit_setattr",
        "fusekit_setxattr",
    }
)


@attrs.frozen
class Options:
    """Nothing can be told."""


class ReadOnlyLayer:
    """The hooks of ``read-only``."""

    name: ClassVar[str] = "read-only"
    options: ClassVar[type] = Options

    def __init__(self, options: Options, mount: Mount, inner: Hooks) -> None:
        self._inner = inner

    @hookimpl(wrapper=True)
    def fusekit_capabilities(self) -> Iterator[None]:
        below = yield
        assert isinstance(below, Capabilities)
        hooks = below.hooks or frozenset()
        return attrs.evolve(below, hooks=hooks - CHANGING, rename=Rename.NONE, replace=False, unlinked=False)

    @hookimpl
    async def fusekit_access(self, entry: Entry, want: Want, caller: Caller) -> None:
        if Want.WRITE in want and entry.io is not Io.EXCHANGE:
            _refuse()
        await self._inner.fusekit_access(entry=entry, want=want, caller=caller)

    @hookimpl
    async def fusekit_write(self) -> Entry:
        _refuse()

    @hookimpl
    async def fusekit_mkdir(self) -> Entry:
        _refuse()

    @hookimpl
    async def fusekit_symlink(self) -> Entry:
        _refuse()

    @hookimpl
    async def fusekit_mknod(self) -> Entry:
        _refuse()

    @hookimpl
    async def fusekit_link(self) -> Entry:
        _refuse()

    @hookimpl
    async def fusekit_copy(self) -> Entry:
        _refuse()

    @hookimpl
    async def fusekit_rename(self) -> Entry:
        _refuse()

    @hookimpl
    async def fusekit_remove(self) -> None:
        _refuse()

    @hookimpl
    async def fusekit_setattr(self) -> Entry:
        _refuse()

    @hookimpl
    async def fusekit_setxattr(self) -> None:
        _refuse()


def _refuse() -> NoReturn:
    raise ReadOnly("this mount is read-only (layer read-only)")


@hookimpl
def fusekit_layers() -> list[type]:
    return [ReadOnlyLayer]
