"""``local:DIR``, a directory of this machine: the reference for POSIX behaviour.

A backend. The hooks here turn into one call each of `local_disk` or `local_staging`, made in a thread; nothing is
cached. Whether the caller may is decided by the kernel (the mount option ``default_permissions``) from the modes and
owners that are shown, and again by the filesystem below, for the user that runs the mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar, Final, TypeVar

import attrs
import trio

from fusekit.api import (
    Attributes,
    Caller,
    Capabilities,
    ConfigError,
    Content,
    Entry,
    Invalid,
    Kind,
    Mount,
    NotFound,
    NotSupported,
    Page,
    Rename,
    Sink,
    Space,
    Stale,
    hookimpl,
    names,
    option,
)
from fusekit.backends.local_disk import (
    RENAME_EXCHANGE,
    Disk,
    apply,
    at,
    checked_name,
    copy_xattrs,
    is_hidden,
    owned,
    rename2,
    translated,
    xattrs,
)
from fusekit.backends.local_staging import Staged, copy_bytes, hidden_for, move_new, sweep, sweep_all

READ_BYTES: Final = 1 << 20  # one visit to a thread: long enough that the 60 µs it costs do not count
PART_BYTES: Final = 1 << 20
PAGE_ENTRIES: Final = 500  # about 5 ms of system calls, after which the names are in the kernel's hands
CLEAN_UP_S: Final = 5.0

_TYPES: Final = {
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.CHAR: stat.S_IFCHR,
}

_T = TypeVar("_T")


def _path(value: str | os.PathLike[str]) -> Path:
    return Path(value).expanduser().absolute()


@attrs.frozen
class Options:
    """What ``local:`` can be told."""

    path: Path = option(converter=_path, help="the directory to serve")
    fsync: bool = option(default=True, help="a file is on the disk when its commit returns, also after a power cut")
    threads: int = option(default=16, converter=int, help="how many calls to the disk are made at once")


class LocalBackend:
    """The hooks of ``local:``.

    An object's id is its device and inode, with the inode's generation where the filesystem tells it, so hard links are
    one file. The version of a file is that, its time of modification and its size; a program that writes in place twice
    within one tick of the clock (4 ms before Linux 6.13) and to the same size is not noticed.

    Writes, renames and removals compare with what core believes right before they act (``guarded``). Creating is safe
    against every other program. Replacing is not quite: what a local program writes in the microseconds between that
    look and the rename is lost, as it is with any editor that saves by rename.
    """

    scheme: ClassVar[str] = "local"
    options: ClassVar[type] = Options

    def __init__(self, options: Options, mount: Mount) -> None:
        if not options.path.is_dir():
            raise ConfigError(f"{options.path} is not a directory; make it first, or name another one")
        self._fsync = options.fsync
        self._disk = Disk(options.path)
        self._threads = trio.CapacityLimiter(options.threads)  # its own: a hung disk must not take everybody's threads
        self._capabilities = Capabilities(
            rename=Rename.FILES | Rename.DIRECTORIES | Rename.REPLACE | Rename.EXCHANGE,
            guarded=True,
            utf8_names=False,
            requests_max=options.threads,
        )

    async def _call(self, call: Callable[[], _T]) -> _T:
        """Make a call that changes something; once begun it is waited for, so its outcome is known."""
        try:
            return await trio.to_thread.run_sync(call, limiter=self._threads)
        except OSError as error:
            raise translated(error) from error

    async def _ask(self, call: Callable[[], _T]) -> _T:
        """Make a call that changes nothing; when cancelled its thread is left behind with whatever it waits for."""
        try:
            return await trio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)
        except OSError as error:
            raise translated(error) from error

    @hookimpl
    @asynccontextmanager
    async def fusekit_lifespan(self) -> AsyncIterator[None]:
        await self._call(self._disk.open)
        try:
            name_bytes_max = await self._call(self._disk.name_bytes_max)
            self._capabilities = attrs.evolve(self._capabilities, name_bytes_max=name_bytes_max)
            yield
        finally:
            self._disk.close()

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return self._capabilities

    @hookimpl
    async def fusekit_root(self) -> Entry:
        return await self._ask(self._root)

    def _root(self) -> Entry:
        with self._disk.directory("") as root:
            return self._disk.entry("", root)

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        """Read all names first and what they are page by page, each in one visit to a thread."""
        found = await self._ask(partial(self._names, directory))
        for start in range(0, len(found), PAGE_ENTRIES):
            await page(await self._ask(partial(self._entries, directory, found[start : start + PAGE_ENTRIES])))

    def _names(self, directory: Entry) -> list[bytes]:
        with self._directory(directory, readable=True) as opened:
            found = [os.fsencode(name) for name in os.listdir(opened)]
            for name in filter(is_hidden, found):
                sweep(opened, name)
        return [name for name in found if not is_hidden(name)]

    def _entries(self, directory: Entry, found: list[bytes]) -> list[Entry]:
        entries = []
        with self._directory(directory) as opened:
            for name in found:
                with contextlib.suppress(FileNotFoundError):  # removed since the names were read
                    entries.append(self._disk.entry(names.decode(name), opened, name))
        return entries

    @hookimpl
    async def fusekit_stat(self, directory: Entry, name: str) -> Entry:
        return await self._ask(partial(self._stat, directory, name))

    def _stat(self, directory: Entry, name: str) -> Entry:
        if is_hidden(names.encode(name)):
            raise NotFound(f"{name!r} is an unfinished file")
        with self._directory(directory) as opened:
            return self._disk.entry(name, opened, checked_name(name))

    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        """Read, looking before and after each piece that the file is still the version asked for."""
        while stop is None or start < stop:
            wanted = READ_BYTES if stop is None else min(READ_BYTES, stop - start)
            data = await self._ask(partial(self._read, entry, start, wanted))
            if data:
                await sink.write(data, at=start)
            if len(data) < wanted:
                return
            start += len(data)

    def _read(self, entry: Entry, start: int, wanted: int) -> bytes:
        opened = self._disk.open_file(entry, os.O_RDONLY)
        try:
            data = os.pread(opened, wanted, start)
            self._disk.check_open(opened, entry)
        finally:
            os.close(opened)
        return data

    @hookimpl
    async def fusekit_write(
        self, directory: Entry | None, name: str, replacing: Entry | None, content: Content, caller: Caller
    ) -> Entry:
        """Write a hidden file in the same directory, sync it, and rename it to ``name``.

        The file that is replaced passes on its mode, owner, access list and extended attributes. One that has more
        names, or an owner whom we cannot give to another file, is overwritten in place at the end instead, because a
        rename would part the names or change the owner: that copy is not atomic, and a crash in it leaves a mixture.
        """
        if directory is None:
            raise NotSupported("local keeps no bytes without a name")
        hidden = hidden_for(content.key, name)
        await self._forget(content.note, hidden)
        await content.save({"unfinished": f"{directory.ref}/{names.decode(hidden)}"})
        mode = 0o666 if content.attributes.mode is None else 0o600  # the process's umask applies to the former
        staged = await self._call(partial(Staged.begin, self._disk, directory, name, replacing, hidden, mode))
        try:
            while (part := await content.next(PART_BYTES)) is not None:
                await self._call(partial(staged.write, await part.read(), part.start))
                part.done()
            return await self._call(partial(staged.commit, content.attributes, caller, self._fsync))
        finally:
            with trio.move_on_after(CLEAN_UP_S, shield=True):
                await self._call(staged.discard)

    async def _forget(self, note: Mapping[str, str], hidden: bytes) -> None:
        """Remove what an attempt before left elsewhere: its directory was renamed, or the file goes by another name."""
        above, _, name = note.get("unfinished", "").rpartition("/")
        encoded = names.encode(name)
        if not is_hidden(encoded) or encoded == hidden:
            return

        def remove() -> None:
            with contextlib.suppress(OSError), self._disk.directory(above) as opened:
                sweep(opened, encoded)

        await self._call(remove)

    @hookimpl
    async def fusekit_mkdir(self, directory: Entry, name: str, attributes: Attributes, caller: Caller) -> Entry:
        mode = 0o777 if attributes.mode is None else 0o700
        return await self._call(
            partial(self._make, directory, name, attributes, caller, lambda n, d: os.mkdir(n, mode, dir_fd=d))
        )

    @hookimpl
    async def fusekit_symlink(self, directory: Entry, name: str, target: str, caller: Caller) -> Entry:
        to = names.encode(target)
        return await self._call(
            partial(self._make, directory, name, Attributes(), caller, lambda n, d: os.symlink(to, n, dir_fd=d))
        )

    @hookimpl
    async def fusekit_mknod(
        self, directory: Entry, name: str, kind: Kind, attributes: Attributes, caller: Caller
    ) -> Entry:
        if kind not in _TYPES:
            raise Invalid(f"a {kind.value} is not made by mknod")
        mode = _TYPES[kind] | (0o666 if attributes.mode is None else 0o600)
        device = attributes.rdev or 0
        return await self._call(
            partial(self._make, directory, name, attributes, caller, lambda n, d: os.mknod(n, mode, device, dir_fd=d))
        )

    def _make(
        self, directory: Entry, name: str, attributes: Attributes, caller: Caller, make: Callable[[bytes, int], None]
    ) -> Entry:
        encoded = checked_name(name)
        with self._directory(directory) as opened:
            make(encoded, opened)
            try:
                made = os.open(encoded, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened)
                try:
                    apply(made, _inheriting(owned(attributes, caller, opened), os.stat(made)))
                finally:
                    os.close(made)
            except OSError:
                # An owner that we may not give: as if it had never been made.
                with contextlib.suppress(OSError):
                    self._unlink(opened, encoded)
                raise
            return self._disk.entry(name, opened, encoded)

    @hookimpl
    async def fusekit_link(self, entry: Entry, directory: Entry, name: str) -> Entry:
        return await self._call(partial(self._link, entry, directory, name))

    def _link(self, entry: Entry, directory: Entry, name: str) -> Entry:
        encoded = checked_name(name)
        with self._disk.parent(entry) as (above, old), self._directory(directory) as opened:
            self._disk.check(above, old, entry)
            os.link(old, encoded, src_dir_fd=above, dst_dir_fd=opened, follow_symlinks=False)
            return self._disk.entry(name, opened, encoded)

    @hookimpl
    async def fusekit_copy(self, entry: Entry, directory: Entry, name: str, caller: Caller) -> Entry:
        """Copy within the kernel, sharing blocks where the filesystem can; mode, times and attributes come along."""
        return await self._call(partial(self._copy, entry, directory, name, caller))

    def _copy(self, entry: Entry, directory: Entry, name: str, caller: Caller) -> Entry:
        opened = self._disk.open_file(entry, os.O_RDONLY)
        try:
            facts = os.stat(opened)
            staged = Staged.begin(self._disk, directory, name, None, hidden_for(os.urandom(16).hex(), name), 0o600)
            try:
                copy_bytes(opened, staged.descriptor, facts.st_size)
                copy_xattrs(opened, staged.descriptor)
                self._disk.check_open(opened, entry)
                attributes = Attributes(
                    mode=stat.S_IMODE(facts.st_mode), atime_ns=facts.st_atime_ns, mtime_ns=facts.st_mtime_ns
                )
                return staged.commit(attributes, caller, self._fsync)
            finally:
                staged.discard()
        finally:
            os.close(opened)

    @hookimpl
    async def fusekit_rename(
        self, entry: Entry, source: Entry, target: Entry, name: str, replacing: Entry | None, exchange: bool
    ) -> Entry:
        return await self._call(partial(self._rename, entry, source, target, name, replacing, exchange))

    def _rename(
        self, entry: Entry, source: Entry, target: Entry, name: str, replacing: Entry | None, exchange: bool
    ) -> Entry:
        old, new = checked_name(entry.name), checked_name(name)
        with self._directory(source) as leaving, self._directory(target) as entering:
            self._disk.check(leaving, old, entry)
            if replacing is not None:
                try:
                    self._disk.check(entering, new, replacing)
                except FileNotFoundError:
                    if exchange:
                        raise
                    raise Stale(f"{name!r} was removed meanwhile") from None
            if exchange:
                self._exchange(leaving, old, entering, new)
            elif replacing is None:
                move_new(leaving, old, entering, new)
            else:
                self._replace(leaving, old, entering, new)
            return self._disk.entry(name, entering, new)

    def _exchange(self, leaving: int, old: bytes, entering: int, new: bytes) -> None:
        try:
            rename2(leaving, old, entering, new, RENAME_EXCHANGE)
        except OSError as error:
            # EINVAL is also a directory that would move into itself; the kernel has found that out before us.
            if error.errno in {errno.ENOSYS, errno.ENOTSUP}:
                raise NotSupported("this filesystem cannot exchange two names") from error
            raise

    def _replace(self, leaving: int, old: bytes, entering: int, new: bytes) -> None:
        try:
            os.rename(old, new, src_dir_fd=leaving, dst_dir_fd=entering)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            self._sweep_in(entering, new)
            os.rename(old, new, src_dir_fd=leaving, dst_dir_fd=entering)

    @hookimpl
    async def fusekit_remove(self, directory: Entry, entry: Entry) -> None:
        await self._call(partial(self._remove, directory, entry))

    def _remove(self, directory: Entry, entry: Entry) -> None:
        name = checked_name(entry.name)
        with self._directory(directory) as opened:
            facts = self._disk.check(opened, name, entry)
            try:
                self._unlink(opened, name)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST} or not stat.S_ISDIR(facts.st_mode):
                    raise
                self._sweep_in(opened, name)
                self._unlink(opened, name)

    def _unlink(self, directory: int, name: bytes) -> None:
        if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            os.rmdir(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)

    def _sweep_in(self, directory: int, name: bytes) -> None:
        """Remove what a crash left in a directory that looks empty."""
        opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            sweep_all(opened)
        finally:
            os.close(opened)

    @hookimpl
    async def fusekit_setattr(self, directory: Entry, entry: Entry, changes: Attributes) -> Entry:
        return await self._call(partial(self._setattr, entry, changes))

    def _setattr(self, entry: Entry, changes: Attributes) -> Entry:
        with self._disk.known(entry) as opened:
            apply(opened, changes)
            return self._disk.entry(entry.name, opened)

    @hookimpl
    async def fusekit_getxattrs(self, entry: Entry) -> Mapping[str, bytes]:
        return await self._ask(partial(self._getxattrs, entry))

    def _getxattrs(self, entry: Entry) -> dict[str, bytes]:
        with self._disk.known(entry) as opened:
            try:
                return xattrs(at(opened))
            except OSError as error:
                if error.errno == errno.ENOTSUP:
                    return {}
                raise

    @hookimpl
    async def fusekit_setxattr(self, entry: Entry, name: str, value: bytes | None) -> None:
        await self._call(partial(self._setxattr, entry, name, value))

    def _setxattr(self, entry: Entry, name: str, value: bytes | None) -> None:
        spaced = b"user." + names.encode(name)
        with self._disk.known(entry) as opened:
            if value is None:
                os.removexattr(at(opened), spaced)
            else:
                os.setxattr(at(opened), spaced, value)

    @hookimpl
    async def fusekit_statfs(self, directory: Entry) -> Space:
        return await self._ask(partial(self._statfs, directory))

    def _statfs(self, directory: Entry) -> Space:
        with self._directory(directory) as opened:
            facts = os.fstatvfs(opened)
        space = Space(
            total_bytes=facts.f_blocks * facts.f_frsize,
            free_bytes=facts.f_bfree * facts.f_frsize,
            available_bytes=facts.f_bavail * facts.f_frsize,
        )
        if facts.f_files:  # some filesystems have no fixed number and say 0
            space = attrs.evolve(space, total_files=facts.f_files, free_files=facts.f_ffree)
        return space

    @contextlib.contextmanager
    def _directory(self, directory: Entry, *, readable: bool = False) -> Iterator[int]:
        """Give a descriptor of ``directory``, which must still be the one that core knows."""
        with self._disk.directory(directory.ref, readable=readable) as opened:
            if directory.id is not None and directory.id != self._disk.identity(os.stat(opened), opened):
                raise Stale(f"{directory.name!r} is another directory now")
            yield opened


def _inheriting(attributes: Attributes, facts: os.stat_result) -> Attributes:
    """Return ``attributes`` with the set-group-ID bit where the kernel gave it to a new directory."""
    if attributes.mode is None or not stat.S_ISDIR(facts.st_mode):
        return attributes
    return attrs.evolve(attributes, mode=attributes.mode | (facts.st_mode & stat.S_ISGID))


@hookimpl
def fusekit_backends() -> list[type]:
    return [LocalBackend]
