"""Names and what they stand for: folds, limits, loops, objects that come back, and views of several users."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio.testing

from fusekit.backends.memory import MemoryBackend
from fusekit.errors import Denied, Exists, Invalid, IsDirectory, NotDirectory, NotEmpty, NotFound, NotSupported
from fusekit.plugins.specs import hookimpl
from fusekit.testing.driven import ME
from fusekit.testing.driven import opened as driven
from fusekit.types import Caller, Capabilities, Content, Entry, Page, Rename
from fusekit.vfs.inodes import ROOT
from fusekit.vfs.renames import RENAME_EXCHANGE


class Folding(MemoryBackend):
    """Names that differ only in case are one name; they are short and UTF-8."""

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return attrs.evolve(super().fusekit_capabilities(), fold=str.casefold, name_bytes_max=20, utf8_names=True)


async def test_names_with_equal_folds_are_one_and_shown_as_the_service_spells_them(tmp_path: Path) -> None:
    async with driven(tmp_path, Folding) as setup:
        await setup.remotely("Readme", b"x")
        assert await setup.names() == ["Readme"]
        numbers = {(await setup.fs.lookup(ROOT, name, ME)).ino for name in ("Readme", "README", "readme")}
        assert len(numbers) == 1
        with pytest.raises(Exists):
            await setup.fs.create(ROOT, "README", 0o644, os.O_CREAT | os.O_EXCL | os.O_WRONLY, ME)
        await setup.fs.rename(ROOT, "Readme", ROOT, "README", 0, ME)
        assert await setup.names() == ["README"]
        assert (await setup.fs.lookup(ROOT, "readme", ME)).ino in numbers


async def test_names_that_the_service_cannot_take_are_refused_by_number(tmp_path: Path) -> None:
    async with driven(tmp_path, Folding) as setup:
        for name, number in (("n" * 21, errno.ENAMETOOLONG), ("ü" * 11, errno.ENAMETOOLONG), ("\udcff", errno.EILSEQ)):
            with pytest.raises(Invalid) as refused:
                await setup.fs.mkdir(ROOT, name, 0o755, ME)
            assert refused.value.errno == number
        assert "mkdir" not in setup.calls


class Looping(MemoryBackend):
    """The directory ``d`` holds itself."""

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        await super().fusekit_list(directory, page)
        if directory.name == "d":
            await page([attrs.evolve(directory, name="again")])


async def test_a_directory_inside_itself_is_left_out_of_listings(tmp_path: Path) -> None:
    async with driven(tmp_path, Looping) as setup:
        made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
        await setup.make("f", b"", made.ino)
        setup.fs.tree.metadata.expire(made.ino)
        assert await setup.names(made.ino) == ["f"]
        assert setup.volume.metrics.skipped_names == 1


async def test_a_write_that_makes_a_new_object_keeps_the_number(tmp_path: Path) -> None:
    class Renewing(MemoryBackend):
        @hookimpl
        async def fusekit_write(
            self, directory: Entry | None, name: str, replacing: Entry | None, content: Content, caller: Caller
        ) -> Entry:
            if replacing is not None and directory is not None:
                await self.fusekit_remove(directory, replacing)
            return await super().fusekit_write(directory, name, None, content, caller)

    async with driven(tmp_path, Renewing) as setup:
        attr = await setup.make("f", b"one")
        before = (await setup.there())["f"].id
        await setup.replace(attr.ino, b"two")
        assert (await setup.there())["f"].id != before
        assert (await setup.fs.lookup(ROOT, "f", ME)).ino == attr.ino


async def test_a_file_removed_and_made_again_has_another_number_while_the_old_one_is_open(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        attr = await setup.make("f", b"one")
        opened = await setup.fs.open(attr.ino, os.O_RDONLY, ME)
        await setup.fs.unlink(ROOT, "f", ME)
        again = await setup.make("f", b"two")
        assert again.ino != attr.ino
        assert bytes(await setup.fs.read(opened.handle, 0, 10)) == b"one"
        await setup.fs.release(opened.handle)


async def test_renaming_one_name_of_a_file_to_another_does_nothing(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        attr = await setup.make("a", b"x")
        await setup.fs.link(attr.ino, ROOT, "b", ME)
        setup.reset()
        await setup.fs.rename(ROOT, "a", ROOT, "b", 0, ME)
        assert "rename" not in setup.calls
        assert await setup.names() == ["a", "b"]


async def test_a_rename_or_remove_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        await setup.make("file", b"x")
        full = await setup.fs.mkdir(ROOT, "full", 0o755, ME)
        await setup.make("f", b"", full.ino)
        await setup.fs.mkdir(ROOT, "empty", 0o755, ME)
        tries: Sequence[tuple[Any, type[Exception]]] = [
            (lambda: setup.fs.rename(ROOT, "empty", ROOT, "full", 0, ME), NotEmpty),
            (lambda: setup.fs.rename(ROOT, "file", ROOT, "full", 0, ME), IsDirectory),
            (lambda: setup.fs.rename(ROOT, "full", ROOT, "file", 0, ME), NotDirectory),
            (lambda: setup.fs.rmdir(ROOT, "full", ME), NotEmpty),
            (lambda: setup.fs.rmdir(ROOT, "file", ME), NotDirectory),
            (lambda: setup.fs.unlink(ROOT, "empty", ME), IsDirectory),
        ]
        for attempt, error in tries:
            with pytest.raises(error):
                await attempt()
        assert await setup.names() == ["empty", "file", "full"]


class Fixed(MemoryBackend):
    """Renames files, and to free names only."""

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return attrs.evolve(super().fusekit_capabilities(), rename=Rename.FILES)


async def test_a_rename_that_the_service_lacks_is_exdev_so_that_mv_copies(tmp_path: Path) -> None:
    async with driven(tmp_path, Fixed) as setup:
        await setup.make("a", b"a")
        await setup.make("b", b"b")
        await setup.fs.mkdir(ROOT, "d", 0o755, ME)
        for name, target, flags, number in (
            ("a", "b", 0, errno.EXDEV),
            ("d", "e", 0, errno.EXDEV),
            ("a", "b", RENAME_EXCHANGE, errno.EINVAL),
        ):
            with pytest.raises(NotSupported) as refused:
                await setup.fs.rename(ROOT, name, ROOT, target, flags, ME)
            assert refused.value.errno == number
        await setup.fs.rename(ROOT, "a", ROOT, "c", 0, ME)
        assert await setup.names() == ["b", "c", "d"]


class Personal(MemoryBackend):
    """User 2 does not see ``hidden`` and may not open ``secret``; user 3 is not signed in."""

    @hookimpl
    async def fusekit_principal(self, uid: int) -> str:
        if uid == 3:
            raise Denied("not signed in")
        return f"user {uid}"

    @hookimpl
    async def fusekit_access(self, entry: Entry, caller: Caller) -> None:
        if caller.principal == "user 2" and entry.name == "secret":
            raise Denied("not for you")

    @hookimpl
    async def fusekit_list(  # type: ignore[override]  # memory names fewer arguments
        self, directory: Entry, page: Page, caller: Caller
    ) -> None:
        async def seen(entries: Sequence[Entry]) -> None:
            await page([entry for entry in entries if caller.principal != "user 2" or entry.name != "hidden"])

        await super().fusekit_list(directory, seen)


async def test_each_principal_has_a_view_of_its_own_and_the_kernel_keeps_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1)
    async with driven(tmp_path, Personal) as setup:
        await setup.remotely("hidden", b"h")
        await setup.remotely("secret", b"s")
        one, two = [await setup.fs.caller(uid, uid, 1) for uid in (1, 2)]
        seen = {}
        for caller in (one, two):
            handle = await setup.fs.opendir(ROOT, caller)
            seen[caller.principal] = {name for name, _ in await setup.fs.readdir(handle, 2)}
            assert await setup.fs.readdir(handle, 2 + len(seen[caller.principal])) == []
            setup.fs.releasedir(handle)
        assert seen == {"user 1": {"hidden", "secret"}, "user 2": {"secret"}}
        assert (await setup.fs.lookup(ROOT, "hidden", one)).valid_s == 0
        with pytest.raises(NotFound):
            await setup.fs.lookup(ROOT, "hidden", two)
        assert setup.fs.missing_s(ROOT, two) == 0
        attr = await setup.fs.lookup(ROOT, "secret", one)
        assert (await setup.fs.lookup(ROOT, "secret", two)).ino == attr.ino, "one number for all"
        with pytest.raises(Denied):
            await setup.fs.open(attr.ino, os.O_RDONLY, two)
        opened = await setup.fs.open(attr.ino, os.O_RDONLY, one)
        assert bytes(await setup.fs.read(opened.handle, 0, 10)) == b"s"
        await setup.fs.release(opened.handle)
        with pytest.raises(Denied):
            await setup.fs.caller(3, 3, 1)
