"""Modes, owners, times and extended attributes: what is shown and what is kept where the service has no place for them."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from fusekit.backends.memory import MemoryBackend, Options, _Node
from fusekit.errors import NotFound, NotSupported
from fusekit.plugins.specs import OPERATIONS, hookimpl
from fusekit.settings import KeepAttributes
from fusekit.testing.driven import ME, Setup
from fusekit.testing.driven import opened as driven
from fusekit.types import Attributes, Capabilities, Entry, Mount
from fusekit.vfs.filesystem import SPACE_UNKNOWN, Changes
from fusekit.vfs.inodes import ROOT

LACKS = {"setattr", "getxattrs", "setxattr", "link", "symlink", "mknod", "statfs", "access", "principal", "exchange"}


class Plain(MemoryBackend):
    """A service as most are: names, bytes and a time, nothing else; it tells no modes and no owners."""

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        hooks = frozenset(OPERATIONS) - {f"fusekit_{hook}" for hook in LACKS}
        return attrs.evolve(super().fusekit_capabilities(), hooks=hooks)

    def _entry(self, name: str, node: _Node) -> Entry:
        return attrs.evolve(super()._entry(name, node), mode=None, uid=None, gid=None)


async def shown(setup: Setup, ino: int) -> tuple[int, int, int]:
    """Return mode bits, owner and group as a stat shows them."""
    attr = await setup.fs.getattr(ino, ME)
    return stat.S_IMODE(attr.mode), attr.uid, attr.gid


async def change(setup: Setup, ino: int, **changes: int) -> None:
    await setup.fs.setattr(ino, Changes(attributes=Attributes(**changes)), None, ME)


async def test_what_the_service_does_not_tell_is_shown_as_the_mount_says(tmp_path: Path) -> None:
    async with driven(tmp_path, Plain, uid=7, gid=8, umask=0o027) as setup:
        await setup.remotely("f", b"x")
        assert await shown(setup, (await setup.fs.lookup(ROOT, "f", ME)).ino) == (0o640, 7, 8)
        assert await shown(setup, ROOT) == (0o750, 7, 8)
    async with driven(tmp_path / "forced", Plain, file_mode=0o444, dir_mode=0o555) as setup:
        await setup.remotely("f", b"x")
        assert (await shown(setup, (await setup.fs.lookup(ROOT, "f", ME)).ino))[0] == 0o444
        assert (await shown(setup, ROOT))[0] == 0o555
    async with driven(tmp_path / "told", file_mode=0o444, umask=0o777) as setup:
        await setup.make("f", b"x")
        assert (await shown(setup, (await setup.fs.lookup(ROOT, "f", ME)).ino))[0] == 0o644, "the service tells it"


async def test_local_attributes_last_while_the_version_does(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, Plain, uid=7, gid=8) as setup:
        attr = await setup.make("f", b"x")
        assert await shown(setup, attr.ino) == (0o644, ME.uid, ME.gid), "as the program made it"
        await change(setup, attr.ino, mode=0o600, uid=1, gid=2, mtime_ns=1000)
        await trio.sleep(6)
        attr = await setup.fs.lookup(ROOT, "f", ME)
        assert (attr.mtime_ns, await shown(setup, attr.ino)) == (1000, (0o600, 1, 2))
        await setup.replace(attr.ino, b"our own new version")
        assert await shown(setup, attr.ino) == (0o600, 1, 2)
        assert (await setup.fs.getattr(attr.ino, ME)).mtime_ns > 1000
        await setup.remotely("f", b"somebody else's")
        await trio.sleep(6)
        attr = await setup.fs.lookup(ROOT, "f", ME)
        assert await shown(setup, attr.ino) == (0o644, 7, 8)


async def test_local_attributes_end_with_the_mount(tmp_path: Path) -> None:
    backend: list[Plain] = []

    def make(options: Options, mount: Mount) -> Plain:
        backend[:] = backend or [Plain(options, mount)]
        return backend[0]

    async with driven(tmp_path, make) as setup:
        await change(setup, (await setup.make("f", b"x")).ino, mode=0o600)
    async with driven(tmp_path, make) as setup:
        assert (await shown(setup, (await setup.fs.lookup(ROOT, "f", ME)).ino))[0] == 0o644


async def test_local_attributes_move_with_a_rename(tmp_path: Path) -> None:
    async with driven(tmp_path, Plain) as setup:
        attr = await setup.make("f", b"x")
        await change(setup, attr.ino, mode=0o600, mtime_ns=1000)
        await setup.fs.rename(ROOT, "f", ROOT, "g", 0, ME)
        moved = await setup.fs.lookup(ROOT, "g", ME)
        assert (moved.mtime_ns, await shown(setup, moved.ino)) == (1000, (0o600, ME.uid, ME.gid))


async def test_reject_refuses_and_ignore_forgets(tmp_path: Path) -> None:
    async with driven(tmp_path / "reject", Plain, attributes=KeepAttributes.REJECT) as setup:
        attr = await setup.make("f", b"x")
        with pytest.raises(NotSupported) as refused:
            await change(setup, attr.ino, mode=0o600)
        assert refused.value.errno == errno.EPERM
        assert (await shown(setup, attr.ino))[0] == 0o644
    async with driven(tmp_path / "ignore", Plain, attributes=KeepAttributes.IGNORE) as setup:
        attr = await setup.make("f", b"x")
        await change(setup, attr.ino, mode=0o600)
        assert (await shown(setup, attr.ino))[0] == 0o644


async def test_a_directory_is_newer_after_each_change_of_a_name_and_each_commit_in_it(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
        times = [made.mtime_ns]

        async def newer() -> None:
            times.append((await setup.fs.getattr(made.ino, ME)).mtime_ns)
            assert times[-1] > times[-2]

        attr = await setup.make("f", b"x", made.ino)
        await newer()
        await setup.replace(attr.ino, b"y")
        await newer()
        await setup.fs.rename(made.ino, "f", made.ino, "g", 0, ME)
        await newer()
        await setup.fs.unlink(made.ino, "g", ME)
        await newer()


async def test_reading_moves_no_time(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        attr = await setup.make("f", b"x")
        before = await setup.fs.getattr(attr.ino, ME)
        await setup.content("f")
        after = await setup.fs.getattr(attr.ino, ME)
        assert (after.atime_ns, after.mtime_ns, after.ctime_ns) == (before.atime_ns, before.mtime_ns, before.ctime_ns)


async def test_what_a_place_cannot_make_is_refused_with_eperm(tmp_path: Path) -> None:
    async with driven(tmp_path, Plain) as setup:
        attr = await setup.make("f", b"x")
        makes: list[Callable[[], Any]] = [
            lambda: setup.fs.link(attr.ino, ROOT, "second", ME),
            lambda: setup.fs.symlink(ROOT, "link", "f", ME),
            lambda: setup.fs.mknod(ROOT, "pipe", stat.S_IFIFO | 0o644, 0, ME),
        ]
        for make in makes:
            with pytest.raises(NotSupported) as refused:
                await make()
            assert refused.value.errno == errno.EPERM
        assert await setup.names() == ["f"]


async def test_space_that_the_service_does_not_tell_is_large(tmp_path: Path) -> None:
    async with driven(tmp_path, Plain) as setup:
        assert await setup.fs.statfs(ROOT, ME) == SPACE_UNKNOWN
        assert SPACE_UNKNOWN.free_bytes == 1 << 50


async def test_without_extended_attributes_there_are_none_and_setting_one_is_refused(tmp_path: Path) -> None:
    async with driven(tmp_path, Plain) as setup:
        attr = await setup.make("f", b"x")
        assert await setup.fs.listxattr(attr.ino, ME) == []
        with pytest.raises(NotFound) as missing:
            await setup.fs.getxattr(attr.ino, "user.x", ME)
        with pytest.raises(NotSupported) as refused:
            await setup.fs.setxattr(attr.ino, "user.x", b"1", ME)
        assert (missing.value.errno, refused.value.errno) == (errno.ENODATA, errno.EOPNOTSUPP)


async def test_fusekits_own_attributes_are_there_and_not_listed(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        attr = await setup.make("f", b"four")
        version = (await setup.there())["f"].version
        expected = {"state": "clean", "ref": "/f", "version": version, "cached": "4/4"}
        for name, value in expected.items():
            assert (await setup.fs.getxattr(attr.ino, f"user.fusekit.{name}", ME)).decode() == value
        assert await setup.fs.listxattr(attr.ino, ME) == []
