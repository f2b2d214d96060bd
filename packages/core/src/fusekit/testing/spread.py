"""Random sequences on one mount by several processes, each in a directory of its own, and by all of them in one.

Outside the layers, above `fusekit.testing.sequences`. A `Hand` is a process that makes calls in the mount. In its own
directory it compares by itself, at its own speed, with a model of its own; so the hands run at the same time and the
order that counts is known all the same. In the directory that they share a `Spread` gives each call to one of the
hands, one after the other, with open files in the hand that opened them; whoever holds it compares with one model.

A model outlives a remount: `Hand.close` and `Spread.finish` close what is open here and there, and the next steps go on.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, cast

import attrs

from fusekit.testing.model import Model, OsSubject, Subject
from fusekit.testing.sequences import Comparison, Difference, Plan, Step, answer, steps

_SPAWN: Final = multiprocessing.get_context("spawn")  # a fork would take the threads' locks along
_ANSWER_TIMEOUT_S: Final = 600.0


class Hand:
    """One process; see `hands`. Calls return at once, and `result` waits for the end of the last one."""

    def __init__(self, name: str, connection: Connection) -> None:
        self.name = name
        self._connection = connection

    def own(self, root: Path, seed: int, count: int, plan: Plan) -> None:
        """Make ``root`` the directory of its own, in which it will take the ``count`` steps of ``seed``."""
        self._connection.send(("own", root, seed, count, plan))
        self.result()

    def share(self, root: Path) -> None:
        """Make ``root`` the directory in which it makes single calls."""
        self._connection.send(("share", root))
        self.result()

    def go_on(self, count: int) -> None:
        """Take the next ``count`` steps in its own directory; the result is how many succeeded."""
        self._connection.send(("go_on", count))

    def call(self, step: Step) -> object:
        """Make one call in the shared directory and return the answer.

        Raises:
            OSError: as the call did.
        """
        self._connection.send(("call", step))
        return self.result()

    def close(self) -> None:
        """Close all files, in both directories."""
        self._connection.send(("close",))
        self.result()

    def result(self) -> Any:
        """Return what the last command did.

        Raises:
            Difference: the mount answered otherwise than the model.
        """
        if not self._connection.poll(_ANSWER_TIMEOUT_S):
            raise TimeoutError(f"{self.name} does not answer")
        kind, value = self._connection.recv()
        if kind == "error":
            raise value
        return value


@contextmanager
def hands(count: int) -> Iterator[list[Hand]]:
    """Start so many processes, and end them."""
    with ExitStack() as stack:
        yield [stack.enter_context(_hand(f"p{number}")) for number in range(count)]


@contextmanager
def _hand(name: str) -> Iterator[Hand]:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_serve, args=(theirs,), name=name, daemon=True)
    process.start()
    theirs.close()
    try:
        yield Hand(name, ours)
    finally:
        ours.close()
        process.join(5)
        process.kill()
        process.join()


@attrs.define(eq=False)
class _Own:
    """What a hand has in its own directory: the mount's side, the model's, and the steps that are left."""

    subject: OsSubject
    model: Model
    comparison: Comparison
    left: list[Step]
    seed: int

    def go_on(self, count: int) -> int:
        now, self.left = self.left[:count], self.left[count:]
        try:
            return sum(self.comparison.check(step, answer(self.subject, step)) for step in self.comparison.steps(now))
        except Difference as difference:
            raise Difference(difference.steps, difference.told, self.seed) from None

    def close(self) -> None:
        self.subject.finish()
        for slot in self.model.slots():
            self.model.close(slot)


def _serve(connection: Connection) -> None:
    """Do what the other end of the pipe says, until it is closed."""
    own: _Own | None = None
    shared: OsSubject | None = None

    def do(command: str, *arguments: Any) -> object:
        nonlocal own, shared
        match command:
            case "own":
                root, seed, count, plan = arguments
                model = Model()
                own = _Own(OsSubject(root), model, Comparison(plan, model), steps(seed, count, plan), seed)
            case "share":
                shared = OsSubject(arguments[0])
            case "go_on":
                assert own is not None
                return own.go_on(*arguments)
            case "call":
                (step,) = arguments
                return getattr(shared, step.call)(*step.arguments)
            case "close":
                for one in (own, shared):
                    if one is not None:
                        one.close() if isinstance(one, _Own) else one.finish()
        return None

    while True:
        try:
            told = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            outcome = ("done", do(*told))
        except BaseException as error:  # noqa: BLE001 - the other end raises it
            outcome = ("error", error)
        connection.send(outcome)


class Spread:
    """The `Subject` of the shared directory: each call is made by one of ``all_hands``, drawn by ``seed``."""

    def __init__(self, all_hands: Sequence[Hand], seed: int) -> None:
        self._hands = list(all_hands)
        self._random = random.Random(seed)
        self._slots: dict[int, Hand] = {}

    def __getattr__(self, call: str) -> Callable[..., object]:
        if call.startswith("_"):
            raise AttributeError(call)

        def do(*arguments: Any) -> object:
            hand = self._random.choice(self._hands)
            if call == "open":
                slot = arguments[0]
                if slot in self._slots:  # opening into a slot closes what it held, wherever that is
                    self._slots.pop(slot).call(Step("close", (slot,)))
                answered = hand.call(Step(call, arguments))
                self._slots[slot] = hand
                return answered
            if call in {"close", "pread", "pwrite", "write", "ftruncate", "fsync", "fstat"}:
                hand = self._slots.get(arguments[0], hand)
                if call == "close":
                    self._slots.pop(arguments[0], None)
            return hand.call(Step(call, arguments))

        return do

    def finish(self) -> None:
        """Close all files in all hands."""
        for hand in self._hands:
            hand.close()
        self._slots.clear()


@attrs.frozen
class Outcome:
    """What was compared: steps taken, those that succeeded, and remounts in between."""

    taken: int
    succeeded: int
    remounts: int


def together(
    root: Callable[[], Path],
    remount: Callable[[], None],
    seed: int,
    count: int,
    processes: int,
    remounts: int,
    plan: Plan,
) -> Outcome:
    """Take about ``count`` steps below ``root()``: half by each hand for itself, half by all in a shared directory.

    ``root`` holds the directories ``p0``, ``p1`` and so on, and ``shared``. ``remount`` is called between the parts.

    Raises:
        Difference: the mount answered otherwise than the model.
    """
    each, all_together, parts = count // 2 // processes, count // 2, remounts + 1
    model = Model()
    comparison = Comparison(plan, model)
    left = steps(seed, all_together, plan)
    succeeded = 0
    with hands(processes) as found:
        for number, hand in enumerate(found):
            hand.own(root() / hand.name, seed * 1000 + number, each, plan)
            hand.share(root() / "shared")
        spread = Spread(found, seed)
        for part in range(parts):
            if part:
                spread.finish()
                for slot in model.slots():
                    model.close(slot)
                remount()
            for hand in found:
                hand.go_on(each // parts)
            succeeded += sum(hand.result() for hand in found)
            now, left = left[: all_together // parts], left[all_together // parts :]
            try:
                succeeded += sum(
                    comparison.check(step, answer(cast(Subject, spread), step)) for step in comparison.steps(now)
                )
            except Difference as difference:
                raise Difference(difference.steps, difference.told, seed) from None
        spread.finish()
    return Outcome((each // parts * processes + all_together // parts) * parts, succeeded, remounts)
