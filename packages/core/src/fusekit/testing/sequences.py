"""Random sequences of filesystem calls, run on a `Subject` and on the reference model side by side.

Outside the layers. `Plan` says which calls, names and sizes; `steps` draws a sequence from a seed; `run` (or `run_async`)
compares every answer and, each so many steps, the whole tree; `check` does that for a seed and cuts what fails down to
few steps. A step is data and prints as the Python that repeats it.
"""

from __future__ import annotations

import errno
import inspect
import itertools
import os
import random
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import attrs

from fusekit.testing.model import Facts, Model, Node, Subject

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_T = TypeVar("_T")
SubjectFactory = Callable[[], AbstractContextManager[Subject]]

REPLAYS_MAX: Final = 400  # of the first pass over a failing sequence; each starts from an empty filesystem
PAIRS_MAX: Final = 20  # steps, above which trying all pairs would take longer than looking at them

# How often each call is drawn. Opening and writing come most often, because open files make most of the states.
WEIGHTS: Final[Mapping[str, int]] = {
    "open": 16,
    "close": 8,
    "pread": 6,
    "pwrite": 10,
    "write": 8,
    "ftruncate": 4,
    "fsync": 2,
    "fstat": 3,
    "stat": 3,
    "lstat": 2,
    "read": 6,
    "listdir": 4,
    "truncate": 4,
    "mkdir": 5,
    "rmdir": 5,
    "unlink": 10,
    "rename": 9,
    "rename_noreplace": 3,
    "exchange": 3,
    "link": 4,
    "symlink": 3,
    "readlink": 1,
    "chmod": 3,
    "utime": 3,
    "setxattr": 3,
    "getxattr": 2,
    "removexattr": 2,
    "listxattr": 2,
}

_CREATE: Final = os.O_CREAT
_FLAGS: Final = (
    *(os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | _CREATE, os.O_RDWR | _CREATE, os.O_WRONLY | _CREATE),
    *(os.O_WRONLY | _CREATE | os.O_TRUNC, os.O_RDWR | _CREATE | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC),
    *(os.O_WRONLY | _CREATE | os.O_EXCL, os.O_RDWR | _CREATE | os.O_EXCL),
    *(os.O_WRONLY | _CREATE | os.O_APPEND, os.O_RDWR | os.O_APPEND),
)


@attrs.frozen
class Step:
    """One call of a `Subject`."""

    call: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"subject.{self.call}({', '.join(map(repr, self.arguments))})"


@attrs.frozen
class Plan:
    """What sequences are made of.

    ``calls`` are those to draw; leave out what the filesystem lacks (`without`). Paths are up to ``depth`` of the few
    ``names``, so that calls meet. Modes keep all rights of the owner, because the model checks none. ``ignore`` names
    the fields of `Facts` that are not compared, ``directory.mtime_ns`` one of a kind only; ``tree_every`` steps all is.
    """

    calls: tuple[str, ...] = tuple(WEIGHTS)
    names: tuple[str, ...] = ("a", "b", "c")
    depth: int = 3
    slots: int = 3
    flags: tuple[int, ...] = _FLAGS
    sizes: tuple[int, ...] = (1, 3, 17, 100, 4095, 4096, 5000, 20_000, 140_000)
    offsets: tuple[int, ...] = (0, 0, 1, 10, 4096, 5001, 65_536, 131_073)
    modes: tuple[int, ...] = (0o700, 0o711, 0o750, 0o755, 0o777)
    attributes: tuple[str, ...] = ("user.a", "user.b")
    ignore: frozenset[str] = frozenset()
    tree_every: int = 50

    def without(self, *calls: str) -> Plan:
        """Return the plan without ``calls``."""
        unknown = set(calls) - set(WEIGHTS)
        assert not unknown, f"no such calls: {unknown}"
        return attrs.evolve(self, calls=tuple(call for call in self.calls if call not in calls))


class _Pick(Protocol):
    """Takes one of the options; by chance, or as Hypothesis wants it."""

    def __call__(self, options: Sequence[_T], /) -> _T: ...


class _Drawing:
    """Draws one step after the other, most of them such that something happens: it takes them on a model of its own."""

    def __init__(self, plan: Plan, pick: _Pick) -> None:
        self._plan, self._pick, self._model = plan, pick, Model()
        self._calls = [call for call in plan.calls for _ in range(WEIGHTS[call])]
        self._kinds: dict[str, str] = {}

    def next(self) -> Step:
        self._kinds = self._model.kinds()
        call = self._pick(self._calls)
        step = Step(call, self._arguments(call))
        answer(self._model, step)
        return step

    def _arguments(self, call: str) -> tuple[Any, ...]:
        plan, pick, path = self._plan, self._pick, self._path
        match call:
            case "close" | "fsync" | "fstat":
                return (self._slot(),)
            case "open":
                flags = pick(plan.flags)
                wanted = "free" if flags & os.O_CREAT and pick((True, False)) else "file"
                return pick(range(plan.slots)), path(wanted), flags, pick(plan.modes)
            case "pread":
                return self._slot(), pick(plan.offsets), pick(plan.sizes)
            case "pwrite":
                return self._slot(), pick(plan.offsets), pick(range(256)), pick(plan.sizes)
            case "write":
                return self._slot(), pick(range(256)), pick(plan.sizes)
            case "ftruncate":
                return self._slot(), pick((0, *plan.sizes))
            case "truncate":
                return path("file"), pick((0, *plan.sizes))
            case "mkdir":
                return path("free"), pick(plan.modes)
            case "rename":
                return path("any"), path(pick(("any", "free", "file")))
            case "exchange":
                return path("any"), path("any")
            case "link":
                return path("file"), path("free")
            case "rename_noreplace" | "symlink":
                return path("any"), path("free")
            case "chmod":
                return path("any"), pick(plan.modes)
            case "utime":
                return path("any"), pick(range(1, 4)) * 10**17 + pick(range(256))
            case "setxattr":
                value = bytes([pick(range(256))]) * pick((0, 1, 100))
                return path("any"), pick(plan.attributes), value, pick((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
            case "getxattr" | "removexattr":
                return path("any"), pick(plan.attributes)
            case "rmdir" | "listdir":
                return (path("directory"),)
            case "unlink" | "read":
                return (path("file"),)
            case "readlink":
                return (path("symlink"),)
            case _:
                return (path("any"),)

    def _slot(self) -> int:
        """Return a slot, most often one that holds a file."""
        slots: list[int] = [*self._model.slots() * 8, *range(self._plan.slots)]
        return self._pick(slots)

    def _path(self, wanted: str) -> str:
        """Return a path: four times of five of an entry of that kind or of a free name, else any at all."""
        if self._pick(range(5)):
            if wanted == "free":
                above = ["", *(f"{path}/" for path, kind in self._kinds.items() if kind == "directory")]
                found = [
                    one + name
                    for one in above
                    for name in self._plan.names
                    if one.count("/") < self._plan.depth and one + name not in self._kinds
                ]
            else:
                found = [path for path, kind in self._kinds.items() if wanted in {"any", kind}]
            if found:
                return self._pick(found)
        return "/".join(self._pick(self._plan.names) for _ in range(self._pick(range(self._plan.depth)) + 1))


def steps(seed: int, count: int, plan: Plan | None = None) -> list[Step]:
    """Return ``count`` steps, always the same for one seed and plan."""
    drawing = _Drawing(plan or Plan(), random.Random(seed).choice)
    return [drawing.next() for _ in range(count)]


def strategy(plan: Plan | None = None, max_size: int = 50) -> SearchStrategy[list[Step]]:
    """Return the Hypothesis strategy of sequences, which shrinks by itself what fails."""
    from hypothesis import strategies as st

    chosen = plan or Plan()

    @st.composite
    def sequence(draw: Any) -> list[Step]:
        drawing = _Drawing(chosen, lambda options: draw(st.sampled_from(options)))
        return [drawing.next() for _ in range(draw(st.integers(0, max_size)))]

    return sequence()


class Difference(AssertionError):
    """The subject answered otherwise than the model. ``steps`` lead there, ``seed`` drew them."""

    def __init__(self, steps: Sequence[Step], told: Sequence[str], seed: int | None = None) -> None:
        self.steps, self.told, self.seed = list(steps), list(told), seed
        super().__init__(steps, told, seed)

    def __str__(self) -> str:
        source = "" if self.seed is None else f" of seed {self.seed}"
        lines = [f"after {len(self.steps)} steps{source} the answers differ:", *map(str, self.steps)]
        return "\n".join([*lines, *self.told])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}… ({len(text)} characters)"


def answer(subject: Subject, step: Step) -> object:
    """Make the call and return its result, or the name of its error."""
    try:
        return getattr(subject, step.call)(*step.arguments)
    except OSError as error:
        return _name(error)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, f"errno {error.errno}")


class Comparison:
    """The model's side of a run: what each step must answer, and what of the answer counts."""

    def __init__(self, plan: Plan, model: Model | None = None) -> None:
        self._plan, self._model = plan, model or Model()
        self._done: list[Step] = []

    def steps(self, given: Sequence[Step]) -> Iterator[Step]:
        """Give the steps, with one of the whole tree in between and at the end."""
        for number, step in enumerate(given, 1):
            yield step
            if number % self._plan.tree_every == 0:
                yield Step("tree", ())
        yield Step("tree", ())

    def check(self, step: Step, got: object) -> bool:
        """Take the step on the model as well, and return whether it succeeded.

        Raises:
            Difference: the subject answered otherwise.
        """
        wanted = answer(self._model, step)
        self._done.append(step)
        if not alike(self._plan, wanted, got):
            raise Difference(self._done, list(self._told(wanted, got)))
        return not failed(wanted)

    def _told(self, wanted: object, got: object) -> Iterator[str]:
        """Give the lines that tell what differs, of whole trees only the names that do."""
        if isinstance(wanted, dict) and isinstance(got, dict):
            for key in sorted(set(wanted) | set(got)):
                if not alike(self._plan, wanted.get(key), got.get(key)):
                    yield f"{key}:"
                    yield from self._told(wanted.get(key), got.get(key))
            return
        yield f"  wanted: {_short(wanted)}"
        yield f"  got:    {_short(got)}"
        if isinstance(wanted, Node) and isinstance(got, Node):
            wanted, got = wanted.content, got.content
        if isinstance(wanted, bytes) and isinstance(got, bytes) and wanted != got:
            where = next((at for at, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), "the end")
            yield f"  {len(wanted)} and {len(got)} bytes, the first that differs at {where}"


def failed(answered: object) -> bool:
    """Return whether an `answer` is the name of an error."""
    return isinstance(answered, str) and answered in errno.errorcode.values()


def alike(plan: Plan, wanted: object, got: object) -> bool:
    """Return whether two answers are the same in all that ``plan`` compares; None in ``wanted`` facts is anything."""
    if isinstance(wanted, Facts) and isinstance(got, Facts):
        return all(
            name in plan.ignore
            or f"{wanted.kind}.{name}" in plan.ignore
            or getattr(wanted, name) in {None, getattr(got, name)}
            for name in ("kind", "size", "mode", "nlink", "mtime_ns")
        )
    if isinstance(wanted, Node) and isinstance(got, Node):
        same = alike(plan, wanted.facts, got.facts) and wanted.content == got.content
        return same and ("xattrs" in plan.ignore or wanted.xattrs == got.xattrs)
    if isinstance(wanted, dict) and isinstance(got, dict):
        return wanted.keys() == got.keys() and all(alike(plan, wanted[key], got[key]) for key in wanted)
    return wanted == got


def run(subject: Subject, given: Sequence[Step], plan: Plan | None = None, model: Model | None = None) -> int:
    """Take all steps on ``subject`` and on the model and return how many succeeded.

    Raises:
        Difference: the first time that the answers differ.
    """
    comparison = Comparison(plan or Plan(), model)
    return sum(comparison.check(step, answer(subject, step)) for step in comparison.steps(given))


async def run_async(
    subject: object, given: Sequence[Step], plan: Plan | None = None, model: Model | None = None
) -> int:
    """Do as `run` for a subject with the calls of `Subject` as coroutine functions."""
    comparison, succeeded = Comparison(plan or Plan(), model), 0
    for step in comparison.steps(given):
        try:
            got = getattr(subject, step.call)(*step.arguments)
            if inspect.isawaitable(got):
                got = await got
        except OSError as error:
            got = _name(error)
        succeeded += comparison.check(step, got)
    return succeeded


def minimised(given: Sequence[Step], fails: Callable[[Sequence[Step]], bool]) -> list[Step]:
    """Return as few of the steps as still fail: without halves, quarters, single ones, and pairs of what is left."""
    search, told = _search(given), None
    while True:
        try:
            candidate = search.send(told)
        except StopIteration as end:
            found: list[Step] = end.value
            return found
        told = fails(candidate)


async def minimised_async(given: Sequence[Step], fails: Callable[[Sequence[Step]], Awaitable[bool]]) -> list[Step]:
    """Do as `minimised` where a replay is a coroutine."""
    search, told = _search(given), None
    while True:
        try:
            candidate = search.send(told)
        except StopIteration as end:
            found: list[Step] = end.value
            return found
        told = await fails(candidate)


_Replays = Generator[list[Step], bool | None, list[Step]]  # gives candidates, takes whether they fail


def _search(given: Sequence[Step]) -> _Replays:
    kept = yield from _fewer(list(given))
    while True:
        simpler = yield from _simpler(kept)
        if simpler == kept:
            return kept
        kept = yield from _fewer(simpler)


def _fewer(kept: list[Step]) -> _Replays:
    """Leave out ever smaller pieces, at last any two that may only be needed for each other, as a move and its undoing."""
    size, replays = max(1, len(kept) // 2), 0
    while True:
        shrunk, start = False, 0
        while start < len(kept) and replays < REPLAYS_MAX:
            candidate = kept[:start] + kept[start + size :]
            replays += 1
            if (yield candidate):
                kept, shrunk = candidate, True
            else:
                start += size
        if size > 1:
            size //= 2
        elif not shrunk:
            break
    if len(kept) <= PAIRS_MAX:
        for one, other in itertools.combinations(range(len(kept)), 2):
            candidate = [step for number, step in enumerate(kept) if number not in {one, other}]
            if (yield candidate):
                return (yield from _fewer(candidate))
    return kept


def _simpler(kept: list[Step]) -> _Replays:
    """Put a name at the root in the place of each path that is longer, so that what made its directories can go."""
    names = ["x", "y", *sorted({word for step in kept for word in _words(step) if "/" not in word})]
    for number in range(len(kept)):
        for path in [word for word in _words(kept[number]) if "/" in word]:
            for name in names:
                changed = attrs.evolve(
                    kept[number],
                    arguments=tuple(name if argument == path else argument for argument in kept[number].arguments),
                )
                candidate = [*kept[:number], changed, *kept[number + 1 :]]
                if (yield candidate):
                    kept = candidate
                    break
    return kept


def _words(step: Step) -> list[str]:
    return [argument for argument in step.arguments if isinstance(argument, str)]


def check(
    fresh: SubjectFactory,
    seed: int,
    count: int,
    plan: Plan | None = None,
    model: Callable[[], Model] = Model,
) -> int:
    """Run ``count`` random steps on a fresh subject and return how many succeeded.

    Raises:
        Difference: with the seed, and with no more steps than needed to see it again.
    """
    chosen = plan or Plan()

    def fails(candidate: Sequence[Step]) -> Difference | None:
        with fresh() as subject:
            try:
                run(subject, candidate, chosen, model())
            except Difference as difference:
                return difference
        return None

    with fresh() as subject:
        try:
            return run(subject, steps(seed, count, chosen), chosen, model())
        except Difference as difference:
            first = difference
    taken = [step for step in first.steps if step.call != "tree"]
    least = minimised(taken, lambda candidate: fails(candidate) is not None)
    final = fails(least) or first  # one that comes and goes is told as it was seen first
    raise Difference(final.steps, final.told, seed)
