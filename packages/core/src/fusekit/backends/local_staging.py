"""How ``local:`` makes a new content visible whole or not at all: a hidden file beside its target, then a rename.

Part of a backend, blocking calls made in threads. The hidden file is locked (flock) by who writes it, so one that can
be locked was left by a crash and is swept away by whoever comes across it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from typing import Final

import attrs

from fusekit.api import Attributes, Busy, Caller, Entry, Exists, Invalid, IsDirectory, NotFound, Stale
from fusekit.backends.local_disk import (
    RENAME_NOREPLACE,
    Disk,
    apply,
    checked_name,
    copy_xattrs,
    hidden_name,
    is_hidden,
    owned,
    rename2,
)

COPY_BYTES: Final = 16 << 20
_LACKING: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})  # renameat2 flags that a filesystem has not


def hidden_for(key: str, name: str) -> bytes:
    """Return the name of the unfinished file of an upload: the same at each attempt, so that the next one finds it."""
    return hidden_name(hashlib.sha256(f"{key}\0{name}".encode("utf-8", "surrogateescape")).hexdigest()[:32])


def sweep(directory: int, name: bytes) -> bool:
    """Remove the unfinished file ``name`` unless somebody is writing it, and return whether it is gone."""
    try:
        found = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(found).st_nlink:  # else another one swept it, and the name may already be a new upload's
            os.unlink(name, dir_fd=directory)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(found)


def sweep_all(directory: int) -> None:
    """Remove what crashes left in a directory that is open for listing."""
    for name in map(os.fsencode, os.listdir(directory)):
        if is_hidden(name):
            sweep(directory, name)


@attrs.define(eq=False)
class Staged:
    """A content on its way to ``name``; ends with `commit` or `discard`, and `discard` after a commit does nothing.

    ``hidden`` is empty where the bytes are in an unnamed file elsewhere, because the directory takes no new names.
    """

    _disk: Disk
    _directory: int
    _name: bytes
    _shown: str
    _replacing: Entry | None
    _hidden: bytes = b""
    _file: int = -1

    @classmethod
    def begin(
        cls, disk: Disk, directory: Entry, name: str, replacing: Entry | None, hidden: bytes, mode: int
    ) -> Staged:
        """Check that ``name`` is as core believes, before any byte moves, and open the hidden file beside it."""
        with disk.directory(directory.ref) as found:
            encoded = checked_name(name)
            facts = _check_target(disk, found, encoded, name, replacing)
            staged = cls(disk, os.dup(found), encoded, name, replacing)
        try:
            staged._open(hidden, mode, facts)
        except BaseException:
            staged.discard()
            raise
        return staged

    def _open(self, hidden: bytes, mode: int, facts: os.stat_result | None) -> None:
        if facts is not None:
            mode = 0o600  # nobody reads more of the new content than of the old, before its mode is set
        try:
            while not self._created(hidden, mode):
                if not sweep(self._directory, hidden):
                    raise Busy(f"another process is writing {self._shown!r}")
        except PermissionError:
            if facts is None:
                raise
            # A file may be writable in a directory that is not; it is then written in place.
            with tempfile.TemporaryFile() as unnamed:
                self._file = os.dup(unnamed.fileno())

    def _created(self, hidden: bytes, mode: int) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            created = os.open(hidden, flags, mode, dir_fd=self._directory)
        except FileExistsError:
            return False
        # A sweeper may come between the two calls: then it has the lock first, or the file is gone when we have it.
        fcntl.flock(created, fcntl.LOCK_EX)
        if os.stat(created).st_nlink == 0:
            os.close(created)
            return False
        self._file, self._hidden = created, hidden
        return True

    @property
    def descriptor(self) -> int:
        """Return the descriptor of the file to fill."""
        return self._file

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        while len(data):
            count = os.pwrite(self._file, data, offset)
            data, offset = data[count:], offset + count

    def commit(self, attributes: Attributes, caller: Caller, fsync: bool) -> Entry:
        """Put the content in its place and return what is there now.

        Raises:
            Exists, Stale: the name is no longer as core believed; nothing changed.
        """
        facts = _check_target(self._disk, self._directory, self._name, self._shown, self._replacing)
        if facts is not None and (not self._hidden or not _can_be_replaced(facts)):
            self._rewrite(facts, attributes, fsync)
        else:
            given = owned(attributes, caller, self._directory) if facts is None else self._inherit(facts, attributes)
            apply(self._file, given)
            if fsync:
                os.fsync(self._file)
            self._rename()
        if fsync:
            self._sync_directory()
        return self._disk.entry(self._shown, self._directory, self._name)

    def _inherit(self, facts: os.stat_result, attributes: Attributes) -> Attributes:
        old = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            copy_xattrs(old, self._file)
        finally:
            os.close(old)
        return attributes.over(Attributes(mode=stat.S_IMODE(facts.st_mode), uid=facts.st_uid, gid=facts.st_gid))

    def _rename(self) -> None:
        hidden, directory, name = self._hidden, self._directory, self._name
        if self._replacing is None:
            move_new(directory, hidden, directory, name)
        else:
            # Looked at once more, as late as possible: see `LocalBackend` for what this does and does not promise.
            self._disk.check(directory, name, self._replacing)
            os.rename(hidden, name, src_dir_fd=directory, dst_dir_fd=directory)
        self._hidden = b""

    def _rewrite(self, facts: os.stat_result, attributes: Attributes, fsync: bool) -> None:
        """Copy the content over the old one: not atomic, but all names of the file go on naming it."""
        target = os.open(self._name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            size = os.stat(self._file).st_size
            if size > facts.st_size:
                os.posix_fallocate(target, 0, size)  # a full disk is found before anything is overwritten
            copy_bytes(self._file, target, size)
            os.truncate(target, size)
            now = os.stat(target)
            if attributes.mtime_ns is None and (now.st_mtime_ns, now.st_size) == (facts.st_mtime_ns, facts.st_size):
                # Written twice within a tick of the clock: the version must differ all the same.
                attributes = attributes.over(Attributes(mtime_ns=now.st_mtime_ns + 1))
            apply(target, attributes)
            if fsync:
                os.fsync(target)
        finally:
            os.close(target)

    def _sync_directory(self) -> None:
        # Without the right to list it a directory cannot be opened for syncing; the file itself is synced.
        with contextlib.suppress(PermissionError):
            opened = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)

    def discard(self) -> None:
        """Close and remove all that is not committed."""
        if self._hidden:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._hidden, dir_fd=self._directory)
            self._hidden = b""
        for descriptor in (self._file, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._directory = -1


def copy_bytes(source: int, target: int, size: int) -> None:
    """Copy ``size`` bytes from the start of one open file to the start of another."""
    offset = 0
    while offset < size:
        try:
            count = os.copy_file_range(source, target, min(COPY_BYTES, size - offset), offset, offset)
        except OSError as error:
            if error.errno not in {errno.EXDEV, *_LACKING}:
                raise
            data = os.pread(source, min(COPY_BYTES, size - offset), offset)
            count = os.pwrite(target, data, offset) if data else 0
        if count == 0:
            raise Stale("the file shrank while it was copied")
        offset += count


def move_new(source: int, name: bytes, target: int, new_name: bytes) -> None:
    """Rename to a name that must be free.

    Where the filesystem has no such rename, a second name and a removal do it for files; for a directory the name is
    looked up just before, and an empty directory that somebody makes in that instant is replaced.
    """
    try:
        rename2(source, name, target, new_name, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
    else:
        return
    if stat.S_ISDIR(os.stat(name, dir_fd=source, follow_symlinks=False).st_mode):
        with contextlib.suppress(FileNotFoundError):
            os.stat(new_name, dir_fd=target, follow_symlinks=False)
            raise Exists(os.strerror(errno.EEXIST))
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
    else:
        os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        os.unlink(name, dir_fd=source)


def _check_target(
    disk: Disk, directory: int, name: bytes, shown: str, replacing: Entry | None
) -> os.stat_result | None:
    """Return the facts about the file to write over, None where there is none, after comparing it to ``replacing``."""
    if os.stat(directory).st_nlink == 0:
        raise NotFound("the directory was removed")
    try:
        facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        if replacing is not None:
            raise Stale(f"{shown!r} was removed meanwhile") from None
        return None
    if replacing is None:
        raise Exists(f"{shown!r} is taken")
    if stat.S_ISDIR(facts.st_mode):
        raise IsDirectory(f"{shown!r} is a directory")
    if not stat.S_ISREG(facts.st_mode):
        raise Invalid(f"{shown!r} is no regular file")
    return disk.check(directory, name, replacing)


def _can_be_replaced(facts: os.stat_result) -> bool:
    """Return whether another file at its name is as good as this one: no second name, and an owner that we can give."""
    if facts.st_nlink > 1:
        return False
    user = os.geteuid()
    return user == 0 or (facts.st_uid == user and facts.st_gid in {os.getegid(), *os.getgroups()})
