"""A zip archive as a read-only filesystem: `fusekit mount zip:photos.zip DIR`."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import attrs
import trio

from fusekit.api import Entry, Mount, Page, Sink, hookimpl, option


@attrs.frozen
class Options:
    path: Path = option(converter=Path, help="the archive")


class ZipBackend:
    scheme, options = "zip", Options

    def __init__(self, options: Options, mount: Mount) -> None:
        self.zip = ZipFile(options.path)

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        inside = f"{directory.ref}/"[1:]
        heads = {n: n[len(inside) :].partition("/") for n in self.zip.namelist() if n.startswith(inside)}
        await page([Entry.directory(name) for name in {head for head, slash, _ in heads.values() if slash}])
        files = [(n, head) for n, (head, slash, _) in heads.items() if head and not slash]
        await page([Entry.file(head, size=self.zip.getinfo(n).file_size) for n, head in files])

    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        data = await trio.to_thread.run_sync(self.zip.read, entry.ref[1:])
        await sink.write(data, at=0)  # more than was asked for is welcome


@hookimpl
def fusekit_backends() -> list[type]:
    return [ZipBackend]
