"""The least service that takes large files over HTTP, and its backend: what an upload costs beside `curl -T` to the same server.

A file is one PUT, or one for each part (``?part=N&last=1`` on the last), several at a time: the shape that object stores have.
The server is the emulator base in a process of its own, so that it takes bodies in blocks and is nobody's bottleneck.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import trio

from fusekit.api import Attributes, Content, Entry, Mount, NotFound, Page, Part, hookimpl
from fusekit.testing.blobs import Blob
from fusekit.testing.emulator import Emulator, EmulatorOptions
from fusekit.testing.replies import Reply, text_reply
from fusekit.testing.routes import route
from fusekit.testing.server import Request

PART_BYTES: Final = 8 << 20
PARTS_AT_ONCE: Final = 4


class StoreEmulator(Emulator):
    """Keeps what is PUT to it; ``state`` tells sizes."""

    scheme: ClassVar[str] = "store"

    def __init__(self, settings: EmulatorOptions) -> None:
        super().__init__(settings)
        self._parts: dict[str, dict[int, Blob]] = {}
        self._changing = threading.Lock()
        self.add_routes(self)

    def environment(self) -> dict[str, str]:
        """Return nothing: who uses it knows where it is."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return the sizes of what was stored."""
        with self._changing:
            return {path: sum(blob.size for blob in parts.values()) for path, parts in self._parts.items()}

    def replace_state(self, state: Mapping[str, Any], *, merge: bool = False) -> None:
        """Forget everything."""
        with self._changing:
            self._parts.clear()

    @route("put", "PUT", "/{path...}")
    def put(self, request: Request) -> Reply:
        """Take a part."""
        blob = self.blobs.receive(request.body.blocks())
        with self._changing:
            self._parts.setdefault(request.params["path"], {})[int(request.query.get("part", "1"))] = blob
        return text_reply("stored\n", 201)


class StoreBackend:
    """Stores files, and remembers them for as long as it lives."""

    def __init__(self, url: str, mount: Mount) -> None:
        self._http = mount.http(url)
        self._entries: dict[str, Entry] = {}

    @hookimpl
    async def fusekit_list(self, page: Page) -> None:
        await page(list(self._entries.values()))

    @hookimpl
    async def fusekit_read(self) -> None:
        raise NotFound("this benchmark writes")

    @hookimpl
    async def fusekit_write(self, name: str, content: Content) -> Entry:
        limit = trio.CapacityLimiter(PARTS_AT_ONCE)

        async def send(part: Part) -> None:
            try:
                await self._http.send(f"/{name}", part, params={"part": str(part.number)})
                part.done()
            finally:
                limit.release_on_behalf_of(part)

        size = 0
        async with trio.open_nursery() as nursery:
            while (part := await content.next(PART_BYTES)) is not None:
                await limit.acquire_on_behalf_of(part)
                size = part.stop
                nursery.start_soon(send, part)
        times: Attributes = content.attributes
        entry = self._entries[name] = Entry.file(name, size=size, mtime_ns=times.mtime_ns, version=content.key)
        return entry
