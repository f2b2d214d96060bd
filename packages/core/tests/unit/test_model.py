"""The reference model answers as a real directory does, and what answers otherwise is found and cut down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from fusekit.testing.model import Facts, Model, OsSubject, pattern
from fusekit.testing.sequences import (
    WEIGHTS,
    Comparison,
    Difference,
    Plan,
    Step,
    answer,
    check,
    minimised,
    minimised_async,
    run,
    run_async,
    steps,
    strategy,
)

Fresh = Callable[[], AbstractContextManager[OsSubject]]


@pytest.fixture
def below(tmp_path: Path) -> Callable[[type[OsSubject]], Fresh]:
    """Return what makes subjects of a class, each in an empty directory of its own."""
    made = iter(range(1_000_000))

    def of(kind: type[OsSubject]) -> Fresh:
        @contextmanager
        def fresh() -> Iterator[OsSubject]:
            root = tmp_path / str(next(made))
            root.mkdir()
            subject = kind(root)
            try:
                yield subject
            finally:
                subject.finish()

        return fresh

    return of


@pytest.mark.parametrize("seed", range(5))
def test_the_model_answers_as_a_real_directory(below: Callable[[type[OsSubject]], Fresh], seed: int) -> None:
    assert check(below(OsSubject), seed, 1000) > 300, "sequences that mostly fail show little"


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(given_steps=strategy(max_size=40))
def test_the_model_answers_as_a_real_directory_to_what_hypothesis_thinks_of(
    below: Callable[[type[OsSubject]], Fresh], given_steps: list[Step]
) -> None:
    with below(OsSubject)() as subject:
        run(subject, given_steps)


def test_every_call_succeeds_now_and_then() -> None:
    plan, model = Plan(), Model()
    comparison = Comparison(plan)
    succeeded = {step.call for step in steps(1, 3000, plan) if comparison.check(step, answer(model, step))}
    assert succeeded == set(WEIGHTS)


def test_a_seed_draws_the_same_sequence_again() -> None:
    assert steps(7, 200) == steps(7, 200)
    assert steps(7, 200) != steps(8, 200)


def test_calls_that_a_filesystem_lacks_are_left_out() -> None:
    plan = Plan().without("link", "exchange", "symlink", "readlink")
    drawn = {step.call for step in steps(1, 2000, plan)}
    assert drawn == set(WEIGHTS) - {"link", "exchange", "symlink", "readlink"}


def test_fields_that_a_filesystem_lacks_are_not_compared(below: Callable[[type[OsSubject]], Fresh]) -> None:
    class Timeless(OsSubject):
        def utime(self, path: str, mtime_ns: int) -> None:
            self.stat(path)

    given_steps = [Step("mkdir", ("a", 0o755)), Step("utime", ("a", 10**18))]
    with below(Timeless)() as subject, pytest.raises(Difference):
        run(subject, given_steps)
    with below(Timeless)() as subject:
        run(subject, given_steps, Plan(ignore=frozenset({"mtime_ns"})))


class Overwrites(OsSubject):
    """Forgets that a file is open for appending."""

    def open(self, slot: int, path: str, flags: int, mode: int) -> None:
        super().open(slot, path, flags & ~os.O_APPEND, mode)


class LosesUnlinked(OsSubject):
    """Empties a file whose name goes while it is open."""

    def unlink(self, path: str) -> None:
        if not (self._root / path).is_dir() and self.lstat(path).kind == "file":
            os.truncate(self._root / path, 0)
        super().unlink(path)


class Replaces(OsSubject):
    """Does not know of renames to a free name only."""

    def rename_noreplace(self, path: str, new: str) -> None:
        self.rename(path, new)


class FillsWithGarbage(OsSubject):
    """Shows what a file held before it was cut, when it grows again."""

    def truncate(self, path: str, size: int) -> None:
        had = self.stat(path).size or 0
        super().truncate(path, size)
        if size > had:
            with (self._root / path).open("r+b") as file:
                file.seek(size - 1)
                file.write(b"!")


class ForgetsModes(OsSubject):
    """Takes a mode and does nothing."""

    def chmod(self, path: str, mode: int) -> None:
        self.stat(path)


class CopiesLinks(OsSubject):
    """Makes a copy where a second name was wanted."""

    def link(self, path: str, new: str) -> None:
        super().link(path, new)
        if self.lstat(new).kind == "file":
            data = (self._root / new).read_bytes()
            os.unlink(self._root / new)
            (self._root / new).write_bytes(data)
            os.chmod(self._root / new, self.lstat(path).mode)


class WrongNumber(OsSubject):
    """Gives another reason than Linux."""

    def rmdir(self, path: str) -> None:
        try:
            super().rmdir(path)
        except OSError as error:
            raise PermissionError(1, "Operation not permitted") from error


@pytest.mark.parametrize(
    "defect", [Overwrites, LosesUnlinked, Replaces, FillsWithGarbage, ForgetsModes, CopiesLinks, WrongNumber]
)
def test_a_defect_is_found_and_told_in_a_few_steps(
    below: Callable[[type[OsSubject]], Fresh], defect: type[OsSubject]
) -> None:
    with pytest.raises(Difference) as caught:
        check(below(defect), 3, 3000)
    found = caught.value
    assert found.seed == 3
    taken = [step for step in found.steps if step.call != "tree"]
    assert len(taken) <= 7
    assert "of seed 3" in str(found)
    with below(defect)() as subject, pytest.raises(Difference):
        run(subject, taken)
    with below(OsSubject)() as subject:
        run(subject, taken)


def test_a_difference_prints_as_python_that_repeats_it() -> None:
    difference = Difference([Step("mkdir", ("a", 0o755)), Step("listdir", ("",))], ["a"], [], 5)
    assert "subject.mkdir('a', 493)\nsubject.listdir('')" in str(difference)
    assert "wanted: ['a']" in str(difference)


def test_a_long_difference_is_told_by_where_it_begins() -> None:
    told = str(Difference([Step("read", ("a",))], pattern(1, 5000), pattern(1, 4000) + b"?" * 1000))
    assert "5000 and 5000 bytes, the first that differs at 4000" in told
    assert len(told) < 1000


async def test_a_subject_of_coroutines_is_compared_alike(below: Callable[[type[OsSubject]], Fresh]) -> None:
    class Awaited:
        def __init__(self, subject: OsSubject) -> None:
            self.subject = subject

        def __getattr__(self, call: str) -> Callable[..., object]:
            async def made(*arguments: object) -> object:
                return getattr(self.subject, call)(*arguments)

            return made

    drawn = steps(2, 300)
    with below(OsSubject)() as one, below(OsSubject)() as other:
        assert await run_async(Awaited(one), drawn) == run(other, drawn)
    with below(Replaces)() as subject, pytest.raises(Difference):
        await run_async(Awaited(subject), steps(3, 3000))


def test_minimising_keeps_what_is_needed_in_its_order() -> None:
    given_steps = [Step("fsync", (number,)) for number in range(200)]
    needed = [given_steps[3], given_steps[77], given_steps[199]]

    def fails(candidate: Sequence[Step]) -> bool:
        return all(step in candidate for step in needed)

    assert minimised(given_steps, fails) == needed


async def test_minimising_by_coroutines_finds_the_same() -> None:
    given_steps = [Step("fsync", (number,)) for number in range(50)]

    async def fails(candidate: Sequence[Step]) -> bool:
        return given_steps[20] in candidate

    assert await minimised_async(given_steps, fails) == [given_steps[20]]


def test_times_are_known_only_while_they_were_set() -> None:
    model = Model(umask=0)
    model.open(0, "a", os.O_RDWR | os.O_CREAT, 0o644)
    model.utime("a", 123)
    assert model.stat("a") == Facts("file", 0, 0o644, 1, 123)
    model.write(0, 1, 10)
    assert model.stat("a") == Facts("file", 10, 0o644, 1, None)


def test_the_umask_takes_rights_away() -> None:
    model = Model(umask=0o027)
    model.mkdir("a", 0o777)
    assert model.stat("a").mode == 0o750
