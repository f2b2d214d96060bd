"""Under faults the old state and the new one are both right, and nothing else is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusekit.testing.model import OsSubject
from fusekit.testing.sequences import Difference, Plan, Step
from fusekit.testing.troubled import Troubled

CREATE = Step("open", (0, "a", os.O_CREAT | os.O_WRONLY, 0o644))
WRITE = Step("pwrite", (0, 0, 1, 100))
CLOSE = Step("close", (0,))
AGAIN = (Step("open", (0, "a", os.O_WRONLY | os.O_TRUNC, 0o644)), Step("pwrite", (0, 0, 2, 50)), CLOSE)

Failing = Callable[[OsSubject, Path], None]


class Failed(OsSubject):
    """A directory in which the calls of one kind do ``how`` and fail, from the ``nth`` on."""

    def __init__(self, root: Path, call: str, how: Failing, nth: int = 1) -> None:
        super().__init__(root)
        self._at, self._call, self._how, self._nth = root, call, how, nth

    def __getattribute__(self, name: str) -> object:
        if name.startswith("_") or name != self._call:
            return super().__getattribute__(name)
        self._nth -= 1
        if self._nth:
            return super().__getattribute__(name)
        self._nth = 1

        def fail(*_: object) -> None:
            self._how(self, self._at)
            raise OSError(errno.EIO, "trouble")

        return fail


@contextmanager
def calm() -> Iterator[None]:
    yield


def close_and(content: bytes | None) -> Failing:
    """Return what closes slot 0 and leaves ``content`` in the file, None for no file."""

    def how(subject: OsSubject, root: Path) -> None:
        OsSubject.close(subject, 0)
        if content is None:
            (root / "a").unlink()
        else:
            (root / "a").write_bytes(content)

    return how


def compared(subject: OsSubject, *steps: Step) -> Troubled:
    made = Troubled(subject, Plan(ignore=frozenset({"mtime_ns"})), calm)
    made.run(steps)
    made.finish()
    return made


FIRST = bytes((1 + number * 7) % 256 for number in range(100))
SECOND = bytes((2 + number * 7) % 256 for number in range(50))


@pytest.mark.parametrize(
    ("content", "old", "new"), [(None, 1, 0), (FIRST, 1, 0)], ids=["there is no file", "it was stored all the same"]
)
def test_a_new_file_whose_close_failed_is_absent_or_whole(
    tmp_path: Path, content: bytes | None, old: int, new: int
) -> None:
    tally = compared(Failed(tmp_path, "close", close_and(content)), CREATE, WRITE, CLOSE).tally
    assert (tally.troubled, tally.old, tally.new) == (1, old, new)


@pytest.mark.parametrize("content", [FIRST, SECOND])
def test_a_file_whose_replacement_failed_has_either_content(tmp_path: Path, content: bytes) -> None:
    subject = Failed(tmp_path, "close", close_and(content), nth=2)
    assert compared(subject, CREATE, WRITE, CLOSE, *AGAIN).tally.troubled == 1


@pytest.mark.parametrize(
    "content", [None, b"", SECOND[:20], SECOND + FIRST[50:]], ids=["gone", "empty", "part", "mixed"]
)
def test_anything_else_is_a_difference(tmp_path: Path, content: bytes | None) -> None:
    subject = Failed(tmp_path, "close", close_and(content), nth=2)
    with pytest.raises(Difference, match="neither the old state nor the new"):
        compared(subject, CREATE, WRITE, CLOSE, *AGAIN)


def test_what_was_stored_does_not_go_back_without_trouble(tmp_path: Path) -> None:
    made = compared(OsSubject(tmp_path), CREATE, WRITE, CLOSE, *AGAIN)
    (tmp_path / "a").write_bytes(FIRST)
    with pytest.raises(Difference):
        made.look()


@pytest.mark.parametrize("done", [False, True])
def test_a_rename_that_failed_has_happened_or_not(tmp_path: Path, done: bool) -> None:
    def how(subject: OsSubject, root: Path) -> None:
        if done:
            (root / "a").rename(root / "b")

    tally = compared(Failed(tmp_path, "rename", how), CREATE, WRITE, CLOSE, Step("rename", ("a", "b"))).tally
    assert (tally.old, tally.new) == (not done, done)


def test_a_rename_that_leaves_both_names_is_a_difference(tmp_path: Path) -> None:
    def how(subject: OsSubject, root: Path) -> None:
        (root / "b").write_bytes((root / "a").read_bytes())

    with pytest.raises(Difference):
        compared(Failed(tmp_path, "rename", how), CREATE, WRITE, CLOSE, Step("rename", ("a", "b")))


def test_an_empty_directory_that_was_to_be_replaced_may_be_gone(tmp_path: Path) -> None:
    def how(subject: OsSubject, root: Path) -> None:
        (root / "b").rmdir()

    made = (Step("mkdir", ("a", 0o755)), Step("mkdir", ("b", 0o755)), Step("rename", ("a", "b")))
    assert compared(Failed(tmp_path, "rename", how), *made).tally.cleared == 1
