"""The adapter: each request of the kernel becomes one call of the vfs, each error a number.

Fuse layer. Nothing is decided here. No exception passes: what leaves a pyfuse3 handler would end the mount for
everybody, so what is unknown is EIO, with a traceback in the log. Every handler of pyfuse3 is implemented, because
its defaults answer ENOSYS, after which the kernel never asks again.
"""

from __future__ import annotations

import errno
import functools
import logging
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar, cast

import pyfuse3

from fusekit import names
from fusekit.errors import BackendError, NotFound
from fusekit.fuse.attributes import entry_attributes, missing_entry, statvfs
from fusekit.fuse.errno import number
from fusekit.types import Attributes, Caller, Want
from fusekit.vfs.filesystem import Changes, Filesystem, Opened

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

R_OK, W_OK, X_OK = 4, 2, 1


def _answers(
    handler: Callable[Concatenate[Adapter, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Adapter, P], Coroutine[Any, Any, T]]:
    """Let nothing but a number leave ``handler``."""

    @functools.wraps(handler)
    async def answered(self: Adapter, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except (BackendError, OSError) as error:
            logger.debug("%s%s: %s: %s", handler.__name__, args, type(error).__name__, error)
            raise pyfuse3.FUSEError(number(error)) from error
        except Exception as error:
            logger.exception("%s failed in a way that nobody foresaw", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return cast("Callable[Concatenate[Adapter, P], Coroutine[Any, Any, T]]", answered)


class Adapter(pyfuse3.Operations):
    """The handlers of one mount."""

    supports_dot_lookup = True
    enable_writeback_cache = False  # with it the kernel would own size and mtime
    enable_acl = False

    def __init__(self, filesystem: Filesystem, name_bytes_max: int = names.NAME_BYTES_MAX) -> None:
        super().__init__()
        self._fs = filesystem
        self._name_bytes_max = name_bytes_max

    async def _caller(self, ctx: pyfuse3.RequestContext) -> Caller:
        return await self._fs.caller(ctx.uid, ctx.gid, ctx.pid)

    # ---- names and attributes ----------------------------------------------------------------------------------

    @_answers
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        caller = await self._caller(ctx)
        try:
            return entry_attributes(await self._fs.lookup(parent_inode, names.decode(name), caller))
        except NotFound as error:
            if error.errno is not None:
                raise
            return missing_entry(self._fs.missing_s(parent_inode, caller))

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        try:
            self._fs.forget(inode_list)
        except Exception:
            logger.exception("forget failed in a way that nobody foresaw")

    @_answers
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return entry_attributes(await self._fs.getattr(inode, await self._caller(ctx)))

    @_answers
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        changes = Changes(
            size=attr.st_size if fields.update_size else None,
            attributes=Attributes(
                mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                atime_ns=attr.st_atime_ns if fields.update_atime else None,
                mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ),
        )
        return entry_attributes(await self._fs.setattr(inode, changes, fh, await self._caller(ctx)))

    @_answers
    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        return pyfuse3.FileNameT(names.encode(await self._fs.readlink(inode, await self._caller(ctx))))

    @_answers
    async def access(self, inode: pyfuse3.InodeT, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext) -> bool:
        want = Want(0)
        for bit, flag in ((R_OK, Want.READ), (W_OK, Want.WRITE), (X_OK, Want.EXECUTE)):
            if mode & bit:
                want |= flag
        await self._fs.access(inode, want, await self._caller(ctx))
        return True

    @_answers
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        space = await self._fs.statfs(pyfuse3.ROOT_INODE, await self._caller(ctx))
        return statvfs(space, self._name_bytes_max)

    # ---- directories -------------------------------------------------------------------------------------------

    @_answers
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(await self._fs.opendir(inode, await self._caller(ctx)))

    @_answers
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        at = start_id
        while chunk := await self._fs.readdir(fh, at):
            for name, attr in chunk:
                at += 1
                encoded = pyfuse3.FileNameT(names.encode(name))
                if not pyfuse3.readdir_reply(token, encoded, entry_attributes(attr), at):
                    return
                if at > 2:  # the kernel takes no reference to `.` and `..`, which come first
                    self._fs.listed(fh, attr)
            if not self._fs.more(fh, at):  # what is here is answered now, not when the buffer is full
                return

    @_answers
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        self._fs.releasedir(fh)

    @_answers
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        await self._fs.fsyncdir(fh)

    @_answers
    async def mkdir(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        return entry_attributes(await self._fs.mkdir(parent_inode, names.decode(name), mode, await self._caller(ctx)))

    @_answers
    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        return entry_attributes(
            await self._fs.mknod(parent_inode, names.decode(name), mode, rdev, await self._caller(ctx))
        )

    @_answers
    async def symlink(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        target: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        caller = await self._caller(ctx)
        return entry_attributes(await self._fs.symlink(parent_inode, names.decode(name), names.decode(target), caller))

    @_answers
    async def link(
        self,
        inode: pyfuse3.InodeT,
        new_parent_inode: pyfuse3.InodeT,
        new_name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        caller = await self._caller(ctx)
        return entry_attributes(await self._fs.link(inode, new_parent_inode, names.decode(new_name), caller))

    @_answers
    async def unlink(self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.unlink(parent_inode, names.decode(name), await self._caller(ctx))

    @_answers
    async def rmdir(self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.rmdir(parent_inode, names.decode(name), await self._caller(ctx))

    @_answers
    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: pyfuse3.FileNameT,
        parent_inode_new: pyfuse3.InodeT,
        name_new: pyfuse3.FileNameT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        await self._fs.rename(
            parent_inode_old,
            names.decode(name_old),
            parent_inode_new,
            names.decode(name_new),
            flags,
            await self._caller(ctx),
        )

    # ---- files -------------------------------------------------------------------------------------------------

    @_answers
    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        self._fs.tree.calls.forget_failures()
        return _file_info(await self._fs.open(inode, flags, await self._caller(ctx)))

    @_answers
    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        caller = await self._caller(ctx)
        opened, attr = await self._fs.create(parent_inode, names.decode(name), mode, flags, caller)
        return _file_info(opened), entry_attributes(attr)

    @_answers
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return await self._fs.read(fh, off, size)  # type: ignore[return-value]  # any buffer will do

    @_answers
    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        return await self._fs.write(fh, off, buf)

    @_answers
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        await self._fs.flush(fh)

    @_answers
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        await self._fs.fsync(fh)

    @_answers
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        await self._fs.release(fh)

    async def poll(self, *_: object) -> NoReturn:
        """Say once that files are always ready, which is what ENOSYS means to the kernel for this one operation.

        It then answers poll(2) by itself; any other answer would cost a request for every poll of every file.
        """
        raise pyfuse3.FUSEError(errno.ENOSYS)

    # ---- extended attributes -----------------------------------------------------------------------------------

    @_answers
    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._fs.getxattr(inode, names.decode(name), await self._caller(ctx))

    @_answers
    async def listxattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> Sequence[pyfuse3.XAttrNameT]:
        found = await self._fs.listxattr(inode, await self._caller(ctx))
        return [pyfuse3.XAttrNameT(names.encode(name)) for name in found]

    @_answers
    async def setxattr(
        self,
        inode: pyfuse3.InodeT,
        name: pyfuse3.XAttrNameT,
        value: bytes,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        await self._fs.setxattr(inode, names.decode(name), value, await self._caller(ctx))

    @_answers
    async def removexattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.setxattr(inode, names.decode(name), None, await self._caller(ctx))

    def stacktrace(self) -> None:
        """Do nothing: anybody who may write to the root could fill the log with this."""


def _file_info(opened: Opened) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(
        fh=pyfuse3.FileHandleT(opened.handle), direct_io=opened.direct_io, keep_cache=opened.keep_cache
    )
