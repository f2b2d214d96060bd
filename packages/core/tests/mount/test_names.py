"""Names through a kernel: listings as they come, walks, names it is asked to forget, and its limits."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

from fusekit.api import Entry, Mount, Page, Sink, hookimpl
from fusekit.fuse.knobs import BDI, READ_AHEAD_KB
from fusekit.fuse.mounts import mounted_at
from fusekit.settings import Settings
from fusekit.testing.mounts import Mounted, mounted

pytestmark = pytest.mark.fuse

PAGE = 100


class Listed:
    """Directories of files, a page at a time; ``gate`` holds the second page of a directory called ``slow``."""

    def __init__(self, mount: Mount) -> None:
        self.directories, self.files = 10, 300
        self.gate = threading.Event()

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        if directory.ref == "":
            await page([Entry.directory(name) for name in ("slow", *(f"d{n:03}" for n in range(self.directories)))])
            return
        for start in range(0, self.files, PAGE):
            if start and directory.name == "slow":
                await trio.to_thread.run_sync(self.gate.wait, abandon_on_cancel=True)
            numbers = range(start, min(start + PAGE, self.files))
            await page([Entry.file(f"f{n:05}", size=n + 1, mtime_ns=n, version=f"{n}") for n in numbers])

    @hookimpl
    async def fusekit_stat(self, directory: Entry, name: str) -> Entry:
        if directory.ref == "":
            return Entry.directory(name)
        number = int(name[1:])
        return Entry.file(name, size=number + 1, mtime_ns=number, version=f"{number}")

    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        await sink.write(b"x" * ((stop or 0) - start))


@attrs.define
class Setup:
    there: Mounted
    backend: Listed

    @property
    def path(self) -> Path:
        return self.there.path


@pytest.fixture
def settings() -> Settings:
    return Settings(ttl_s=600.0)


@pytest.fixture
def setup(tmp_path: Path, settings: Settings) -> Iterator[Setup]:
    made: list[Listed] = []

    def make(mount: Mount) -> Listed:
        made.append(Listed(mount))
        return made[0]

    with mounted(make, tmp_path, settings) as there:
        yield Setup(there, made[0])


def test_a_program_gets_the_first_page_while_the_next_is_on_its_way(setup: Setup) -> None:
    with os.scandir(setup.path / "slow") as names:
        first = [next(names).name for _ in range(PAGE)]
        assert first == [f"f{n:05}" for n in range(PAGE)], "nobody let the second page come so far"
        setup.backend.gate.set()
        assert [entry.name for entry in names] == [f"f{n:05}" for n in range(PAGE, 300)]
    assert setup.there.recorder.calls["list"] == 1


@pytest.mark.parametrize("program", [["ls", "-lR"], ["find"], ["du", "-a"]], ids=lambda words: words[0])
def test_a_walk_lists_each_directory_once_and_asks_for_no_file(setup: Setup, program: list[str]) -> None:
    setup.backend.gate.set()
    for calls in ({"list": 12}, {"list": 12}):
        done = subprocess.run([*program, setup.path], capture_output=True, check=True, text=True)
        assert done.stdout.count("f00299") == 11
        assert dict(setup.there.recorder.calls) == calls


@pytest.mark.parametrize("settings", [Settings(ttl_s=600.0, entries_max=1000)])
def test_the_kernel_forgets_names_over_the_budget_and_finds_them_again(setup: Setup) -> None:
    setup.backend.gate.set()
    inodes = setup.there.volume.filesystem.tree.inodes
    kept = setup.path / "d000" / "f00007"
    number = os.stat(kept).st_ino
    with kept.open("rb") as file:
        setup.backend.directories = 20
        setup.there.run_sync(setup.there.volume.filesystem.tree.metadata.expire, 1)
        os.chdir(setup.path / "d001")
        try:
            for _ in range(2):
                subprocess.run(["find", "-L", setup.path], capture_output=True, check=True)
                for name in sorted(os.listdir(setup.path)):
                    os.listdir(setup.path / name)
            assert Path.cwd() == setup.path / "d001", "a directory that a program is in stays where it is"
        finally:
            os.chdir("/")
        for _ in range(1000):  # the kernel forgets in its own time
            if setup.there.run_sync(lambda: len(inodes)) <= 1100:
                break
            os.listdir(setup.path)
        assert setup.there.run_sync(lambda: len(inodes)) <= 1100
        assert file.read() == b"x" * 8
        assert os.fstat(file.fileno()).st_ino == number
    assert os.stat(kept).st_ino == number
    assert sorted(os.listdir(setup.path / "d015")) == [f"f{n:05}" for n in range(300)]


def test_the_kernel_reads_far_ahead_where_that_is_permitted(setup: Setup) -> None:
    point = mounted_at(setup.path)
    assert point is not None
    path = BDI / f"{os.major(point.device)}:{os.minor(point.device)}" / "read_ahead_kb"
    if not os.access(path, os.W_OK):
        pytest.skip("needs root and a writable /sys")

    async def told() -> dict[str, object]:
        await setup.there.volume.kernel_known.wait()
        return setup.there.volume.kernel

    kernel = setup.there.run(told)
    assert kernel["read_ahead_kb"] == int(path.read_text()) == READ_AHEAD_KB
    info = setup.there.run_sync(setup.there.volume.info)
    assert info["kernel"] == kernel
    if kernel["max_background"] is None:
        assert any("max_background" in note for note in kernel["notes"])  # type: ignore[attr-defined]
    else:
        assert kernel["max_background"] == 64
