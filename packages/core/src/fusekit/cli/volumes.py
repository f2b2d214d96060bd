"""Open a source for one command, without a mount: what `ls`, `cat`, `cp`, `rm`, `stat` and `info` have in common.

Cli layer. Such a command keeps cache and journal to itself, so that it works beside a mount of the same source.
"""

from __future__ import annotations

import posixpath
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import attrs

from fusekit.cli.output import cause, report
from fusekit.config import declared
from fusekit.errors import ConfigError, FusekitError, IsDirectory, NotDirectory, NotFound
from fusekit.plugins.sources import Request, resolve, split

if TYPE_CHECKING:
    from fusekit.vfs.paths import Paths
    from fusekit.volume import Volume

T = TypeVar("T")
Flags = Mapping[str, str | None]


@attrs.frozen
class Place:
    """Something in a source: what to open, and the path below its root (empty: the root itself)."""

    request: Request
    path: str

    @property
    def name(self) -> str:
        """Return the last part of the path, to call a copy by."""
        return posixpath.basename(self.path.rstrip("/")) or posixpath.basename(self.request.source.path.rstrip("/"))


def whole(text: str, flags: Flags) -> Place:
    """Return the place ``text``, taken for a directory: it is the root, or for ``PROFILE:path`` below the profile's."""
    request = resolve(text, flags)
    return Place(request, request.inner)


def within(text: str, flags: Flags) -> Place:
    """Return the place ``text`` as a name in the directory around it, which is the root; for files.

    Raises:
        IsDirectory: there is nothing around it.
    """
    word, path = split(text)
    request = resolve(text, flags)
    above, slash, name = path.rstrip("/").rpartition("/")
    if request.source.profile:
        if not request.inner.strip("/"):
            raise IsDirectory(f"{text} is a directory: the whole of the profile")
        return Place(request, request.inner)
    if not name:
        raise IsDirectory(f"{text} is a directory: the whole of the source")
    return Place(resolve(f"{word}:{above or slash or _here(request)}", flags), name)


def _here(request: Request) -> str:
    """Return the path around a plain name: for paths of this machine the working directory, else the backend's default."""
    options = declared(type(request.source.options), request.source.scheme)
    return "." if any(one.name == "path" and one.kind == "a path" for one in options) else ""


def opened(place: Place) -> AbstractAsyncContextManager[Volume]:
    """Give the open volume of a place."""
    from fusekit.volume import open_volume

    return open_volume(place.request.source, place.request.settings, private=True)


@asynccontextmanager
async def directory_or_file(text: str, flags: Flags) -> AsyncIterator[tuple[Paths, str]]:
    """Give paths and path of ``text``: as a directory of its own if it is one, else as a name in the one around it."""
    place = await _that_opens(text, flags)
    async with opened(place) as volume:
        yield volume.paths, place.path


async def _that_opens(text: str, flags: Flags) -> Place:
    place = whole(text, flags)
    if place.request.source.profile:
        return place
    try:
        async with opened(place) as volume:
            await volume.paths.list(place.path)
    except (FusekitError, ExceptionGroup) as error:
        if not isinstance(cause(error), NotDirectory | NotFound | ConfigError):
            raise
        try:
            return within(text, flags)
        except IsDirectory:
            raise error from None
    return place


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run ``work`` on trio."""
    import trio

    # SIGTERM as Ctrl-C: what was begun is cleaned up on the way out.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return trio.run(work)
    finally:
        signal.signal(signal.SIGTERM, before)


async def each(texts: Iterable[str], do: Callable[[str], Awaitable[None]]) -> bool:
    """Call ``do`` for each of ``texts``; one that fails is reported and keeps no other from its turn. True: all went well."""
    failed = False
    for text in texts:
        try:
            await do(text)
        except (FusekitError, ExceptionGroup, OSError) as error:
            if isinstance(cause(error), BrokenPipeError):
                raise
            report(error, text)
            failed = True
    return not failed
