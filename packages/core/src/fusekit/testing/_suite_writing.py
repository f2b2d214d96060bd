"""The part of the conformance suite for contents: write, versions, failed attempts, copies, names.

Outside the layers; see `fusekit.testing.conformance`.
"""

from __future__ import annotations

import os
from typing import Final

import pytest
import trio

from fusekit.errors import Exists, Invalid, NotFound, NotSupported, Stale, TooLarge, Unavailable
from fusekit.testing._suite_base import Suite, agree, covers, describes, unlike
from fusekit.testing.harness import ME, Place, Upload, listed, made, moved, read, resolved, written
from fusekit.types import Attributes, Entry, Rename

NAMES = (
    *("with space", " leading", "trailing ", "100%", "%2F", "%2e%2e", "a#b", "a?b=c&d", "a+b", "a;b,c:d", "~", "-rf"),
    *("quote'd", 'double"d', "back\\slash", "star*", "[brackets]", "{braces}", "<tag>", "pipe|", "$HOME", "@at", "!"),
    *(".hidden", "..twice", "...", "tab\there", "line\nbreak", "naïve café", "日本語", "😀", "e\u0301", "A", "a"),
)

FORBIDDEN_TRIED: Final = 3  # characters of those that a place forbids; each costs some requests


class Writing(Suite):
    """Tests of the hooks that store bytes."""

    @covers("fusekit_write")
    async def test_a_new_file_is_there_and_described(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "new", b"content")
        describes(entry, "new", b"content")
        assert await read(place.hooks, entry) == b"content"
        agree(await self.look(place, place.directory, "new"), entry)
        agree((await listed(place.hooks, place.directory))["new"], entry)

    @covers("fusekit_write")
    async def test_the_version_is_the_same_everywhere(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "file", b"content")
        found = (await listed(place.hooks, place.directory))["file"]
        assert entry.version == found.version
        assert entry.version == (await self.look(place, place.directory, "file")).version
        assert await read(place.hooks, found) == b"content", "a read takes the version of the listing"
        assert await read(place.hooks, entry) == b"content", "a read takes the version of the write"
        assert (await self.look(place, place.directory, "file")).version == entry.version, "reading changes no version"

    @covers("fusekit_write")
    async def test_an_empty_file_is_written(self, place: Place) -> None:
        describes(await written(place.hooks, place.directory, "void", b""), "void", b"")
        assert await read(place.hooks, await self.look(place, place.directory, "void")) == b""

    @covers("fusekit_write")
    async def test_a_large_file_arrives_whole(self, place: Place) -> None:
        data = os.urandom(1 << 10) * (self.big_bytes // 1024) + b"end!"[: self.big_bytes % 1024]
        entry = await written(place.hooks, place.directory, "big", Upload(data, step=777_777))
        describes(entry, "big", data)
        assert await read(place.hooks, entry) == data
        middle = len(data) // 2 + 1
        assert await read(place.hooks, entry, middle, middle + 4097) == data[middle : middle + 4097]

    @covers("fusekit_write")
    @pytest.mark.parametrize("size", [0, 1, 10_000])
    async def test_a_program_that_is_still_writing_has_no_size(self, place: Place, size: int) -> None:
        data = bytes(range(250)) * (size // 250) + b"x" * (size % 250)
        upload = Upload(data, sized=False, step=999)
        entry = await written(place.hooks, place.directory, "stream", upload)
        describes(entry, "stream", data)
        assert await read(place.hooks, entry) == data

    @covers("fusekit_write")
    async def test_every_part_is_acknowledged(self, place: Place) -> None:
        upload = Upload(bytes(50_000), step=9_000)
        await written(place.hooks, place.directory, "parts", upload)
        assert upload.parts[-1].last
        assert all(part.is_done for part in upload.parts)

    @covers("fusekit_write")
    async def test_a_taken_name_is_refused_and_stays_as_it_was(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "taken", b"first")
        with pytest.raises(Exists):
            await written(place.hooks, place.directory, "taken", b"second")
        assert await read(place.hooks, await self.look(place, place.directory, "taken")) == b"first"
        agree(await self.look(place, place.directory, "taken"), entry)

    @covers("fusekit_write", using=("fusekit_mkdir",))
    async def test_a_directory_holds_its_name_too(self, place: Place) -> None:
        await made(place.hooks, place.directory, "taken")
        with pytest.raises(Exists):
            await written(place.hooks, place.directory, "taken", b"x")

    @covers("fusekit_write")
    async def test_a_replaced_file_has_the_new_content_and_another_version(self, place: Place) -> None:
        first = await self.replaceable(place, "file", b"first")
        # No two in a row of one size: what tells versions apart by time may do so in milliseconds, and this is faster.
        for data in (b"another", b"shorter"[:3], b"a longer one than before", b""):
            second = await written(place.hooks, place.directory, "file", data, replacing=first)
            describes(second, "file", data)
            assert await read(place.hooks, second) == data
            assert second.version is None or second.version != first.version
            agree(await self.look(place, place.directory, "file"), second)
            first = second
        assert set(await listed(place.hooks, place.directory)) == {"file"}

    @covers("fusekit_write")
    async def test_equal_sizes_at_once_are_still_two_versions(self, place: Place) -> None:
        seen = []
        entry: Entry | None = None
        for number in range(5):
            data = f"content {number}".encode()
            entry = await written(place.hooks, place.directory, "file", data, replacing=entry)
            if entry.version is None or not place.capabilities.replace:
                self.skip("no versions, or files are final when closed")
            seen.append(entry.version)
        assert len(set(seen)) == 5

    @covers("fusekit_write")
    async def test_a_reader_of_the_old_version_is_told(self, place: Place) -> None:
        first = await self.replaceable(place, "file", b"first")
        if first.version is None:
            self.skip("the service tells no versions")
        await written(place.hooks, place.directory, "file", b"other", replacing=first)
        with pytest.raises((Stale, NotFound)):
            await read(place.hooks, first)

    @covers("fusekit_write")
    async def test_a_known_entry_that_changed_comes_back_changed(self, place: Place) -> None:
        first = await self.replaceable(place, "file", b"first")
        second = await written(place.hooks, place.directory, "file", b"second", replacing=first)
        agree(await self.look(place, place.directory, "file", known=first), second)

    @covers("fusekit_write")
    async def test_a_lost_race_is_stale_and_changes_nothing(self, place: Place) -> None:
        entry = await self.replaceable(place, "file", b"theirs")
        self.need_guard(place, entry)
        with pytest.raises(Stale):
            await written(place.hooks, place.directory, "file", b"ours", replacing=unlike(entry))
        assert await read(place.hooks, await self.look(place, place.directory, "file")) == b"theirs"

    @covers("fusekit_write", using=("fusekit_remove",))
    async def test_a_file_removed_during_the_upload_is_not_replaced(self, place: Place) -> None:
        entry = await self.replaceable(place, "file", b"first")
        self.need_guard(place, entry)
        upload = Upload(bytes(9_000), step=1_000, hang_at=5)

        async def write() -> None:
            with pytest.raises((Stale, NotFound)):
                await written(place.hooks, place.directory, "file", upload, replacing=entry)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await upload.reached.wait()
            await place.hooks.fusekit_remove(directory=place.directory, entry=entry, caller=ME)
            upload.release.set()
        await self.unchanged(place, "file", None)

    @covers("fusekit_write", using=("fusekit_mkdir",))
    async def test_a_name_taken_during_the_upload_stays_theirs(self, place: Place) -> None:
        upload = Upload(bytes(9_000), step=1_000, hang_at=5)

        async def write() -> None:
            with pytest.raises(Exists):
                await written(place.hooks, place.directory, "name", upload)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await upload.reached.wait()
            theirs = await made(place.hooks, place.directory, "name")
            upload.release.set()
        agree(await self.look(place, place.directory, "name"), theirs)
        assert set(await listed(place.hooks, place.directory)) == {"name"}

    @covers("fusekit_write", using=("fusekit_remove",))
    async def test_a_file_that_is_gone_is_not_replaced(self, place: Place) -> None:
        entry = await self.replaceable(place, "file", b"first")
        self.need_guard(place, entry)
        await place.hooks.fusekit_remove(directory=place.directory, entry=entry, caller=ME)
        with pytest.raises((Stale, NotFound)):
            await written(place.hooks, place.directory, "file", b"second", replacing=entry)
        assert await self.missing(place, place.directory, "file")

    @covers("fusekit_write", using=("fusekit_mkdir", "fusekit_remove"))
    async def test_nothing_is_written_into_a_directory_that_is_gone(self, place: Place) -> None:
        gone = await made(place.hooks, place.directory, "gone")
        await place.hooks.fusekit_remove(directory=place.directory, entry=gone, caller=ME)
        with pytest.raises((NotFound, Stale)):
            await written(place.hooks, gone, "file", b"x")
        assert await self.missing(place, place.directory, "gone")

    @covers("fusekit_write")
    @pytest.mark.parametrize("replace", [False, True])
    @pytest.mark.parametrize("fail_at", [1, 2, 5])
    async def test_a_failed_attempt_shows_nothing_and_the_next_succeeds(
        self, place: Place, replace: bool, fail_at: int
    ) -> None:
        old = await self.replaceable(place, "file", b"old") if replace else None
        upload = Upload(os.urandom(9_000), step=1_000, fail_at=fail_at)
        with pytest.raises(Unavailable):
            await written(place.hooks, place.directory, "file", upload, replacing=old)
        await self.unchanged(place, "file", b"old" if replace else None)
        entry = await written(place.hooks, place.directory, "file", upload.again(), replacing=old)
        describes(entry, "file", upload.data)
        assert await read(place.hooks, entry) == upload.data
        assert set(await listed(place.hooks, place.directory)) == {"file"}

    @covers("fusekit_write")
    @pytest.mark.parametrize("replace", [False, True])
    async def test_a_cancelled_attempt_shows_nothing_and_the_next_succeeds(self, place: Place, replace: bool) -> None:
        old = await self.replaceable(place, "file", b"old") if replace else None
        upload = Upload(os.urandom(9_000), step=1_000, hang_at=5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(written, place.hooks, place.directory, "file", upload, old)
            await upload.reached.wait()
            await self.unchanged(place, "file", b"old" if replace else None)
            nursery.cancel_scope.cancel()
        await self.unchanged(place, "file", b"old" if replace else None)
        entry = await written(place.hooks, place.directory, "file", upload.again(), replacing=old)
        assert await read(place.hooks, entry) == upload.data
        assert set(await listed(place.hooks, place.directory)) == {"file"}

    @covers("fusekit_write")
    async def test_the_note_of_one_upload_is_not_taken_for_another(self, place: Place) -> None:
        first = Upload(b"1" * 5_000, step=1_000, fail_at=4)
        with pytest.raises(Unavailable):
            await written(place.hooks, place.directory, "first", first)
        second = await written(place.hooks, place.directory, "second", Upload(b"2" * 5_000, step=1_000))
        one = await written(place.hooks, place.directory, "first", first.again())
        assert await read(place.hooks, one) == first.data
        assert await read(place.hooks, second) == b"2" * 5_000

    @covers("fusekit_write")
    async def test_writes_of_several_files_overlap(self, place: Place) -> None:
        wanted = {f"file {number}": os.urandom(3_000 + number) for number in range(20)}
        limit = trio.CapacityLimiter(place.capabilities.requests_max)

        async def write(name: str, data: bytes) -> None:
            async with limit:
                await written(place.hooks, place.directory, name, Upload(data, step=500))

        async with trio.open_nursery() as nursery:
            for name, data in wanted.items():
                nursery.start_soon(write, name, data)
        found = await listed(place.hooks, place.directory)
        assert {name: await read(place.hooks, entry) for name, entry in found.items()} == wanted

    @covers("fusekit_write", using=("fusekit_setattr",))
    async def test_attributes_are_stored_with_the_content(self, place: Place) -> None:
        step = place.capabilities.time_step_ns
        wanted = Attributes(mode=0o640, mtime_ns=1_234_567_890_123_456_789)
        entry = await written(place.hooks, place.directory, "file", Upload(b"x", attributes=wanted))
        assert entry.mode in {None, 0o640}
        assert entry.mtime_ns in {None, 1_234_567_890_123_456_789 // step * step}
        agree(await self.look(place, place.directory, "file"), entry)

    @covers("fusekit_write", using=("fusekit_setattr",))
    async def test_a_replaced_file_keeps_its_mode(self, place: Place) -> None:
        old = await written(place.hooks, place.directory, "file", Upload(b"x", attributes=Attributes(mode=0o600)))
        new = await written(place.hooks, place.directory, "file", b"y", replacing=old)
        assert new.mode == old.mode

    @covers("fusekit_write")
    async def test_a_file_over_the_limit_is_refused(self, place: Place) -> None:
        limit = place.capabilities.file_bytes_max
        if limit is None or limit > 32 << 20:
            self.skip("no limit, or one too large to try")
        with pytest.raises(TooLarge):
            await written(place.hooks, place.directory, "huge", bytes(limit + 1))
        assert await self.missing(place, place.directory, "huge")

    @covers("fusekit_write")
    async def test_bytes_without_a_name(self, place: Place) -> None:
        upload = Upload(b"nameless")
        if place.capabilities.unlinked:
            entry = await place.hooks.fusekit_write(directory=None, name="", replacing=None, content=upload, caller=ME)
            assert entry.ref, "bytes without a name are kept by their ref"
            assert await read(place.hooks, entry) == b"nameless"
        else:
            with pytest.raises(NotSupported):
                await place.hooks.fusekit_write(directory=None, name="", replacing=None, content=upload, caller=ME)
        assert await listed(place.hooks, place.directory) == {}

    @covers("fusekit_write")
    async def test_an_equal_blob_means_equal_bytes(self, place: Place) -> None:
        contents = (b"one", b"one", b"two")
        entries = [
            await written(place.hooks, place.directory, f"file{number}", data) for number, data in enumerate(contents)
        ]
        if entries[0].blob is None:
            self.skip("the service does not name bytes")
        assert entries[2].blob not in {entries[0].blob, entries[1].blob}

    @covers("fusekit_write")
    @pytest.mark.parametrize("name", [*NAMES, "n" * 255, "ü" * 127 + "x", "日" * 85], ids=ascii)
    async def test_a_name_comes_back_as_it_was_given(self, place: Place, name: str) -> None:
        if len(name.encode()) > place.capabilities.name_bytes_max:
            self.skip("longer than names may be here")
        if name in self.refused_names or set(name) & set(place.capabilities.forbidden):
            with pytest.raises(Invalid):
                await written(place.hooks, place.directory, name, b"x")
            assert await listed(place.hooks, place.directory) == {}
            return
        fold = place.capabilities.fold or str
        entry = await written(place.hooks, place.directory, name, name.encode())
        assert fold(entry.name) == fold(name)
        assert set(await listed(place.hooks, place.directory)) == {entry.name}
        assert await read(place.hooks, await self.look(place, place.directory, name)) == name.encode()

    @covers("fusekit_write")
    async def test_a_forbidden_character_is_refused_wherever_it_stands(self, place: Place) -> None:
        forbidden = [letter for letter in place.capabilities.forbidden if letter not in "/\0"][:FORBIDDEN_TRIED]
        if not forbidden:
            self.skip("no character is forbidden here")
        kept = await written(place.hooks, place.directory, "kept", b"x")
        for name in [form.format(letter) for letter in forbidden for form in ("a{}b", "{}a", "a{}")]:
            with pytest.raises(Invalid):
                await written(place.hooks, place.directory, name, b"x")
            if place.capabilities.has("fusekit_mkdir"):
                with pytest.raises(Invalid):
                    await made(place.hooks, place.directory, name)
            if place.capabilities.has("fusekit_rename") and place.capabilities.rename & Rename.FILES:
                with pytest.raises(Invalid):
                    await moved(place.hooks, kept, place.directory, place.directory, name)
        assert set(await listed(place.hooks, place.directory)) == {"kept"}

    @covers("fusekit_write")
    async def test_an_undecodable_name_comes_back_where_names_are_bytes(self, place: Place) -> None:
        if place.capabilities.utf8_names:
            self.skip("names are UTF-8 here")
        name = b"latin-\xe9\xff".decode("utf-8", "surrogateescape")
        await written(place.hooks, place.directory, name, b"x")
        assert set(await listed(place.hooks, place.directory)) == {name}
        assert await read(place.hooks, await self.look(place, place.directory, name)) == b"x"

    @covers("fusekit_write")
    async def test_names_that_differ_are_different_files(self, place: Place) -> None:
        alike = ("File", "file", "FILE", "e\u0301", "\u00e9", "a b", "a+b", "a%20b", "a%2520b")
        fold = place.capabilities.fold or str
        distinct = {fold(name): name for name in alike if name not in self.refused_names}
        for name in distinct.values():
            await written(place.hooks, place.directory, name, name.encode())
        found = await listed(place.hooks, place.directory)
        assert {await read(place.hooks, entry) for entry in found.values()} == {n.encode() for n in distinct.values()}

    @covers("fusekit_write")
    async def test_names_that_fold_together_are_one_file(self, place: Place) -> None:
        fold = place.capabilities.fold
        pairs = (("file", "FILE"), ("e\u0301", "\u00e9"))
        one = next(((a, b) for a, b in pairs if fold is not None and fold(a) == fold(b)), None)
        if one is None:
            self.skip("every name is itself here")
        await written(place.hooks, place.directory, one[0], b"x")
        with pytest.raises(Exists):
            await written(place.hooks, place.directory, one[1], b"y")

    @covers("fusekit_copy", using=("fusekit_write",))
    async def test_a_copy_has_the_content_and_a_life_of_its_own(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "one", b"content")
        copy = await self.copied(place, entry, "two")
        describes(copy, "two", b"content")
        assert copy.id is None or copy.id != entry.id
        agree(await self.look(place, place.directory, "two"), copy)
        if place.capabilities.replace:
            await written(place.hooks, place.directory, "two", b"changed", replacing=copy)
        assert await read(place.hooks, entry) == b"content"

    @covers("fusekit_copy", using=("fusekit_write",))
    async def test_a_copy_takes_no_taken_name(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "one", b"content")
        await written(place.hooks, place.directory, "two", b"theirs")
        with pytest.raises(Exists):
            await self.copied(place, entry, "two")
        assert await read(place.hooks, await self.look(place, place.directory, "two")) == b"theirs"

    @covers("fusekit_copy", using=("fusekit_write", "fusekit_remove"))
    async def test_what_is_gone_cannot_be_copied(self, place: Place) -> None:
        entry = await written(place.hooks, place.directory, "one", b"content")
        await place.hooks.fusekit_remove(directory=place.directory, entry=entry, caller=ME)
        with pytest.raises((NotFound, Stale)):
            await self.copied(place, entry, "two")
        assert await self.missing(place, place.directory, "two")

    async def replaceable(self, place: Place, name: str, data: bytes) -> Entry:
        """Write a file that the test goes on to replace."""
        if not place.capabilities.replace:
            self.skip("a closed file is final here")
        return await written(place.hooks, place.directory, name, data)

    async def unchanged(self, place: Place, name: str, data: bytes | None) -> None:
        """Assert that the directory has ``name`` with ``data`` and nothing else; nothing at all where that is None."""
        if data is None:
            assert await self.missing(place, place.directory, name)
            assert await listed(place.hooks, place.directory) == {}
        else:
            assert await read(place.hooks, await self.look(place, place.directory, name)) == data
            assert set(await listed(place.hooks, place.directory)) == {name}

    async def copied(self, place: Place, entry: Entry, name: str) -> Entry:
        """Copy ``entry`` in its directory."""
        copy = await place.hooks.fusekit_copy(entry=entry, directory=place.directory, name=name, caller=ME)
        return resolved(place.directory, copy)
