"""Random sequences of filesystem calls, run on a `Subject` and on the reference model side by side.

Outside the layers. `Plan` says which calls, names and sizes; `steps` draws a sequence from a seed; `run` (or `run_async`)
compares every answer and, each so many steps, the whole tree; `check` does that for a seed and cuts what fails down to
few steps. A step is data and prints as the Python that repeats it.
"""

from __future__ import annotations

import errno
import inspect
import os
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import attrs

from fusekit.testing.model import Facts, Model, Node, Subject

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_T = TypeVar("_T")
SubjectFactory = Callable[[], AbstractContextManager[Subject]]

REPLAYS_MAX: Final = 400  # while a failing sequence is cut down; each starts from an empty filesystem

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

    def __init__(self, steps: Sequence[Step], wanted: object, got: object, seed: int | None = None) -> None:
        self.steps, self.wanted, self.got, self.seed = list(steps), wanted, got, seed
        super().__init__(steps, wanted, got, seed)

    def __str__(self) -> str:
        source = "" if self.seed is None else f" of seed {self.seed}"
        lines = [f"after {len(self.steps)} steps{source} the answers differ:", *map(str, self.steps)]
        return "\n".join([*lines, *_told(self.wanted, self.got)])


def _told(wanted: object, got: object) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(got, dict):
        for key in sorted(set(wanted) | set(got)):
            if wanted.get(key) != got.get(key):
                yield f"{key}:"
                yield from _told(wanted.get(key), got.get(key))
    else:
        yield f"  wanted: {_short(wanted)}"
        yield f"  got:    {_short(got)}"
        if isinstance(wanted, bytes) and isinstance(got, bytes):
            where = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), None)
            yield f"  {len(wanted)} and {len(got)} bytes, the first that differs at {where}"


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
        if not self._alike(wanted, got):
            raise Difference(self._done, wanted, got)
        return not (isinstance(wanted, str) and wanted in errno.errorcode.values())

    def _alike(self, wanted: object, got: object) -> bool:
        if isinstance(wanted, Facts) and isinstance(got, Facts):
            return all(
                name in self._plan.ignore
                or f"{wanted.kind}.{name}" in self._plan.ignore
                or getattr(wanted, name) in {None, getattr(got, name)}
                for name in ("kind", "size", "mode", "nlink", "mtime_ns")
            )
        if isinstance(wanted, Node) and isinstance(got, Node):
            same = self._alike(wanted.facts, got.facts) and wanted.content == got.content
            return same and ("xattrs" in self._plan.ignore or wanted.xattrs == got.xattrs)
        if isinstance(wanted, dict) and isinstance(got, dict):
            return wanted.keys() == got.keys() and all(self._alike(wanted[key], got[key]) for key in wanted)
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
    """Return as few of the steps as still fail, by leaving out halves, quarters and so on down to single ones."""
    search = _Search(list(given))
    while (candidate := search.candidate()) is not None:
        search.tell(fails(candidate))
    return search.kept


async def minimised_async(given: Sequence[Step], fails: Callable[[Sequence[Step]], Awaitable[bool]]) -> list[Step]:
    """Do as `minimised` where a replay is a coroutine."""
    search = _Search(list(given))
    while (candidate := search.candidate()) is not None:
        search.tell(await fails(candidate))
    return search.kept


@attrs.define
class _Search:
    """Delta debugging as a conversation: a candidate is given, and whether it fails is told."""

    kept: list[Step]
    _start: int = 0
    _size: int = attrs.field(init=False)
    _replays: int = 0
    _shrunk: bool = False

    def __attrs_post_init__(self) -> None:
        self._size = max(1, len(self.kept) // 2)

    def candidate(self) -> list[Step] | None:
        if self._start >= len(self.kept):
            if self._size == 1 and not self._shrunk:
                return None
            self._start, self._size, self._shrunk = 0, max(1, self._size // 2), False
        if self._replays >= REPLAYS_MAX or len(self.kept) <= 1:
            return None
        self._replays += 1
        return self.kept[: self._start] + self.kept[self._start + self._size :]

    def tell(self, fails: bool) -> None:
        if fails:
            self.kept = self.kept[: self._start] + self.kept[self._start + self._size :]
            self._shrunk = True
        else:
            self._start += self._size


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
    raise Difference(final.steps, final.wanted, final.got, seed)
