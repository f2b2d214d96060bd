"""The suite follows what a backend declares: services that fold names, limit sizes, keep files for ever, tell little."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable

import attrs
import pytest

from fusekit.backends.memory import MemoryBackend, Options, _Node
from fusekit.errors import Invalid, NotSupported, TooLarge
from fusekit.plugins.specs import OPERATIONS, hookimpl
from fusekit.testing.conformance import BackendConformance
from fusekit.testing.harness import ME, Place, PlainMount, opened, resolved, written
from fusekit.types import Attributes, Caller, Capabilities, Content, Entry, Io, Kind, Rename, Sink

FILE_BYTES_MAX = 4 << 20


class _Folded(dict[str, _Node]):
    """Names that differ only in case are one."""

    def _same(self, name: str) -> str:
        return next((there for there in self if there.casefold() == name.casefold()), name)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(self._same(str(name)))

    def __getitem__(self, name: str) -> _Node:
        return super().__getitem__(self._same(name))

    def get(self, name: str, default: object = None) -> _Node | None:  # type: ignore[override]  # as memory calls it
        return super().get(self._same(name))

    def pop(self, name: str) -> _Node:  # type: ignore[override]  # as memory calls it
        return super().pop(self._same(name))


class Folding(MemoryBackend):
    """Case does not count, files are small, bytes have names, and only files are renamed, to free names."""

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return Capabilities(
            rename=Rename.FILES,
            guarded=True,
            unlinked=True,
            ranges=False,
            requests_max=2,
            file_bytes_max=FILE_BYTES_MAX,
            name_bytes_max=100,
            forbidden="\\",
            fold=str.casefold,
        )

    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        await super().fusekit_read(entry, 0, None, sink)

    @hookimpl
    async def fusekit_write(
        self, directory: Entry | None, name: str, replacing: Entry | None, content: Content, caller: Caller
    ) -> Entry:
        if content.size is not None and content.size > FILE_BYTES_MAX:
            raise TooLarge("more than this service takes")
        if directory is not None:
            return await super().fusekit_write(directory, name, replacing, content, caller)
        node = self._make(Kind.FILE, content.attributes, caller)
        data = bytearray()
        while (part := await content.next(1000)) is not None:
            data += await part.read()
            part.done()
        node.data = data
        return attrs.evolve(self._entry("", node), ref=f"#{node.number}")

    @hookimpl
    async def fusekit_rename(
        self, entry: Entry, source: Entry, target: Entry, name: str, replacing: Entry | None, exchange: bool
    ) -> Entry:
        if entry.kind is Kind.DIRECTORY or replacing is not None or exchange:
            raise NotSupported("only files, and only to names that are free")
        self._free(target, name if target.ref != source.ref or name.casefold() != entry.name.casefold() else "free")
        return await super().fusekit_rename(entry, source, target, name, replacing, exchange)

    @hookimpl
    async def fusekit_exchange(self, request: bytes, sink: Sink) -> None:
        await sink.write(request.upper())

    def _free(self, directory: Entry, name: str) -> _Node:
        if "\\" in name:
            raise Invalid("no backslash in names here")
        return super()._free(directory, name)

    def _make(self, kind: Kind, attributes: Attributes, caller: Caller | None) -> _Node:
        node = super()._make(kind, attributes, caller)
        node.children = _Folded()
        return node

    def _entry(self, name: str, node: _Node) -> Entry:
        entry = super()._entry(name, node)
        return attrs.evolve(entry, blob=hashlib.sha256(node.data).hexdigest() if entry.kind is Kind.FILE else None)


class TestFolding(BackendConformance):
    @pytest.fixture
    async def place(self) -> AsyncIterator[Place]:
        async with opened(Folding(Options(), PlainMount())) as place:
            above = place.directory
            asked = attrs.evolve(await written(place.hooks, above, "ask", b""), io=Io.EXCHANGE)
            made = await place.hooks.fusekit_mkdir(directory=above, name="here", attributes=Attributes(), caller=ME)
            yield attrs.evolve(place, directory=resolved(above, made), exchange=(asked, b"question", b"QUESTION"))


class Final(MemoryBackend):
    """A closed file is never written again, and the service tells neither ids nor versions nor times."""

    absent = frozenset({"fusekit_link", "fusekit_stat", "fusekit_setattr", "fusekit_symlink", "fusekit_mknod"})

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return Capabilities(hooks=frozenset(OPERATIONS) - self.absent - {"fusekit_exchange"}, replace=False)

    @hookimpl
    async def fusekit_write(
        self, directory: Entry | None, name: str, replacing: Entry | None, content: Content, caller: Caller
    ) -> Entry:
        if replacing is not None:
            raise NotSupported("files are final here")
        return await super().fusekit_write(directory, name, replacing, content, caller)

    @hookimpl
    async def fusekit_rename(
        self, entry: Entry, source: Entry, target: Entry, name: str, replacing: Entry | None, exchange: bool
    ) -> Entry:
        if exchange:
            raise NotSupported("nothing changes places here")
        return await super().fusekit_rename(entry, source, target, name, replacing, exchange)

    def _entry(self, name: str, node: _Node) -> Entry:
        entry = super()._entry(name, node)
        return Entry(name, entry.kind, entry.ref, size=entry.size, nlink=entry.nlink, rdev=entry.rdev)


def _refusing(names: Iterable[str]) -> type[Final]:
    """Return the class with hooks that it has elsewhere and not in this place."""

    async def refuse(self: object) -> None:
        raise NotSupported("not here")

    return type("FinalHere", (Final,), {name: hookimpl(refuse) for name in names})


class TestFinal(BackendConformance):
    @pytest.fixture
    async def place(self) -> AsyncIterator[Place]:
        async with opened(_refusing(Final.absent)(Options(), PlainMount())) as place:
            yield place
