"""Stand-ins for what core hands to a backend: a sink, a content to write, a mount; and short calls for tests.

Outside the layers. They are stricter than core need be (a part read after `done` is an error), so that a backend which
passes with them keeps the contract and not only the habits of one engine.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs
import trio

from fusekit.errors import Unavailable
from fusekit.plugins.manager import LayerFactory, stack
from fusekit.plugins.specs import Hooks
from fusekit.types import Attributes, Auth, Caller, Capabilities, Content, Entry, Explain, Http, Kind, Mount, Part

ME = Caller(uid=os.getuid(), gid=os.getgid(), pid=None)
NO_ATTRIBUTES = Attributes()


@attrs.define(eq=False)
class Buffer:
    """A `Sink` that keeps what it gets and where; ``start`` is where the read began."""

    start: int = 0
    data: bytearray = attrs.field(init=False, factory=bytearray)
    calls: int = attrs.field(init=False, default=0)
    _at: int = attrs.field(init=False)
    _spans: list[tuple[int, int]] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self._at = self.start

    async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        at = self._at if at is None else at
        stop = at + len(data)
        if len(self.data) < stop:
            self.data.extend(bytes(stop - len(self.data)))
        self.data[at:stop] = data
        self._at = stop
        self.calls += 1
        if data:
            self._spans = _merged([*self._spans, (at, stop)])
        await trio.lowlevel.checkpoint()

    def got(self, start: int, stop: int | None = None) -> bytes:
        """Return the bytes from ``start`` up to ``stop`` or the first that did not come."""
        end = next((span_stop for span_start, span_stop in self._spans if span_start <= start < span_stop), start)
        return bytes(self.data[start : end if stop is None else min(stop, end)])


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


@attrs.define(eq=False)
class Piece:
    """A `Part` of bytes; reading it after `done` fails the test."""

    number: int
    start: int
    stop: int
    last: bool
    data: bytes
    is_done: bool = False

    async def read(self) -> memoryview:
        await trio.lowlevel.checkpoint()
        assert not self.is_done, f"part {self.number} was read after it was done"
        return memoryview(self.data)

    def done(self) -> None:
        self.is_done = True


@attrs.define(eq=False)
class Upload:
    """A `Content` of ``data``.

    ``sized`` False is a program still writing: the size is unknown and no part is longer than ``step``. ``fail_at``
    raises `Unavailable` instead of giving the part of that number; ``hang_at`` sets ``reached`` there and waits for
    ``release``.
    """

    data: bytes
    sized: bool = True
    step: int | None = None
    fail_at: int | None = None
    hang_at: int | None = None
    attributes: Attributes = NO_ATTRIBUTES
    key: str = attrs.field(factory=lambda: os.urandom(8).hex())
    note: Mapping[str, str] = attrs.field(factory=dict)
    parts: list[Piece] = attrs.field(init=False, factory=list)
    states: list[str] = attrs.field(init=False, factory=list)
    reached: trio.Event = attrs.field(init=False, factory=trio.Event)
    release: trio.Event = attrs.field(init=False, factory=trio.Event)
    _at: int = attrs.field(init=False, default=0)

    @property
    def size(self) -> int | None:
        return len(self.data) if self.sized else None

    async def next(self, size: int) -> Part | None:
        await trio.lowlevel.checkpoint()
        assert size > 0, "a part of no bytes was asked for"
        if self.parts and self.parts[-1].last:
            return None
        number = len(self.parts) + 1
        if number == self.fail_at:
            raise Unavailable("the test cut the upload here")
        if number == self.hang_at:
            self.reached.set()
            await self.release.wait()
        stop = min(self._at + min(size, self.step or size), len(self.data))
        part = Piece(number, self._at, stop, stop == len(self.data), self.data[self._at : stop])
        self.parts.append(part)
        self._at = stop
        return part

    async def save(self, note: Mapping[str, str]) -> None:
        await trio.lowlevel.checkpoint()
        assert all(isinstance(word, str) for pair in note.items() for word in pair), "a note is text"
        self.note = dict(note)

    def report(self, state: str) -> None:
        self.states.append(state)

    def again(self) -> Upload:
        """Return the next attempt at this upload: the same bytes, key and note, and nothing in its way."""
        return Upload(
            self.data, sized=self.sized, step=self.step, attributes=self.attributes, key=self.key, note=self.note
        )


@attrs.define(eq=False)
class PlainMount:
    """A `Mount` that records what is said to have changed.

    ``http`` makes HTTP where the backend needs it; ``sources`` makes the hooks of other sources, by whole SOURCE.
    """

    http_factory: Callable[[str, Auth | None, Explain | None], Http] | None = None
    sources: Mapping[str, Callable[[Mount], Hooks]] = attrs.field(factory=dict)
    changes: list[tuple[str, str | None, str | None]] = attrs.field(init=False, factory=list)

    def http(self, base_url: str, auth: Auth | None = None, explain: Explain | None = None) -> Http:
        assert self.http_factory is not None, "this test gave its mount no HTTP"
        return self.http_factory(base_url, auth, explain)

    def changed(self, ref: str, name: str | None = None, principal: str | None = None) -> None:
        self.changes.append((ref, name, principal))

    def open(self, source: str, mount: Mount) -> Hooks:
        return self.sources[source](mount)


@attrs.frozen
class Place:
    """Where a test works: ``directory`` is empty, or holds what `fusekit.testing.conformance.SEED` says.

    ``seeded`` says which. ``exchange`` is a file of that kind, with a request and the answer that it must give.
    """

    hooks: Hooks
    directory: Entry
    seeded: bool = False
    exchange: tuple[Entry, bytes, bytes] | None = None

    @property
    def capabilities(self) -> Capabilities:
        return self.hooks.fusekit_capabilities(directory=self.directory)


@asynccontextmanager
async def opened(backend: object, layers: Sequence[LayerFactory] = (), *, seeded: bool = False) -> AsyncIterator[Place]:
    """Stack ``layers`` on ``backend``, enter the lifespans, and give the root as the place to work in."""
    made = stack(backend, layers)
    async with AsyncExitStack() as spans:
        for span in made.lifespans:
            await spans.enter_async_context(span)
        root = await made.hooks.fusekit_root(caller=ME)
        yield Place(made.hooks, root, seeded)


def resolved(directory: Entry, entry: Entry) -> Entry:
    """Return ``entry`` with the ref that core gives it where the backend left it out."""
    return entry if entry.ref else attrs.evolve(entry, ref=f"{directory.ref}/{entry.name}")


def arguments(directory: Entry, entry: Entry, name: str) -> dict[str, dict[str, Any]]:
    """Return what each operation can be called with, to see it refuse: ``entry`` or ``name`` in ``directory``; no caller.

    Left out are the five that every mount has: lifespan, capabilities, principal, access and root.
    """
    sink = Buffer()

    async def page(entries: Sequence[Entry]) -> None:
        raise AssertionError("a hook that was to refuse listed something")

    return {
        "fusekit_list": {"directory": directory, "page": page},
        "fusekit_stat": {"directory": directory, "name": name, "known": None},
        "fusekit_read": {"entry": entry, "start": 0, "stop": 1, "sink": sink},
        "fusekit_write": {"directory": directory, "name": name, "replacing": None, "content": Upload(b"x")},
        "fusekit_mkdir": {"directory": directory, "name": name, "attributes": NO_ATTRIBUTES},
        "fusekit_symlink": {"directory": directory, "name": name, "target": "x"},
        "fusekit_mknod": {"directory": directory, "name": name, "kind": Kind.FIFO, "attributes": NO_ATTRIBUTES},
        "fusekit_link": {"entry": entry, "directory": directory, "name": name},
        "fusekit_copy": {"entry": entry, "directory": directory, "name": name},
        "fusekit_rename": {
            "entry": entry,
            "source": directory,
            "target": directory,
            "name": name,
            "replacing": None,
            "exchange": False,
        },
        "fusekit_remove": {"directory": directory, "entry": entry},
        "fusekit_setattr": {"directory": directory, "entry": entry, "changes": NO_ATTRIBUTES},
        "fusekit_getxattrs": {"entry": entry},
        "fusekit_setxattr": {"entry": entry, "name": "color", "value": b"red"},
        "fusekit_statfs": {"directory": directory},
        "fusekit_exchange": {"entry": entry, "request": b"", "sink": sink},
    }


async def listed(hooks: Hooks, directory: Entry, caller: Caller = ME) -> dict[str, Entry]:
    """Return the entries of ``directory`` by name, a later one in place of an earlier one of that name."""
    found: dict[str, Entry] = {}

    async def page(entries: Sequence[Entry]) -> None:
        await trio.lowlevel.checkpoint()
        found.update({entry.name: resolved(directory, entry) for entry in entries})

    await hooks.fusekit_list(directory=directory, page=page, caller=caller)
    return found


async def looked_up(hooks: Hooks, directory: Entry, name: str, known: Entry | None = None) -> Entry:
    """Return the entry ``name`` as ``fusekit_stat`` tells it."""
    entry = await hooks.fusekit_stat(directory=directory, name=name, known=known, caller=ME)
    return resolved(directory, entry)


async def read(hooks: Hooks, entry: Entry, start: int = 0, stop: int | None = None) -> bytes:
    """Return the bytes ``start`` to ``stop`` (None: the end) of ``entry``."""
    sink = Buffer(start)
    await hooks.fusekit_read(entry=entry, start=start, stop=stop, sink=sink, caller=ME)
    return sink.got(start, stop)


async def written(
    hooks: Hooks, directory: Entry, name: str, content: Content | bytes, replacing: Entry | None = None
) -> Entry:
    """Write ``content`` as ``name`` and return its entry."""
    if isinstance(content, bytes):
        content = Upload(content)
    entry = await hooks.fusekit_write(directory=directory, name=name, replacing=replacing, content=content, caller=ME)
    return resolved(directory, entry)


async def made(hooks: Hooks, directory: Entry, name: str, attributes: Attributes = NO_ATTRIBUTES) -> Entry:
    """Make the directory ``name`` and return it."""
    entry = await hooks.fusekit_mkdir(directory=directory, name=name, attributes=attributes, caller=ME)
    return resolved(directory, entry)


async def moved(
    hooks: Hooks,
    entry: Entry,
    source: Entry,
    target: Entry,
    name: str,
    replacing: Entry | None = None,
    exchange: bool = False,
) -> Entry:
    """Rename ``entry`` and return what it is now."""
    result = await hooks.fusekit_rename(
        entry=entry, source=source, target=target, name=name, replacing=replacing, exchange=exchange, caller=ME
    )
    return resolved(target, result)
