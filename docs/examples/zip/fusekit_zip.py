"""A zip archive as a read-only filesystem: `fusekit mount zip:photos.zip DIR`."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import attrs
import trio

from fusekit.api import Entry, Mount, Page, Sink, hookimpl, option


@attrs.frozen
class Options:
    """What the command line can say; `path` is what follows `zip:`."""

    path: Path = option(converter=Path, help="the archive")


class ZipBackend:
    """The archive as it was when it was mounted."""

    scheme, options = "zip", Options

    def __init__(self, options: Options, mount: Mount) -> None:
        self.zip = ZipFile(options.path)

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        """List what is directly in the directory; archives name files by whole paths, and need not name directories."""
        inside = f"{directory.ref}/"[1:]
        found: dict[str, Entry] = {}
        for info in self.zip.infolist():
            if info.filename.startswith(inside):
                head, slash, _ = info.filename[len(inside) :].partition("/")
                if head:
                    found[head] = Entry.directory(head) if slash else Entry.file(head, size=info.file_size)
        await page(list(found.values()))

    @hookimpl
    async def fusekit_read(self, entry: Entry, sink: Sink) -> None:
        """Hand over the whole file; more than was asked for is welcome, and kept."""
        data = await trio.to_thread.run_sync(self.zip.read, entry.ref[1:])
        await sink.write(data, at=0)


@hookimpl
def fusekit_backends() -> list[type]:
    """Tell fusekit what is here; the entry point in pyproject.toml names this module."""
    return [ZipBackend]
