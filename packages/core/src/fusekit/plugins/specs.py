"""The hooks: pluggy's specification and the type that the engine calls are one class.

Plugins layer. `Discovery` hooks are functions of a module and return classes. `Hooks` are methods of the one backend
object of a mount and of its layers. An implementation names only the arguments that it uses. A hook that is not
implemented is a capability that is absent, known at mount time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import pluggy

from fusekit.types import Attributes, Caller, Capabilities, Content, Entry, Kind, Page, Sink, Space, Want

PROJECT = "fusekit"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
_one = hookspec(firstresult=True)


class Discovery(Protocol):
    """Synchronous functions of the module that an entry point of group ``fusekit`` names."""

    @staticmethod
    @hookspec
    def fusekit_backends() -> list[list[type[Any]]]:
        """Return the backend classes of this module: each has ``scheme``, ``options`` and the hooks."""
        raise NotImplementedError

    @staticmethod
    @hookspec
    def fusekit_layers() -> list[list[type[Any]]]:
        """Return the layer classes of this module: each has ``name``, ``options`` and some hooks."""
        raise NotImplementedError

    @staticmethod
    @hookspec
    def fusekit_emulators() -> list[list[type[Any]]]:
        """Return emulator classes (`fusekit.testing.emulator.Emulator`); import them inside, they are seldom wanted."""
        raise NotImplementedError


class Hooks(Protocol):
    """The operations on one mount. All but the lifespan end with the first plugin that implements them."""

    @hookspec
    def fusekit_lifespan(self) -> AbstractAsyncContextManager[None]:
        """Open what lives as long as the mount (a nursery, a poller).

        Entered bottom up before the first call of any other hook, left after the journal has drained. A background
        task that fails ends the mount.
        """
        raise NotImplementedError

    @_one
    def fusekit_capabilities(self, directory: Entry) -> Capabilities:
        """Return what can be done in ``directory``, from memory; asked at each decision, so it must not be slow."""
        raise NotImplementedError

    @_one
    async def fusekit_principal(self, uid: int, gid: int, pid: int) -> str:
        """Return the public name under which this local user acts; only for backends with a view for each user.

        Raises:
            Denied: the user is not signed in; the message says how to.
        """
        raise NotImplementedError

    @_one
    async def fusekit_access(self, entry: Entry, want: Want, caller: Caller) -> None:
        """Raise `Denied` if ``caller`` may not do ``want``: asked at open, create, access(2) and opendir.

        What cannot be read now (archived, still closing) is refused here as well, before any byte moves.
        """
        raise NotImplementedError

    @_one
    async def fusekit_root(self, caller: Caller) -> Entry:
        """Return the directory that is mounted; its name is empty. Without it: ``Entry.directory("")``."""
        raise NotImplementedError

    @_one
    async def fusekit_list(self, directory: Entry, page: Page, caller: Caller) -> None:
        """Hand all entries of ``directory`` to ``page``; the listing counts as complete only when this returned.

        One call at a time for a directory and principal. `Stale` (a page marker went bad) starts it once more.
        """
        raise NotImplementedError

    @_one
    async def fusekit_stat(self, directory: Entry, name: str, known: Entry | None, caller: Caller) -> Entry:
        """Return the entry ``name`` of ``directory``; ``known`` is what core believes, to be probed by its address.

        The same ``version`` for a directory says that its listing stands. Without this hook names are looked up in
        the listing.

        Raises:
            NotFound: there is no such name, for sure; any other trouble must raise something else.
        """
        raise NotImplementedError

    @_one
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink, caller: Caller) -> None:
        """Write the bytes ``start`` to ``stop`` (None: the end) of ``entry`` to ``sink``.

        Reads overlap freely. Fewer bytes than asked for mean the end of the file. After a retriable error core calls
        again from the first byte that is missing.

        Raises:
            Stale: the content is no longer ``entry.version``.
        """
        raise NotImplementedError

    @_one
    async def fusekit_write(
        self, directory: Entry | None, name: str, replacing: Entry | None, content: Content, caller: Caller
    ) -> Entry:
        """Store ``content`` as ``name`` in ``directory``, visible whole or not at all, and return what is there now.

        ``replacing`` None creates, else it commits over that entry. The entry describes exactly what was sent; where
        the service rewrites content, ``size`` is None. One call at a time for a directory and name. An attempt that
        fails or is cancelled leaves a ``note`` from which the next goes on. ``directory`` None stores bytes without
        a name (`Capabilities.unlinked`).

        Raises:
            Exists: ``replacing`` is None and the name is taken. Stale: ``replacing`` is not what is there.
        """
        raise NotImplementedError

    @_one
    async def fusekit_mkdir(self, directory: Entry, name: str, attributes: Attributes, caller: Caller) -> Entry:
        """Make the directory ``name`` and return it.

        Raises:
            Exists: the name is taken.
        """
        raise NotImplementedError

    @_one
    async def fusekit_symlink(self, directory: Entry, name: str, target: str, caller: Caller) -> Entry:
        """Make the symbolic link ``name`` to ``target`` and return it.

        Raises:
            Exists: the name is taken.
        """
        raise NotImplementedError

    @_one
    async def fusekit_mknod(
        self, directory: Entry, name: str, kind: Kind, attributes: Attributes, caller: Caller
    ) -> Entry:
        """Make the FIFO, socket or device ``name`` (``attributes.rdev``) and return it.

        Raises:
            Exists: the name is taken.
        """
        raise NotImplementedError

    @_one
    async def fusekit_link(self, entry: Entry, directory: Entry, name: str, caller: Caller) -> Entry:
        """Give ``entry`` the second name ``name`` in ``directory`` and return it there; both have the same ``id``.

        Raises:
            Exists: the name is taken.
        """
        raise NotImplementedError

    @_one
    async def fusekit_copy(self, entry: Entry, directory: Entry, name: str, caller: Caller) -> Entry:
        """Copy the file ``entry`` on the remote side and return the copy.

        Raises:
            Exists: the name is taken.
        """
        raise NotImplementedError

    @_one
    async def fusekit_rename(
        self,
        entry: Entry,
        source: Entry,
        target: Entry,
        name: str,
        replacing: Entry | None,
        exchange: bool,
        caller: Caller,
    ) -> Entry:
        """Move ``entry`` from directory ``source`` to ``name`` in directory ``target`` and return it there.

        ``replacing`` is what the name held, to be replaced atomically, or with ``exchange`` to be put in the place
        of ``entry``.

        Raises:
            Exists: ``replacing`` is None and the name is taken. NotEmpty: it is a directory with children.
            NotSupported: not between these places; the caller sees EXDEV and copies.
        """
        raise NotImplementedError

    @_one
    async def fusekit_remove(self, directory: Entry, entry: Entry, caller: Caller) -> None:
        """Remove ``entry`` from ``directory``; never recursive. `NotFound` counts as success.

        Raises:
            NotEmpty: a directory with children.
        """
        raise NotImplementedError

    @_one
    async def fusekit_setattr(self, directory: Entry, entry: Entry, changes: Attributes, caller: Caller) -> Entry:
        """Apply the fields of ``changes`` that are not None and return the entry as it is now.

        Without it mode, owner and times are kept by core.
        """
        raise NotImplementedError

    @_one
    async def fusekit_getxattrs(self, entry: Entry, caller: Caller) -> Mapping[str, bytes]:
        """Return all extended attributes by name, without ``user.``. Not asked where ``entry.xattrs`` is set."""
        raise NotImplementedError

    @_one
    async def fusekit_setxattr(self, entry: Entry, name: str, value: bytes | None, caller: Caller) -> None:
        """Set the extended attribute ``name`` (without ``user.``), or remove it where ``value`` is None."""
        raise NotImplementedError

    @_one
    async def fusekit_statfs(self, directory: Entry, caller: Caller) -> Space:
        """Return the space around ``directory``; without it a large constant is shown."""
        raise NotImplementedError

    @_one
    async def fusekit_exchange(self, entry: Entry, request: bytes, sink: Sink, caller: Caller) -> None:
        """Send ``request`` and write the answer to ``sink``; one call, never retried, kept nowhere."""
        raise NotImplementedError


OPERATIONS: tuple[str, ...] = tuple(name for name in vars(Hooks) if name.startswith("fusekit_"))
SYNCHRONOUS = frozenset({"fusekit_lifespan", "fusekit_capabilities"})
