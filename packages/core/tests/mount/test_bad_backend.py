"""What programs see when a backend tells nonsense: illegal names, names that come twice, bodies of the wrong length."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs
import pytest

from fusekit.api import Entry, Page, Sink, TimedOut, hookimpl
from fusekit.settings import Consistency, Settings
from fusekit.testing.mounts import Mounted, mounted
from fusekit.transfer.retry import ATTEMPTS_AFTER_TIMEOUT

pytestmark = pytest.mark.fuse

BAD_NAMES: Final = ("", ".", "..", "a/b", "/", "nul\0byte", "n" * 256, "ü" * 128, "half \ud800 a pair")
SIZE: Final = 3_000_000
DATA: Final = bytes(range(250)) * (SIZE // 250)


@attrs.frozen
class Options:
    """None."""


class Nonsense:
    """Read-only; ``pages`` are its listing, ``sends`` what a read of each file is answered with."""

    scheme: ClassVar[str] = "nonsense"
    options: ClassVar[type[Options]] = Options

    def __init__(self) -> None:
        self.pages: list[list[Any]] = [[Entry.file("f", size=SIZE, version="1")]]
        self.right = False

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        for entries in self.pages:
            await page(entries)

    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        end = SIZE if stop is None else stop
        if self.right:
            await sink.write(DATA[start:end])
        elif entry.name == "short":
            await sink.write(DATA[start : start + (end - start) // 2])
        elif entry.name == "down":
            raise TimedOut("nobody answers")
        elif entry.name == "nothing":
            pass
        elif entry.name == "overlong":
            await sink.write(DATA[start:end] + b"too much" * 1000)
        elif entry.name == "negative":
            await sink.write(DATA[start:end], at=-5)
        elif entry.name == "elsewhere":
            await sink.write(DATA[start:end], at=SIZE + 10)
        elif entry.name == "holes":
            await sink.write(DATA[start : start + 10])
            await sink.write(DATA[end - 10 : end], at=end - 10)
        else:
            await sink.write(DATA[start:end])


@pytest.fixture
def backend() -> Nonsense:
    return Nonsense()


@pytest.fixture
def there(tmp_path: Path, backend: Nonsense) -> Iterator[Mounted]:
    settings = attrs.evolve(Settings(), consistency=Consistency.CLOSE_TO_OPEN, ttl_s=3600.0)
    with mounted(lambda _: backend, tmp_path, settings) as made:
        yield made


def expire(there: Mounted) -> None:
    there.run_sync(there.volume.filesystem.tree.metadata.expire, 1)


def test_names_that_no_file_can_have_are_left_out(there: Mounted, backend: Nonsense) -> None:
    good = [Entry.file("f", size=SIZE, version="1"), Entry.file("byte \udcff", size=SIZE, version="1")]
    backend.pages = [
        [Entry.file(name, size=1) for name in BAD_NAMES],
        good,
        [Entry.directory(name) for name in BAD_NAMES],
    ]
    assert sorted(os.listdir(there.path)) == ["byte \udcff", "f"]
    assert sorted(os.listdir(os.fsencode(there.path))) == [b"byte \xff", b"f"]
    assert (there.path / "byte \udcff").read_bytes() == DATA
    assert there.volume.metrics.skipped_names == 2 * len(BAD_NAMES)


def test_a_name_that_comes_twice_is_what_it_was_last(there: Mounted, backend: Nonsense) -> None:
    twice = [Entry.file("twice", size=1, version="old"), Entry.file("twice", size=SIZE, version="new")]
    for pages in ([twice], [[twice[0]], [twice[1]]]):
        backend.pages = pages
        expire(there)
        assert os.listdir(there.path) == ["twice"]
        assert (there.path / "twice").read_bytes() == DATA


def test_a_name_that_comes_as_file_and_as_folder_is_what_it_was_last(there: Mounted, backend: Nonsense) -> None:
    backend.pages = [[Entry.directory("both"), Entry.file("both", size=SIZE, version="1")]]
    assert os.listdir(there.path) == ["both"]
    assert (there.path / "both").read_bytes() == DATA


def exactly(fd: int, start: int, stop: int) -> bytes:
    """Read as often as it takes: what is right before a gap may come by itself, and the error after it."""
    found = b""
    while start + len(found) < stop and (data := os.pread(fd, stop - start - len(found), start + len(found))):
        found += data
        assert found == DATA[start : start + len(found)]
    return found


@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("short", errno.EIO),
        ("nothing", errno.EIO),
        ("negative", errno.EIO),
        ("holes", errno.EIO),
        # Bytes after the end that was told: it is another file by now.
        ("elsewhere", errno.ESTALE),
        ("overlong", errno.ESTALE),
    ],
)
def test_a_body_that_is_not_what_was_asked_for_is_an_error_and_no_content(
    there: Mounted, backend: Nonsense, what: str, number: int
) -> None:
    backend.pages = [[Entry.file(what, size=SIZE, version="1")]]
    fd = os.open(there.path / what, os.O_RDONLY)
    try:
        with pytest.raises(OSError) as failed:
            exactly(fd, SIZE - 100_000, SIZE)
        assert failed.value.errno == number
        backend.right = True
        if number == errno.EIO:
            assert exactly(fd, SIZE - 100_000, SIZE) == DATA[-100_000:]
    finally:
        os.close(fd)
    assert (there.path / what).read_bytes() == DATA


def test_what_fails_for_good_is_not_asked_again_for_each_page_but_by_the_next_who_opens(
    there: Mounted, backend: Nonsense
) -> None:
    backend.pages = [[Entry.file("down", size=SIZE, version="1")]]
    for asked in (ATTEMPTS_AFTER_TIMEOUT, 2 * ATTEMPTS_AFTER_TIMEOUT):
        with open(there.path / "down", "rb", buffering=0) as file, pytest.raises(TimeoutError):
            file.read(100)
        assert there.recorder.calls["read"] == asked
    backend.right = True
    assert (there.path / "down").read_bytes() == DATA


def odd(**facts: Any) -> Entry:
    """Return an entry with facts of the wrong types."""
    return attrs.evolve(Entry.file("f", size=1), **facts)


@pytest.mark.parametrize(
    "nonsense",
    [None, "f", odd(size=-1), odd(size="many"), odd(kind="file"), odd(mtime_ns="now"), odd(mode=1 << 40)],
    ids=["none", "text", "negative", "words", "kind", "time", "mode"],
)
def test_a_listing_of_the_wrong_things_is_an_error_or_shows_the_rest(
    there: Mounted, backend: Nonsense, nonsense: object
) -> None:
    right = backend.pages
    backend.pages = [[nonsense], [Entry.file("g", size=1, version="1")]]
    with contextlib.suppress(OSError):
        assert set(os.listdir(there.path)) <= {"f", "g"}
        (there.path / "f").stat()
    backend.pages = right
    expire(there)
    assert os.listdir(there.path) == ["f"]
    assert (there.path / "f").read_bytes() == DATA
