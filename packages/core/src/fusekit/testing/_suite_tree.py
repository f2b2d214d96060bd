"""The part of the conformance suite for names and attributes: directories, links, rename, remove, xattrs.

Outside the layers; see `fusekit.testing.conformance`.
"""

from __future__ import annotations

import contextlib

import pytest
import trio

from fusekit.errors import (
    BackendError,
    Denied,
    Exists,
    Invalid,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotSupported,
    Stale,
)
from fusekit.testing._suite_base import Suite, agree, covers, unlike
from fusekit.testing.harness import ME, NO_ATTRIBUTES, Place, listed, made, moved, read, resolved, written
from fusekit.types import Attributes, Entry, Kind, Rename


class Tree(Suite):
    """Tests of the hooks that change names and attributes."""

    @covers("fusekit_mkdir")
    async def test_a_new_directory_is_there_and_empty(self, place: Place) -> None:
        entry = await made(place.hooks, place.directory, "folder")
        assert (entry.name, entry.kind) == ("folder", Kind.DIRECTORY)
        agree(await self.look(place, place.directory, "folder"), entry)
        agree((await listed(place.hooks, place.directory))["folder"], entry)
        assert await listed(place.hooks, entry) == {}

    @covers("fusekit_mkdir")
    async def test_directories_nest(self, place: Place) -> None:
        outer = await made(place.hooks, place.directory, "outer")
        inner = await made(place.hooks, outer, "inner")
        await made(place.hooks, inner, "outer")
        assert set(await listed(place.hooks, outer)) == {"inner"}
        assert set(await listed(place.hooks, inner)) == {"outer"}

    @covers("fusekit_mkdir")
    async def test_a_directory_is_not_made_twice(self, place: Place) -> None:
        first = await made(place.hooks, place.directory, "folder")
        with pytest.raises(Exists):
            await made(place.hooks, place.directory, "folder")
        agree(await self.look(place, place.directory, "folder"), first)

    @covers("fusekit_mkdir", using=("fusekit_write",))
    async def test_a_directory_takes_no_file_name(self, place: Place) -> None:
        await written(place.hooks, place.directory, "file", b"x")
        with pytest.raises(Exists):
            await made(place.hooks, place.directory, "file")

    @covers("fusekit_mkdir")
    async def test_one_of_many_at_once_makes_the_directory(self, place: Place) -> None:
        outcomes: list[bool] = []

        async def one() -> None:
            try:
                await made(place.hooks, place.directory, "folder")
                outcomes.append(True)
            except Exists:
                outcomes.append(False)

        async with trio.open_nursery() as nursery:
            for _ in range(min(8, place.capabilities.requests_max)):
                nursery.start_soon(one)
        assert outcomes.count(True) == 1

    @covers("fusekit_mkdir", using=("fusekit_remove",))
    async def test_nothing_is_made_in_a_directory_that_is_gone(self, place: Place) -> None:
        gone = await made(place.hooks, place.directory, "gone")
        await place.hooks.fusekit_remove(directory=place.directory, entry=gone, caller=ME)
        with pytest.raises((NotFound, Stale)):
            await made(place.hooks, gone, "folder")
        assert await self.missing(place, place.directory, "gone")

    @covers("fusekit_mkdir", using=("fusekit_setattr",))
    async def test_a_directory_has_the_mode_it_was_made_with(self, place: Place) -> None:
        entry = await made(place.hooks, place.directory, "folder", Attributes(mode=0o1777))
        assert entry.mode in {None, 0o1777}
        agree(await self.look(place, place.directory, "folder"), entry)

    @covers("fusekit_mkdir", using=("fusekit_stat",))
    async def test_a_directory_has_another_version_when_its_listing_changed(self, place: Place) -> None:
        await made(place.hooks, place.directory, "folder")
        before = await self.look(place, place.directory, "folder")
        await made(place.hooks, before, "inner")
        after = await self.look(place, place.directory, "folder", known=before)
        assert before.version is None or before.version != after.version
        assert (await self.look(place, place.directory, "folder", known=after)).version == after.version

    @covers("fusekit_symlink")
    @pytest.mark.parametrize("target", ["there", "../up/../and away", "/absolute", "naïve 日本", "x" * 1000])
    async def test_a_symlink_keeps_its_target(self, place: Place, target: str) -> None:
        entry = await self.linked(place, "link", target)
        assert (entry.name, entry.kind, entry.target) == ("link", Kind.SYMLINK, target)
        agree(await self.look(place, place.directory, "link"), entry)
        assert (await self.look(place, place.directory, "link")).target == target
        assert (await listed(place.hooks, place.directory))["link"].kind is Kind.SYMLINK

    @covers("fusekit_symlink")
    async def test_a_symlink_takes_no_taken_name(self, place: Place) -> None:
        await self.linked(place, "link", "first")
        with pytest.raises(Exists):
            await self.linked(place, "link", "second")
        assert (await self.look(place, place.directory, "link")).target == "first"

    @covers("fusekit_symlink", using=("fusekit_write", "fusekit_remove"))
    async def test_removing_a_symlink_leaves_what_it_names(self, place: Place) -> None:
        file = await written(place.hooks, place.directory, "file", b"x")
        link = await self.linked(place, "link", "file")
        await place.hooks.fusekit_remove(directory=place.directory, entry=link, caller=ME)
        assert await read(place.hooks, file) == b"x"
        assert await self.missing(place, place.directory, "link")

    @covers("fusekit_mknod")
    @pytest.mark.parametrize("kind", [Kind.FIFO, Kind.SOCKET])
    async def test_a_special_file_keeps_its_kind(self, place: Place, kind: Kind) -> None:
        entry = await self.special(place, "special", kind, Attributes(mode=0o600))
        assert (entry.name, entry.kind) == ("special", kind)
        agree(await self.look(place, place.directory, "special"), entry)
        assert (await listed(place.hooks, place.directory))["special"].kind is kind

    @covers("fusekit_mknod")
    async def test_a_device_keeps_its_number(self, place: Place) -> None:
        try:
            entry = await self.special(place, "null", Kind.CHAR, Attributes(mode=0o666, rdev=0x0103))
        except Denied:
            self.skip("devices are for the administrator here")
        assert (entry.kind, entry.rdev) == (Kind.CHAR, 0x0103)
        assert (await self.look(place, place.directory, "null")).rdev == 0x0103

    @covers("fusekit_mknod")
    async def test_a_special_file_takes_no_taken_name(self, place: Place) -> None:
        await self.special(place, "special", Kind.FIFO, NO_ATTRIBUTES)
        with pytest.raises(Exists):
            await self.special(place, "special", Kind.FIFO, NO_ATTRIBUTES)

    @covers("fusekit_link", using=("fusekit_write",))
    async def test_a_second_name_is_the_same_file(self, place: Place) -> None:
        one = await written(place.hooks, place.directory, "one", b"content")
        two = await self.hard_linked(place, one, "two")
        assert two.name == "two"
        assert two.id is not None
        one = await self.look(place, place.directory, "one")
        assert (one.id, one.version, one.nlink) == (two.id, two.version, 2)
        assert {entry.id for entry in (await listed(place.hooks, place.directory)).values()} == {two.id}
        assert await read(place.hooks, two) == b"content"

    @covers("fusekit_link", using=("fusekit_write",))
    async def test_what_is_written_under_one_name_shows_under_the_other(self, place: Place) -> None:
        one = await written(place.hooks, place.directory, "one", b"content")
        two = await self.hard_linked(place, one, "two")
        changed = await written(place.hooks, place.directory, "one", b"changed here", replacing=two)
        two = await self.look(place, place.directory, "two")
        assert await read(place.hooks, two) == b"changed here"
        assert (two.id, two.version, two.nlink) == (changed.id, changed.version, 2)

    @covers("fusekit_link", using=("fusekit_write", "fusekit_remove"))
    async def test_one_name_stays_when_the_other_goes(self, place: Place) -> None:
        one = await written(place.hooks, place.directory, "one", b"content")
        two = await self.hard_linked(place, one, "two")
        await place.hooks.fusekit_remove(directory=place.directory, entry=one, caller=ME)
        left = await self.look(place, place.directory, "two")
        assert (left.id, left.nlink) == (two.id, 1)
        assert await read(place.hooks, left) == b"content"

    @covers("fusekit_link", using=("fusekit_write",))
    async def test_a_second_name_takes_no_taken_name(self, place: Place) -> None:
        one = await written(place.hooks, place.directory, "one", b"content")
        await written(place.hooks, place.directory, "two", b"theirs")
        with pytest.raises(Exists):
            await self.hard_linked(place, one, "two")

    @covers("fusekit_rename", using=("fusekit_write",))
    async def test_a_renamed_file_is_the_same_elsewhere(self, place: Place) -> None:
        self.need_rename(place, Rename.FILES)
        old = await written(place.hooks, place.directory, "old", b"content")
        new = await moved(place.hooks, old, place.directory, place.directory, "new")
        assert (new.name, new.kind, new.id) == ("new", Kind.FILE, old.id)
        assert set(await listed(place.hooks, place.directory)) == {"new"}
        assert await self.missing(place, place.directory, "old")
        agree(await self.look(place, place.directory, "new"), new)
        assert await read(place.hooks, new) == b"content"

    @covers("fusekit_rename", using=("fusekit_write", "fusekit_mkdir"))
    async def test_a_file_moves_into_another_directory(self, place: Place) -> None:
        self.need_rename(place, Rename.FILES)
        here = await made(place.hooks, place.directory, "here")
        there = await made(place.hooks, place.directory, "there")
        old = await written(place.hooks, here, "file", b"content")
        new = await moved(place.hooks, old, here, there, "renamed")
        assert await listed(place.hooks, here) == {}
        assert set(await listed(place.hooks, there)) == {"renamed"}
        assert await read(place.hooks, new) == b"content"

    @covers("fusekit_rename", using=("fusekit_write",))
    async def test_rename_takes_no_taken_name(self, place: Place) -> None:
        self.need_rename(place, Rename.FILES)
        one = await written(place.hooks, place.directory, "one", b"ours")
        two = await written(place.hooks, place.directory, "two", b"theirs")
        with pytest.raises(Exists):
            await moved(place.hooks, one, place.directory, place.directory, "two")
        assert await read(place.hooks, one) == b"ours"
        assert await read(place.hooks, two) == b"theirs"

    @covers("fusekit_rename", using=("fusekit_write",))
    async def test_rename_replaces_what_it_is_told_to(self, place: Place) -> None:
        self.need_rename(place, Rename.FILES | Rename.REPLACE)
        one = await written(place.hooks, place.directory, "one", b"ours")
        two = await written(place.hooks, place.directory, "two", b"theirs")
        new = await moved(place.hooks, one, place.directory, place.directory, "two", replacing=two)
        assert set(await listed(place.hooks, place.directory)) == {"two"}
        assert await read(place.hooks, new) == b"ours"
        assert await read(place.hooks, await self.look(place, place.directory, "two")) == b"ours"

    @covers("fusekit_rename", using=("fusekit_write",))
    async def test_rename_replaces_nothing_that_changed(self, place: Place) -> None:
        self.need_rename(place, Rename.FILES | Rename.REPLACE)
        one = await written(place.hooks, place.directory, "one", b"ours")
        two = await written(place.hooks, place.directory, "two", b"theirs")
        self.need_guard(place, two)
        with pytest.raises(Stale):
            await moved(place.hooks, one, place.directory, place.directory, "two", replacing=unlike(two))
        assert await read(place.hooks, one) == b"ours"
        assert await read(place.hooks, two) == b"theirs"

    @covers("fusekit_rename", using=("fusekit_write",))
    async def test_what_changed_is_not_renamed(self, place: Place) -> None:
        self.need_rename(place, Rename.FILES)
        one = await written(place.hooks, place.directory, "one", b"theirs")
        self.need_guard(place, one)
        with pytest.raises(Stale):
            await moved(place.hooks, unlike(one), place.directory, place.directory, "two")
        assert set(await listed(place.hooks, place.directory)) == {"one"}

    @covers("fusekit_rename", using=("fusekit_write", "fusekit_remove"))
    async def test_what_is_gone_is_not_renamed(self, place: Place) -> None:
        self.need_rename(place, Rename.FILES)
        one = await written(place.hooks, place.directory, "one", b"x")
        await place.hooks.fusekit_remove(directory=place.directory, entry=one, caller=ME)
        with pytest.raises((NotFound, Stale)):
            await moved(place.hooks, one, place.directory, place.directory, "two")
        assert await listed(place.hooks, place.directory) == {}

    @covers("fusekit_rename", using=("fusekit_write", "fusekit_mkdir"))
    async def test_a_directory_moves_with_all_below_it(self, place: Place) -> None:
        self.need_rename(place, Rename.DIRECTORIES)
        old = await made(place.hooks, place.directory, "old")
        inner = await made(place.hooks, old, "inner")
        await written(place.hooks, inner, "file", b"content")
        target = await made(place.hooks, place.directory, "target")
        new = await moved(place.hooks, old, place.directory, target, "new")
        assert (new.kind, new.id) == (Kind.DIRECTORY, old.id)
        assert set(await listed(place.hooks, place.directory)) == {"target"}
        inner = (await listed(place.hooks, new))["inner"]
        assert await read(place.hooks, (await listed(place.hooks, inner))["file"]) == b"content"

    @covers("fusekit_rename", using=("fusekit_write", "fusekit_mkdir"))
    async def test_only_an_empty_directory_is_replaced(self, place: Place) -> None:
        self.need_rename(place, Rename.DIRECTORIES | Rename.REPLACE)
        one = await made(place.hooks, place.directory, "one")
        await written(place.hooks, one, "file", b"content")
        full = await made(place.hooks, place.directory, "full")
        await written(place.hooks, full, "kept", b"kept")
        void = await made(place.hooks, place.directory, "void")
        with pytest.raises((NotEmpty, Exists)):
            await moved(place.hooks, one, place.directory, place.directory, "full", replacing=full)
        assert set(await listed(place.hooks, full)) == {"kept"}
        new = await moved(place.hooks, one, place.directory, place.directory, "void", replacing=void)
        assert set(await listed(place.hooks, new)) == {"file"}
        assert set(await listed(place.hooks, place.directory)) == {"full", "void"}

    @covers("fusekit_rename", using=("fusekit_write", "fusekit_mkdir"))
    async def test_a_file_and_a_directory_do_not_replace_each_other(self, place: Place) -> None:
        self.need_rename(place, Rename.FILES | Rename.DIRECTORIES | Rename.REPLACE)
        file = await written(place.hooks, place.directory, "file", b"x")
        folder = await made(place.hooks, place.directory, "folder")
        with pytest.raises((IsDirectory, NotEmpty, Exists, NotDirectory)):
            await moved(place.hooks, file, place.directory, place.directory, "folder", replacing=folder)
        with pytest.raises((NotDirectory, Exists)):
            await moved(place.hooks, folder, place.directory, place.directory, "file", replacing=file)
        found = await listed(place.hooks, place.directory)
        assert {name: entry.kind for name, entry in found.items()} == {"file": Kind.FILE, "folder": Kind.DIRECTORY}

    @covers("fusekit_rename", using=("fusekit_mkdir",))
    async def test_a_directory_does_not_move_into_itself(self, place: Place) -> None:
        self.need_rename(place, Rename.DIRECTORIES)
        outer = await made(place.hooks, place.directory, "outer")
        inner = await made(place.hooks, outer, "inner")
        for target in (outer, inner):
            with pytest.raises(BackendError):
                await moved(place.hooks, outer, place.directory, target, "loop")
        assert set(await listed(place.hooks, place.directory)) == {"outer"}
        assert set(await listed(place.hooks, outer)) == {"inner"}

    @covers("fusekit_rename", using=("fusekit_write", "fusekit_mkdir"))
    async def test_two_entries_change_places(self, place: Place) -> None:
        self.need_rename(place, Rename.FILES | Rename.EXCHANGE)
        folder = await made(place.hooks, place.directory, "folder")
        inside = await written(place.hooks, folder, "inside", b"inside")
        outside = await written(place.hooks, place.directory, "outside", b"outside")
        new = await moved(place.hooks, inside, folder, place.directory, "outside", replacing=outside, exchange=True)
        assert (new.name, new.id) == ("outside", inside.id)
        assert await read(place.hooks, await self.look(place, place.directory, "outside")) == b"inside"
        assert await read(place.hooks, await self.look(place, folder, "inside")) == b"outside"

    @covers("fusekit_rename", using=("fusekit_write", "fusekit_mkdir"))
    async def test_a_file_and_a_directory_change_places(self, place: Place) -> None:
        self.need_rename(place, Rename.FILES | Rename.DIRECTORIES | Rename.EXCHANGE)
        folder = await made(place.hooks, place.directory, "folder")
        await made(place.hooks, folder, "inner")
        file = await written(place.hooks, place.directory, "file", b"x")
        await moved(place.hooks, file, place.directory, place.directory, "folder", replacing=folder, exchange=True)
        found = await listed(place.hooks, place.directory)
        assert {name: entry.kind for name, entry in found.items()} == {"file": Kind.DIRECTORY, "folder": Kind.FILE}
        assert set(await listed(place.hooks, found["file"])) == {"inner"}

    @covers("fusekit_rename", using=("fusekit_write", "fusekit_mkdir"))
    async def test_what_rename_cannot_do_is_refused_untouched(self, place: Place) -> None:
        can = place.capabilities.rename
        file = await written(place.hooks, place.directory, "file", b"x")
        other = await written(place.hooks, place.directory, "other", b"y")
        folder = await made(place.hooks, place.directory, "folder")
        refused = (NotSupported, Exists)
        if Rename.FILES not in can:
            with pytest.raises(refused):
                await moved(place.hooks, file, place.directory, place.directory, "new")
        if Rename.DIRECTORIES not in can:
            with pytest.raises(refused):
                await moved(place.hooks, folder, place.directory, place.directory, "new")
        if Rename.REPLACE not in can:
            with pytest.raises(refused):
                await moved(place.hooks, file, place.directory, place.directory, "other", replacing=other)
        if Rename.EXCHANGE not in can:
            with pytest.raises(refused):
                await moved(place.hooks, file, place.directory, place.directory, "other", other, exchange=True)
        assert set(await listed(place.hooks, place.directory)) == {"file", "other", "folder"}
        assert await read(place.hooks, file) == b"x"

    @covers("fusekit_remove", using=("fusekit_write",))
    async def test_a_removed_file_is_gone(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "file", b"x")
        await written(place.hooks, place.directory, "other", b"y")
        await place.hooks.fusekit_remove(directory=place.directory, entry=entry, caller=ME)
        assert await self.missing(place, place.directory, "file")
        assert set(await listed(place.hooks, place.directory)) == {"other"}
        with pytest.raises(NotFound):
            await self.look(place, place.directory, "file", known=entry)

    @covers("fusekit_remove", using=("fusekit_write",))
    async def test_a_removed_name_can_be_used_again(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "file", b"first")
        await place.hooks.fusekit_remove(directory=place.directory, entry=entry, caller=ME)
        again = await written(place.hooks, place.directory, "file", b"again")
        assert again.version is None or again.version != entry.version
        assert await read(place.hooks, again) == b"again"

    @covers("fusekit_remove", using=("fusekit_mkdir",))
    async def test_only_an_empty_directory_is_removed(self, place: Place) -> None:
        outer = await made(place.hooks, place.directory, "outer")
        inner = await made(place.hooks, outer, "inner")
        with pytest.raises(NotEmpty):
            await place.hooks.fusekit_remove(directory=place.directory, entry=outer, caller=ME)
        assert set(await listed(place.hooks, outer)) == {"inner"}
        outer = await self.look(place, place.directory, "outer")
        await place.hooks.fusekit_remove(directory=outer, entry=inner, caller=ME)
        await place.hooks.fusekit_remove(directory=place.directory, entry=outer, caller=ME)
        assert await self.missing(place, place.directory, "outer")

    @covers("fusekit_remove", using=("fusekit_write",))
    async def test_what_is_gone_counts_as_removed(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "file", b"x")
        await place.hooks.fusekit_remove(directory=place.directory, entry=entry, caller=ME)
        with contextlib.suppress(NotFound):  # which core takes for success
            await place.hooks.fusekit_remove(directory=place.directory, entry=entry, caller=ME)
        assert await self.missing(place, place.directory, "file")

    @covers("fusekit_remove", using=("fusekit_write",))
    async def test_what_changed_is_not_removed(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "file", b"theirs")
        self.need_guard(place, entry)
        with pytest.raises(Stale):
            await place.hooks.fusekit_remove(directory=place.directory, entry=unlike(entry), caller=ME)
        assert await read(place.hooks, entry) == b"theirs"

    @covers("fusekit_setattr", using=("fusekit_write",))
    async def test_a_changed_mode_stays_and_is_no_new_version(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "file", b"x")
        changed = await self.altered(place, entry, Attributes(mode=0o4751))
        assert (changed.mode, changed.version, changed.mtime_ns) == (0o4751, entry.version, entry.mtime_ns)
        agree(await self.look(place, place.directory, "file"), changed)
        agree((await listed(place.hooks, place.directory))["file"], changed)
        assert await read(place.hooks, changed) == b"x"

    @covers("fusekit_setattr", using=("fusekit_write",))
    @pytest.mark.parametrize("mtime_ns", [0, 1, 1_234_567_890_123_456_789, 4_102_444_800_000_000_000])
    async def test_a_changed_time_stays(self, place: Place, mtime_ns: int) -> None:
        entry = await written(place.hooks, place.directory, "file", b"x")
        changed = await self.altered(place, entry, Attributes(mtime_ns=mtime_ns))
        step = place.capabilities.time_step_ns
        assert changed.mtime_ns == mtime_ns // step * step
        assert (changed.mode, changed.size) == (entry.mode, entry.size)
        agree(await self.look(place, place.directory, "file"), changed)
        assert await read(place.hooks, changed) == b"x"

    @covers("fusekit_setattr", using=("fusekit_write",))
    async def test_one_time_changes_without_the_other(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "file", b"x")
        first = await self.altered(place, entry, Attributes(mtime_ns=10**18, atime_ns=2 * 10**18))
        second = await self.altered(place, first, Attributes(atime_ns=3 * 10**18))
        assert second.mtime_ns == first.mtime_ns
        assert second.atime_ns in {None, 3 * 10**18}

    @covers("fusekit_setattr", using=("fusekit_mkdir",))
    async def test_a_directory_changes_too(self, place: Place) -> None:
        folder = await made(place.hooks, place.directory, "folder")
        changed = await self.altered(place, folder, Attributes(mode=0o711, mtime_ns=10**18))
        assert changed.mode == 0o711
        agree(await self.look(place, place.directory, "folder"), changed)

    @covers("fusekit_setattr", using=("fusekit_write",))
    async def test_owners_stay_as_they_are_set(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "file", b"x")
        changed = await self.altered(place, entry, Attributes(uid=ME.uid, gid=ME.gid))
        assert (changed.uid, changed.gid) in {(ME.uid, ME.gid), (None, None)}

    @covers("fusekit_setattr", using=("fusekit_write", "fusekit_remove"))
    async def test_what_is_gone_cannot_be_changed(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "file", b"x")
        await place.hooks.fusekit_remove(directory=place.directory, entry=entry, caller=ME)
        with pytest.raises((NotFound, Stale)):
            await self.altered(place, entry, Attributes(mode=0o600))

    @covers("fusekit_setxattr", "fusekit_getxattrs", using=("fusekit_write",))
    async def test_extended_attributes_are_set_replaced_and_removed(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "file", b"x")
        assert await self.xattrs(place, entry) == {}
        values = {"color": b"red", "binary": bytes(range(256)), "void": b"", "naïve.name": b"1"}
        for name, value in values.items():
            await place.hooks.fusekit_setxattr(entry=entry, name=name, value=value, caller=ME)
        assert await self.xattrs(place, entry) == values
        await place.hooks.fusekit_setxattr(entry=entry, name="color", value=b"blue", caller=ME)
        await place.hooks.fusekit_setxattr(entry=entry, name="void", value=None, caller=ME)
        del values["void"]
        assert await self.xattrs(place, entry) == values | {"color": b"blue"}
        now = await self.look(place, place.directory, "file")
        assert (now.version, await read(place.hooks, now)) == (entry.version, b"x")

    @covers("fusekit_setxattr", using=("fusekit_write",))
    async def test_an_extended_attribute_that_is_not_there_cannot_be_removed(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "file", b"x")
        with pytest.raises(NotFound):
            await place.hooks.fusekit_setxattr(entry=entry, name="color", value=None, caller=ME)

    @covers("fusekit_setxattr", "fusekit_getxattrs", using=("fusekit_write",))
    async def test_extended_attributes_outlive_a_new_content(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "file", b"x")
        if not place.capabilities.replace:
            self.skip("a closed file is final here")
        await place.hooks.fusekit_setxattr(entry=entry, name="color", value=b"red", caller=ME)
        entry = await written(place.hooks, place.directory, "file", b"new", replacing=entry)
        assert await self.xattrs(place, entry) == {"color": b"red"}

    @covers("fusekit_setxattr", "fusekit_getxattrs", using=("fusekit_mkdir",))
    async def test_a_directory_has_extended_attributes(self, place: Place) -> None:
        folder = await made(place.hooks, place.directory, "folder")
        try:
            await place.hooks.fusekit_setxattr(entry=folder, name="color", value=b"red", caller=ME)
        except NotSupported:
            self.skip("only files have them here")
        assert await self.xattrs(place, folder) == {"color": b"red"}

    def need_rename(self, place: Place, what: Rename) -> None:
        """Skip where the service cannot rename like that."""
        if what not in place.capabilities.rename:
            self.skip(f"rename cannot do all of {what} here")

    async def linked(self, place: Place, name: str, target: str) -> Entry:
        """Make a symbolic link, or skip where the service refuses such a target."""
        try:
            entry = await place.hooks.fusekit_symlink(directory=place.directory, name=name, target=target, caller=ME)
        except Invalid as error:
            self.skip(f"the service refuses this target: {error}")
        return resolved(place.directory, entry)

    async def special(self, place: Place, name: str, kind: Kind, attributes: Attributes) -> Entry:
        """Make a special file, or skip where the service keeps none of this kind."""
        try:
            entry = await place.hooks.fusekit_mknod(
                directory=place.directory, name=name, kind=kind, attributes=attributes, caller=ME
            )
        except NotSupported as error:
            self.skip(f"no {kind.value} here: {error}")
        return resolved(place.directory, entry)

    async def hard_linked(self, place: Place, entry: Entry, name: str) -> Entry:
        """Give ``entry`` a second name beside it."""
        two = await place.hooks.fusekit_link(entry=entry, directory=place.directory, name=name, caller=ME)
        return resolved(place.directory, two)

    async def altered(self, place: Place, entry: Entry, changes: Attributes) -> Entry:
        """Change attributes of an entry of the directory."""
        changed = await place.hooks.fusekit_setattr(directory=place.directory, entry=entry, changes=changes, caller=ME)
        return resolved(place.directory, changed)

    async def xattrs(self, place: Place, entry: Entry) -> dict[str, bytes]:
        """Return the extended attributes as core would have them: of the entry, else by their hook."""
        if entry.xattrs is not None:
            entry = await self.look(place, place.directory, entry.name)
            return dict(entry.xattrs or {})
        return dict(await place.hooks.fusekit_getxattrs(entry=entry, caller=ME))
