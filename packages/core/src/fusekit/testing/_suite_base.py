"""What all parts of the conformance suite share: the fixture to give, the seed, and how a test names its hooks.

Outside the layers; see `fusekit.testing.conformance` for how to use the suite.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import ClassVar, Final, NoReturn

import attrs
import pytest

from fusekit.errors import NotFound
from fusekit.testing.harness import Place, listed, looked_up, made, written
from fusekit.types import Entry, Kind

SEED: Final[Mapping[str, bytes]] = {
    "hello.txt": b"Hello, world!\n",
    "empty": b"",
    "numbers.bin": b"".join(number.to_bytes(3, "big") for number in range(50_000)),  # no two places look alike
    "100% of a+b #1.txt": b"a name that URLs would mangle",
    "folder/inner.txt": b"inner",
    "folder/deeper/leaf": b"leaf",
}
"""What a place that is ``seeded`` holds: for backends that cannot be written to."""

# These have a default in core, so that a backend without them answers as well.
DEFAULTED: Final = frozenset(
    {"fusekit_lifespan", "fusekit_capabilities", "fusekit_principal", "fusekit_access", "fusekit_root"}
)

_Test = Callable[..., Awaitable[None]]


def covers(*hooks: str, using: tuple[str, ...] = ()) -> Callable[[_Test], _Test]:
    """Mark a test as one of ``hooks``; it is skipped where one of them, or of those it is ``using``, is absent."""

    def mark(test: _Test) -> _Test:
        @functools.wraps(test)
        async def run(self: Suite, place: Place, **given: object) -> None:
            missing = [h for h in (*hooks, *using) if h not in DEFAULTED and not place.capabilities.has(h)]
            if missing:
                self.skip(f"absent here: {', '.join(missing)}")
            await test(self, place, **given)

        run.__fusekit_covers__ = hooks  # type: ignore[attr-defined]  # read by `covered`
        return run

    return mark


def covered(suite: type[Suite]) -> dict[str, list[str]]:
    """Return the names of the tests of ``suite`` for each hook that they cover."""
    found: dict[str, list[str]] = {}
    for name in dir(suite):
        for hook in getattr(getattr(suite, name), "__fusekit_covers__", ()):
            found.setdefault(hook, []).append(name)
    return found


class Suite:
    """What a subclass may set: its ``place`` fixture must be given, the rest are limits of the service."""

    pytestmark: ClassVar[list[pytest.MarkDecorator]] = [pytest.mark.trio]

    refused_names: ClassVar[frozenset[str]] = frozenset()
    """Names among those tried that the service cannot store and refuses with `Invalid`."""
    big_bytes: ClassVar[int] = (3 << 20) + 1
    """Size of the largest file that is written; odd, and more than a part, where the service allows it."""
    many_entries: ClassVar[int] = 150
    """How many entries the long listing has; more than a page of the service, where that is bearable."""

    def skip(self, reason: str) -> NoReturn:
        """Skip this test; `fusekit.testing.plugin` shows the reason, which pytest-trio drops."""
        pytest.skip(reason)

    @pytest.fixture
    async def place(self) -> AsyncIterator[Place]:
        """Yield the place to work in, inside the lifespans of its hooks: `fusekit.testing.harness.opened` does it."""
        pytest.fail("the subclass of the suite gives the fixture `place`")
        yield  # noqa: PT022 - a subclass's is a generator, and so must this one be

    async def seed(self, place: Place) -> dict[str, Entry]:
        """Return the entries of `SEED` by path, after making them where the place was not seeded."""
        found: dict[str, Entry] = {"": place.directory}
        if not place.seeded and not place.capabilities.has("fusekit_write"):
            self.skip("nothing can be written here, and the place is not seeded")
        for path, data in SEED.items():
            *parents, name = path.split("/")
            if parents and not place.seeded and not place.capabilities.has("fusekit_mkdir"):
                continue
            if name in self.refused_names:
                continue
            for depth in range(len(parents)):
                above, here = "/".join(parents[:depth]), "/".join(parents[: depth + 1])
                if here not in found and place.seeded:
                    found[here] = await self.look(place, found[above], parents[depth])
                elif here not in found:
                    found[here] = await made(place.hooks, found[above], parents[depth])
            directory = found["/".join(parents)]
            if place.seeded:
                found[path] = await self.look(place, directory, name)
            else:
                found[path] = await written(place.hooks, directory, name, data)
        return found

    async def look(self, place: Place, directory: Entry, name: str, known: Entry | None = None) -> Entry:
        """Return the entry ``name`` as core would find it: by its hook, else in the listing."""
        if place.capabilities.has("fusekit_stat"):
            return await looked_up(place.hooks, directory, name, known)
        found = (await listed(place.hooks, directory)).get(name)
        if found is None:
            raise NotFound(name)
        return found

    async def missing(self, place: Place, directory: Entry, name: str) -> bool:
        """Return whether ``name`` is absent from lookup and listing alike."""
        in_list = name in await listed(place.hooks, directory)
        try:
            await self.look(place, directory, name)
        except NotFound:
            assert not in_list, f"{name!r} is listed and cannot be looked up"
            return True
        assert in_list or place.capabilities.unlisted_names, f"{name!r} can be looked up and is not listed"
        return False

    def need_guard(self, place: Place, entry: Entry) -> None:
        """Skip where core asks before it acts because the service cannot compare by itself."""
        if not place.capabilities.guarded or entry.version is None:
            self.skip("not guarded: core looks before it acts")


def agree(one: Entry, other: Entry) -> None:
    """Assert that two answers about one thing tell the same, as far as both tell."""
    for field in ("name", "kind", "id", "version", "blob", "size", "mtime_ns", "mode", "uid", "gid", "target", "rdev"):
        left, right = getattr(one, field), getattr(other, field)
        if left is not None and right is not None:
            assert left == right, f"{field} of {one.name!r} differs between two answers"


def describes(entry: Entry, name: str, data: bytes) -> None:
    """Assert that ``entry`` is a file of these bytes."""
    assert (entry.name, entry.kind) == (name, Kind.FILE)
    assert entry.size in {None, len(data)}, "an entry tells the size that was sent, or None"


def unlike(entry: Entry) -> Entry:
    """Return ``entry`` as it might have been before somebody else changed it."""
    return attrs.evolve(entry, version=f"{entry.version}-before")
