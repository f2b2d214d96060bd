"""A disk that forgets what was not synced when the power goes: a file system in memory, with what is durable of it beside.

Outside the layers; with pyfuse3, because nothing else sees every fsync of a process, SQLite's among them. Content is durable
as of the last fsync of its file, a name as of the last fsync of its directory, and that of a directory only if it is
itself durable in the one above; nothing else is, though real disks keep more. `lossy_disk` runs one in a process of its
own. The power goes when it is told, or at the n-th fsync: half of the time just before that takes effect, half just after.
From then on every call fails, and `Disk.restore` writes into the directory below the mount what is left:

- ``strict``: what is durable;
- ``names``: all names, with the contents that are durable (files that were never synced are empty, as on ext4);
- ``some``: of each file and directory at random what is durable or what was there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import pyfuse3
import trio

from fusekit.fuse.mounts import detach, mounted_at

WAYS: Final = ("strict", "names", "some")
CUT: Final = "cut"
_TIMEOUT_S: Final = 3600.0  # nobody else changes anything
_BLOCKS: Final = 1 << 20


@attrs.define(eq=False)
class _Node:
    number: int
    mode: int
    data: bytearray = attrs.field(factory=bytearray)
    names: dict[bytes, _Node] = attrs.field(factory=dict)
    durable_data: bytes = b""
    durable_names: dict[bytes, _Node] = attrs.field(factory=dict)
    mtime_ns: int = attrs.field(factory=time.time_ns)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def sync(self) -> None:
        self.durable_data = bytes(self.data)
        self.durable_names = dict(self.names)


class _Power(pyfuse3.Operations):
    """The file system. ``fails_at``: the number of the fsync at which the power goes, 0 for never."""

    supports_dot_lookup = False

    def __init__(self, fails_at: int, seed: int) -> None:
        super().__init__()
        self.root = _Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755)
        self._nodes: dict[int, _Node] = {pyfuse3.ROOT_INODE: self.root}
        self._random = random.Random(seed)
        self._fails_at = fails_at
        self._syncs = 0
        self.off = False

    def cut(self) -> None:
        """Let the power go."""
        if not self.off:
            self.off = True
            print(CUT, flush=True)

    def _node(self, number: int) -> _Node:
        if self.off:
            raise pyfuse3.FUSEError(errno.EIO)
        return self._nodes[number]

    def _made(self, parent: int, name: bytes, mode: int) -> _Node:
        directory = self._node(parent)
        if name in directory.names:
            raise pyfuse3.FUSEError(errno.EEXIST)
        node = _Node(max(self._nodes) + 1, mode)
        self._nodes[node.number] = directory.names[name] = node
        return node

    def _child(self, parent: int, name: bytes) -> _Node:
        found = self._node(parent).names.get(name)
        if found is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return found

    def _synced(self, number: int) -> None:
        node = self._node(number)
        self._syncs += 1
        fails = self._syncs == self._fails_at
        if not fails or self._random.random() < 0.5:
            node.sync()
        if fails:
            self.cut()
            raise pyfuse3.FUSEError(errno.EIO)

    async def fsync(self, fh: int, datasync: bool) -> None:
        self._synced(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        self._synced(fh)

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        return _attributes(self._child(parent_inode, name))

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        return _attributes(self._node(inode))

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> pyfuse3.EntryAttributes:
        node = self._node(inode)
        if fields.update_size:
            del node.data[attr.st_size :]
            node.data.extend(bytes(attr.st_size - len(node.data)))
        if fields.update_mode:
            node.mode = attr.st_mode
        node.mtime_ns = attr.st_mtime_ns if fields.update_mtime else time.time_ns()
        return _attributes(node)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return _attributes(self._made(parent_inode, name, stat.S_IFDIR | mode & ~ctx.umask))

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        node = self._made(parent_inode, name, stat.S_IFREG | mode & ~ctx.umask)
        return _opened(node), _attributes(node)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        node = self._node(inode)
        if flags & os.O_TRUNC:
            node.data.clear()
        return _opened(node)

    async def opendir(self, inode: int, ctx: Any) -> int:
        return self._node(inode).number

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        for number, (name, node) in enumerate(list(self._node(fh).names.items())):
            if number >= start_id and not pyfuse3.readdir_reply(token, name, _attributes(node), number + 1):
                return

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(self._node(fh).data[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        node = self._node(fh)
        node.data.extend(bytes(max(0, off - len(node.data))))
        node.data[off : off + len(buf)] = buf
        node.mtime_ns = time.time_ns()
        return len(buf)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        self._child(parent_inode, name)
        del self._node(parent_inode).names[name]  # what is open reads on

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        if self._child(parent_inode, name).names:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        del self._node(parent_inode).names[name]

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        if flags:
            raise pyfuse3.FUSEError(errno.EINVAL)
        node = self._child(parent_inode_old, name_old)
        del self._node(parent_inode_old).names[name_old]
        self._node(parent_inode_new).names[name_new] = node

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        node = self._node(inode)
        self._node(new_parent_inode).names[new_name] = node
        return _attributes(node)

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = 65536
        found.f_blocks = found.f_bfree = found.f_bavail = _BLOCKS
        found.f_files = found.f_ffree = found.f_favail = _BLOCKS
        found.f_namemax = 255
        return found

    async def flush(self, fh: int) -> None:
        self._node(fh)

    async def release(self, fh: int) -> None:
        """Keep it: who syncs a name later has another descriptor."""

    async def releasedir(self, fh: int) -> None:
        """Nothing is held."""

    async def forget(self, inode_list: Any) -> None:
        """Nothing is forgotten: a test is short."""


def _opened(node: _Node) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(node.number), keep_cache=True)


def _attributes(node: _Node) -> pyfuse3.EntryAttributes:
    found = pyfuse3.EntryAttributes()
    found.st_ino = pyfuse3.InodeT(node.number)
    found.st_mode = pyfuse3.ModeT(node.mode)
    found.st_size = len(node.data)
    found.st_blocks = (len(node.data) + 511) // 512
    found.st_nlink = 1
    found.st_uid, found.st_gid = os.getuid(), os.getgid()
    found.st_mtime_ns = found.st_ctime_ns = found.st_atime_ns = node.mtime_ns
    found.attr_timeout = found.entry_timeout = _TIMEOUT_S
    return found


def _write_left(node: _Node, path: Path, way: str, chance: random.Random) -> None:
    """Write what is left of ``node`` to ``path``."""
    kept = way == "strict" or (way == "some" and chance.random() < 0.5)
    if node.is_directory:
        path.mkdir(exist_ok=True, mode=stat.S_IMODE(node.mode))
        for name, child in (node.durable_names if kept else node.names).items():
            _write_left(child, path / os.fsdecode(name), way, chance)
    else:
        path.write_bytes(node.durable_data if kept or way == "names" else bytes(node.data))
        path.chmod(stat.S_IMODE(node.mode))


async def _serve(directory: str, fails_at: int, seed: int) -> None:
    power = _Power(fails_at, seed)
    pyfuse3.init(power, directory, {"fsname=lossy"})
    way = ""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            print("ready", flush=True)
            while line := (await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)).strip():
                if line == CUT:
                    power.cut()
                else:
                    way = line
                    break
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)
    if way:
        _write_left(power.root, Path(directory), way, random.Random(seed))
        print("restored", flush=True)


class LossyDisk:
    """One that runs; ``output`` has a line as soon as the power is gone."""

    def __init__(self, directory: Path, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.directory = directory
        self.output = process.stdout
        self._input = process.stdin
        self._process = process
        self._failed = False

    @property
    def failed(self) -> bool:
        """Return whether the power has gone."""
        if not self._failed and select.select([self.output], [], [], 0)[0]:
            self.cut()
        return self._failed

    def cut(self) -> None:
        """Let the power go, unless it has gone already."""
        if not self._failed:
            self._say(CUT)
            if self.output.readline().strip() != CUT:
                raise RuntimeError("the disk has failed otherwise than it should")
            self._failed = True

    def restore(self, way: str) -> None:
        """Replace the disk by a plain directory with what is left on it, when nobody uses it any more."""
        self.cut()
        self._say(way)
        if self.output.readline().strip() != "restored":
            raise RuntimeError("the disk could not be restored")
        self._process.wait()

    def _say(self, word: str) -> None:
        self._input.write(f"{word}\n")
        self._input.flush()


@contextmanager
def lossy_disk(directory: Path, fails_at: int, seed: int) -> Iterator[LossyDisk]:
    """Mount one on ``directory``, made if need be."""
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-P", "-m", "fusekit.testing.lossy_disk", str(directory), str(fails_at), str(seed)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
    ) as process:
        try:
            disk = LossyDisk(directory, process)
            if disk.output.readline().strip() != "ready":
                raise RuntimeError("the disk cannot be mounted")
            yield disk
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin and process.stdin.close()
            process.wait()
            if mounted_at(directory) is not None:
                detach(directory, lazy=True)


if __name__ == "__main__":
    trio.run(_serve, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
