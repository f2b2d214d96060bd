"""What a name costs, and what becomes of names that nobody holds any more."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from fusekit.api import hookimpl
from fusekit.errors import NotFound
from fusekit.settings import Consistency, Settings
from fusekit.testing.driven import ME, Setup
from fusekit.testing.driven import opened as driven
from fusekit.testing.volumes import open_backend
from fusekit.types import Entry, Mount, Page
from fusekit.vfs.filesystem import Filesystem
from fusekit.vfs.inodes import ROOT

DIRECTORIES, FILES = 50, 1000


class Generated:
    """A large tree of names that are made up as they are listed, with what an object store tells of each."""

    directories, files = 12, FILES

    def __init__(self, mount: Mount) -> None: ...

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        if directory.ref == "":
            await page([Entry.directory(f"dir{number:05}") for number in range(self.directories)])
            return
        await page([self._file(directory, number) for number in range(self.files)])

    @hookimpl
    async def fusekit_stat(self, directory: Entry, name: str) -> Entry:
        if directory.ref == "":
            return Entry.directory(name)
        return self._file(directory, int(name[-10:-4]))

    @staticmethod
    def _file(directory: Entry, number: int) -> Entry:
        name = f"file-{number:06}.txt"
        return Entry.file(
            name,
            f"{directory.ref}/{name}",
            size=1_000_000 + number,
            mtime_ns=1_700_000_000_000_000_000 + number * 1_000_003,
            version=f"{number:016x}",
            mode=0o640,
            uid=1000 + 7,
            gid=1000 + 7,
        )

    @hookimpl
    async def fusekit_read(self) -> None:
        raise NotImplementedError


async def walk(fs: Filesystem, ino: int = ROOT) -> list[int]:
    """Read a tree as ``ls -lR`` does, the kernel taking a reference to each entry; return the numbers."""
    handle = await fs.opendir(ino, ME)
    at, numbers, directories = 0, [], []
    while chunk := await fs.readdir(handle, at):
        for _, attr in chunk:
            at += 1
            if at > 2:
                fs.listed(handle, attr)
                numbers.append(int(attr.ino))
                if attr.mode & 0o40000:
                    directories.append(int(attr.ino))
    fs.releasedir(handle)
    for number in directories:
        numbers += await walk(fs, number)
    return numbers


@pytest.fixture
def traced() -> Iterator[None]:
    gc.collect()
    tracemalloc.start(1)
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("traced")
async def test_an_entry_costs_at_most_600_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Generated, "directories", DIRECTORIES)
    async with open_backend(Generated, tmp_path, Settings(ttl_s=3600.0)) as volume:
        keeper = volume.filesystem.tree.remembered
        assert keeper is not None
        before, _ = tracemalloc.get_traced_memory()
        await walk(volume.filesystem)
        await keeper._flush()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        count = len(volume.filesystem.tree.inodes)
        assert count == 1 + DIRECTORIES + DIRECTORIES * FILES
        assert (after - before) / count <= 600


@attrs.define(eq=False, slots=False)
class Kernel:
    """What the kernel does when it is asked to forget: it does, at once or when the test says so."""

    fs: Filesystem
    asked: list[tuple[int, str]] = attrs.field(factory=list)
    references: dict[int, int] = attrs.field(factory=dict)
    holds: set[int] = attrs.field(factory=set)

    def changed(self, ino: int, name: str | None) -> None: ...

    def disown(self, ino: int, name: str) -> None:
        self.asked.append((ino, name))
        node = self.fs.tree.at(self.fs.tree.node(ino), name, ME)
        if node is not None and node.ino not in self.holds and node.lookups:
            self.fs.forget([(node.ino, node.lookups)])


async def test_over_the_budget_the_oldest_names_go_and_come_back_with_their_numbers(tmp_path: Path) -> None:
    async with open_backend(Generated, tmp_path, Settings(ttl_s=3600.0, entries_max=5000)) as volume:
        fs = volume.filesystem
        fs.tree.kernel = kernel = Kernel(fs)
        handle = await fs.opendir(ROOT, ME)
        names = [name for name, _ in await fs.readdir(handle, 2)]
        fs.releasedir(handle)
        first = await fs.lookup(ROOT, names[0], ME)
        kept = await fs.lookup(first.ino, "file-000000.txt", ME)
        opened = await fs.open(kept.ino, os.O_RDONLY, ME)
        held = await fs.lookup(first.ino, "file-000001.txt", ME)
        kernel.holds.add(held.ino)
        numbers = await walk(fs)
        assert len(set(numbers)) == 12 + 12 * FILES
        assert len(fs.tree.inodes) <= 5000 + 3 * FILES
        assert fs.tree.node(kept.ino).opens == 1, "an open file stays"
        assert fs.tree.node(held.ino).lookups > 0, "what the kernel does not let go stays"
        assert all(fs.tree.inodes.get(number) is not None for number in numbers[:12]), "and so do directories"
        assert (await fs.lookup(first.ino, "file-000500.txt", ME)).ino in numbers
        fs.tree.metadata.ttl_s = 0.0
        assert sorted(await walk(fs)) == sorted(numbers)
        fs.tree.metadata.ttl_s = 3600.0
        await fs.release(opened.handle)


async def test_a_name_that_was_dropped_is_not_taken_for_missing(tmp_path: Path) -> None:
    async with open_backend(Generated, tmp_path, Settings(ttl_s=3600.0, entries_max=1000)) as volume:
        fs = volume.filesystem
        fs.tree.kernel = Kernel(fs)
        await walk(fs)
        for name in ("dir00000", "dir00010"):
            directory = await fs.lookup(ROOT, name, ME)
            assert (await fs.lookup(directory.ino, "file-000999.txt", ME)).size == 1_000_999


async def test_a_name_dropped_while_its_directory_is_listed_for_it_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Generated, "files", 3000)
    async with open_backend(Generated, tmp_path, Settings(ttl_s=3600.0, entries_max=1000)) as volume:
        fs = volume.filesystem
        directory = await fs.lookup(ROOT, "dir00000", ME)
        for name in ("file-000001.txt", "file-000002.txt", "file-001500.txt"):  # the second one lists the directory
            assert (await fs.lookup(directory.ino, name, ME)).size == 1_000_000 + int(name[5:11])


async def test_a_directory_longer_than_the_budget_is_read_whole_with_its_attributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Generated, "files", 3000)
    async with open_backend(Generated, tmp_path, Settings(ttl_s=3600.0, entries_max=1000)) as volume:
        fs = volume.filesystem
        fs.tree.kernel = Kernel(fs)
        directory = await fs.lookup(ROOT, "dir00000", ME)
        handle = await fs.opendir(directory.ino, ME)
        at, sizes = 0, []
        while chunk := await fs.readdir(handle, at):
            for _, attr in chunk:
                at += 1
                if at > 2:
                    fs.listed(handle, attr)
                    sizes.append(attr.size)
        fs.releasedir(handle)
        assert sizes == [1_000_000 + number for number in range(3000)]


async def test_a_snapshot_drops_nothing(tmp_path: Path) -> None:
    settings = Settings(consistency=Consistency.SNAPSHOT, entries_max=1000)
    async with open_backend(Generated, tmp_path, settings) as volume:
        volume.filesystem.tree.kernel = kernel = Kernel(volume.filesystem)
        await walk(volume.filesystem)
        assert kernel.asked == []


async def forgotten(setup: Setup, ino: int) -> None:
    node = setup.fs.tree.inodes.get(ino)
    if node is not None and node.lookups:
        setup.fs.forget([(ino, node.lookups)])


async def test_what_the_kernel_forgot_is_dropped_when_it_is_no_longer_fresh(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, ttl_s=60.0) as setup:
        await setup.remotely("a", b"x")
        await setup.remotely("b", b"x")
        tree = setup.fs.tree
        attr = await setup.fs.lookup(ROOT, "a", ME)
        await forgotten(setup, attr.ino)
        assert tree.inodes.get(attr.ino) is not None, "fresh: the next question is answered by it"
        setup.reset()
        await setup.fs.lookup(ROOT, "a", ME)
        assert setup.calls == {}
        await trio.sleep(61)
        await forgotten(setup, attr.ino)
        assert tree.inodes.get(attr.ino) is None
        assert tree.view(ME).facts.get(attr.ino) is None
        assert "a" not in tree.view(ME).directory(ROOT).names
        assert (await setup.fs.lookup(ROOT, "a", ME)).ino == attr.ino
        await forgotten(setup, attr.ino)
        await trio.sleep(61)
        other = await setup.fs.lookup(ROOT, "b", ME)
        await forgotten(setup, other.ino)
        assert tree.inodes.get(attr.ino) is None, "its time came with somebody else's"


async def test_what_could_not_be_learned_again_is_not_dropped(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, ttl_s=60.0) as setup:
        tree = setup.fs.tree
        renamed = await setup.make("old", b"x")
        await setup.fs.rename(ROOT, "old", ROOT, "new", 0, ME)
        linked = await setup.make("one", b"x")
        await setup.fs.link(linked.ino, ROOT, "two", ME)
        writing, written = await setup.fs.create(ROOT, "open", 0o644, os.O_WRONLY | os.O_CREAT, ME)
        await setup.fs.write(writing.handle, 0, b"unsent")
        directory = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
        below = await setup.make("below", b"x", directory.ino)
        await trio.sleep(61)
        for ino in (renamed.ino, linked.ino, written.ino, directory.ino):
            await forgotten(setup, ino)
        setup.fs.tree.trim(1000)
        assert (await setup.fs.lookup(ROOT, "new", ME)).ino == renamed.ino
        assert (
            (await setup.fs.lookup(ROOT, "one", ME)).ino == (await setup.fs.lookup(ROOT, "two", ME)).ino == linked.ino
        )
        assert tree.inodes.get(written.ino) is not None
        assert tree.inodes.get(directory.ino) is not None, "it has a child in use"
        await setup.fs.release(writing.handle)
        await forgotten(setup, below.ino)
        assert (await setup.fs.lookup(ROOT, "open", ME)).size == 6
        with pytest.raises(NotFound):
            await setup.fs.lookup(ROOT, "old", ME)


async def test_an_inode_dropped_while_its_name_is_looked_up_is_there_for_the_kernel(tmp_path: Path) -> None:
    async with driven(tmp_path, ttl_s=60.0) as setup:
        await setup.remotely("a", b"x")
        attr = await setup.fs.lookup(ROOT, "a", ME)
        node = setup.fs.tree.node(attr.ino)
        await forgotten(setup, attr.ino)
        setup.fs.tree._evict(node)
        assert setup.fs.tree.inodes.get(attr.ino) is None
        setup.fs.tree.inodes.looked_up(node)  # what a lookup that was under way does with the inode it had found
        assert setup.fs.tree.node(attr.ino) is node
        assert node.lookups == 1
        assert (await setup.fs.getattr(attr.ino, ME)).size == 1


async def test_a_new_content_has_the_kernel_drop_the_pages_of_the_one_before(tmp_path: Path) -> None:
    async with driven(tmp_path, ttl_s=60.0) as setup:
        told: list[tuple[int, str | None]] = []
        kernel = Kernel(setup.fs)
        kernel.changed = lambda ino, name: told.append((ino, name))  # type: ignore[method-assign]
        setup.fs.tree.kernel = kernel
        await setup.remotely("a", b"one")
        assert await setup.content("a") == b"one"
        attr = await setup.fs.lookup(ROOT, "a", ME)
        await setup.names()
        assert told == []
        await setup.remotely("a", b"two")
        setup.fs.tree.metadata.expire(ROOT)
        await setup.names()
        assert told == [(attr.ino, None)]
