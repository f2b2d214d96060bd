"""A Databricks workspace as a tree of files: the hooks.

Folders, Git folders and plain workspace files are read and written; notebooks, dashboards, libraries and types that
are not known are shown and read, but not written. The service knows no preconditions and no ETags, so nothing here
is guarded: core asks before it acts, and what can be checked without an extra request is checked again here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar, Final
from weakref import WeakValueDictionary

import attrs
import trio

from fusekit.api import (
    Attributes,
    BackendError,
    Capabilities,
    Content,
    Denied,
    Entry,
    Exists,
    Expect,
    Invalid,
    IsDirectory,
    Kind,
    Mount,
    NotDirectory,
    NotFound,
    NotSupported,
    Page,
    Part,
    ReadOnly,
    Rename,
    Sink,
    Stale,
    TooLarge,
    Unavailable,
    Want,
    hookimpl,
)
from fusekit_databricks import layout
from fusekit_databricks.api import FILE_BYTES_MAX, Found, Workspace, http_date_s
from fusekit_databricks.auth import sign_in
from fusekit_databricks.layout import Address, Info
from fusekit_databricks.links import Link, Links
from fusekit_databricks.options import Options
from fusekit_databricks.problems import explain

logger = logging.getLogger(__name__)

_CAPABILITIES: Final = Capabilities(
    rename=Rename.FILES | Rename.DIRECTORIES | Rename.REPLACE,
    file_bytes_max=FILE_BYTES_MAX,
    forbidden=layout.CONTROL_CHARACTERS,
    time_step_ns=1_000_000,
)
_TOO_LARGE: Final = f"the workspace takes files of at most {FILE_BYTES_MAX} bytes (10 MiB)"
_READ_ONLY: Final = "is no plain file: notebooks, dashboards and libraries can only be read here"


class DatabricksBackend:
    """The workspace tree below one folder."""

    scheme: ClassVar[str] = "databricks"
    options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options, mount: Mount) -> None:
        self._top = options.path
        self._host, auth = sign_in(options)
        self.identity = self._host  # as it came out in the end: several options, variables and files can name it
        self._api = Workspace(mount.http(self._host, auth, explain))
        self._links = Links()
        self._locks: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        """Return the same for every folder: who may do what the service decides."""
        return _CAPABILITIES

    @hookimpl
    async def fusekit_access(self, entry: Entry, want: Want) -> None:
        """Refuse writing to what is no plain file before a byte of it is accepted."""
        if Want.WRITE in want and entry.kind is Kind.FILE and Address.of(entry.ref).form:
            raise ReadOnly(f"{entry.name} {_READ_ONLY}")

    @hookimpl
    async def fusekit_root(self) -> Entry:
        """Return the mounted folder; one request finds out whether host, token and path are right."""
        try:
            found = await self._api.object_info(self._top)
        except NotFound as error:
            raise NotFound(
                f"{self._host} has no folder {self._top}, or not for this user; write databricks:/Users/NAME",
                code=error.code,
                status=error.status,
            ) from error
        except Denied as error:
            if error.status == 401:
                raise
            raise Denied(f"{self._host} does not let this token see {self._top}: {error}", status=403) from error
        except NotSupported as error:
            raise NotSupported(f"{self._host} has no API for workspace files: {error}") from error
        except Unavailable as error:
            if error.status in {200, 301, 302, 303, 307, 308, 404}:
                # Somebody answers, but no workspace: waiting does not help.
                raise Invalid(
                    f"{self._host} is no Databricks workspace ({error}); is DATABRICKS_HOST right?"
                ) from error
            if error.status is None:
                raise type(error)(f"{error}; is DATABRICKS_HOST right?") from error
            raise
        if found.info.type not in layout.FOLDERS:
            raise NotDirectory(f"{self._top} in {self._host} is no folder but a {found.info.type.lower()}")
        return attrs.evolve(layout.entry_of(found.info), name="", ref=self._top)

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        """List a folder with one request, which brings the signed URLs of all its files along."""
        found = await self._api.list_files(directory.ref)
        if len(found) == 1 and found[0].info.path == directory.ref:
            raise NotDirectory(f"{directory.ref} is no folder")
        here = [one for one in found if layout.parent_of(one.info.path) == directory.ref]
        if len(here) < len(found):
            logger.warning("%s: %d objects of the listing lie elsewhere", directory.ref, len(found) - len(here))
        for one in here:
            self._keep_link(one)
        await page(layout.entries_of(one.info for one in here))

    @hookimpl
    async def fusekit_stat(self, directory: Entry, name: str, known: Entry | None) -> Entry:
        """Return one entry: one request, and one more for a missing name that a notebook could have."""
        path = layout.child(directory, name)
        if known is not None and known.name == name:
            address = Address.of(known.ref)
            if address.form and layout.parent_of(address.path) == directory.ref:
                entry = await self._notebook(address.path, name)
                if entry is not None:
                    return entry
        return await self._named(directory, path, name)

    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        """Read from cloud storage by signed URL, or by export where there is none.

        How sure is it that these are the bytes of ``entry.version``? A signed URL is only used for the version it
        came with, and the size of the whole file must match in every answer, before a byte is passed on. From the
        second answer of one URL on, its ETag must be the first one's. A Last-Modified later than the version's second
        raises the question, which one object-info after the bytes decides: as versions only move on, content that was
        there before that answer belongs to no later one. What remains undetected is a replacement of the same size
        under the same URL within the second in which the file was modified. Exports have no range and no ETag: a plain
        file's is preceded by an object-info and checked for size, any other is followed by one.
        """
        if (stop is not None and stop <= start) or (entry.size is not None and start >= entry.size):
            return
        address = Address.of(entry.ref)
        if address.form:
            await self._api.export(address.path, address.form, start, stop, sink, None)
            await self._require_version(entry)
            return
        link = self._links.find(address.path, entry.version)
        if link is not None:
            try:
                await self._download(link, entry, start, stop, sink)
            except (Denied, NotFound, Invalid) as error:
                # It expired, or the content went away: the clouds say 403, 404 or 400.
                logger.debug("a signed URL is refused: %s", error)
                self._links.drop(address.path, link)
            else:
                return
        link = await self._renewed(entry)
        if link is not None:
            try:
                await self._download(link, entry, start, stop, sink)
            except (Denied, NotFound, Invalid):
                self._links.drop(address.path, link)
                if entry.size is None or entry.size > FILE_BYTES_MAX:
                    raise
                logger.warning("cloud storage refuses a fresh URL; files up to 10 MiB are read by export instead")
            else:
                return
        await self._api.export(address.path, "SOURCE", start, stop, sink, entry.size)

    @hookimpl
    async def fusekit_write(
        self, directory: Entry | None, name: str, replacing: Entry | None, content: Content
    ) -> Entry:
        """Store a plain file with one import, and ask for version and times, which its answer lacks.

        Source with the header of a notebook would be turned into a notebook, under another path: such content goes by
        the call that takes bytes as they are. The object-info after the import may find the work of somebody who
        replaced the file in between; with the same size, that shows at the next stat only.
        """
        if directory is None:
            raise NotSupported("every file of a workspace has a name")
        path = layout.child(directory, name)
        if replacing is not None and Address.of(replacing.ref).form:
            raise ReadOnly(f"{name} {_READ_ONLY}")
        if content.size is not None and content.size > FILE_BYTES_MAX:
            raise TooLarge(f"{name} has {content.size} bytes; {_TOO_LARGE}")
        parts, whole = await _gathered(content, name)
        overwrite = replacing is not None
        if layout.may_become_notebook(path) and layout.is_notebook_source(await whole.read()):
            await self._api.import_raw(path, whole, overwrite=overwrite)
        else:
            await self._api.import_file(path, whole, overwrite=overwrite)
        self._links.drop(path)
        for part in parts:
            part.done()
        try:
            return layout.entry_of((await self._object(path)).info, name)
        except NotFound:
            # Made a notebook all the same, and shown under another name from the next listing on.
            stem = layout.notebook_stem(path)
            entry = None if stem is None else await self._notebook(stem[0], name)
            if entry is None:
                raise
            return entry

    @hookimpl
    async def fusekit_mkdir(self, directory: Entry, name: str, attributes: Attributes) -> Entry:
        """Make a folder.

        The service's call makes all folders above as well and is content with one that is there, so two questions,
        asked together, come before it. Within this mount they are as good as a lock; two mounts may both succeed.
        """
        path = layout.child(directory, name)
        async with self._lock(path):
            async with trio.open_nursery() as nursery:
                outcome: list[BackendError] = []
                nursery.start_soon(self._check_folder, directory, outcome)
                nursery.start_soon(self._check_free, path, outcome)
            if outcome:
                raise outcome[0]
            await self._api.mkdirs(path)
            return layout.entry_of((await self._object(path)).info, name)

    @hookimpl
    async def fusekit_rename(
        self, entry: Entry, source: Entry, target: Entry, name: str, replacing: Entry | None, exchange: bool
    ) -> Entry:
        """Move an object, over an existing file if ``replacing`` says so; one to three requests.

        The service replaces a file in the way without being told to, so a free name is asked for first. An empty
        folder in the way of a folder is deleted before: between the two there is none.
        """
        if exchange:
            raise NotSupported("a workspace cannot exchange two objects")
        address, path = Address.of(entry.ref), layout.child(target, name)
        if address.form:
            path = _renamed(entry, path, name)
        async with self._lock(path):
            if replacing is None:
                free: list[BackendError] = []
                await self._check_free(path, free)
                if free:
                    raise free[0]
            else:
                await self._make_way(entry, replacing)
            await self._api.rename(address.path, path)
        self._links.drop(address.path)
        self._links.drop(path)
        if entry.kind is Kind.DIRECTORY:
            self._links.drop_below(address.path)
            return attrs.evolve(entry, name=name, ref=path)
        return layout.entry_of((await self._object(path)).info, name)

    @hookimpl
    async def fusekit_remove(self, directory: Entry, entry: Entry) -> None:
        """Delete a file, notebook or empty folder with one request."""
        path = Address.of(entry.ref).path
        self._links.drop(path)
        await self._api.delete(path)

    async def _object(self, path: str) -> Found:
        """Return an object, remembering its signed URL."""
        found = await self._api.object_info(path)
        self._keep_link(found)
        return found

    def _keep_link(self, found: Found) -> None:
        if found.info.type == layout.FILE:
            self._links.keep(found.info.path, found.info.version, found.link)

    @asynccontextmanager
    async def _lock(self, path: str) -> AsyncIterator[None]:
        """Hold the one lock of ``path`` in this mount; it is for calls that must not pass each other."""
        lock = self._locks.setdefault(path, trio.Lock())
        async with lock:
            yield

    async def _named(self, directory: Entry, path: str, name: str) -> Entry:
        """Return what a folder shows as ``name``: the object at ``path``, else a notebook.

        Raises:
            NotFound: neither is there.
        """
        try:
            found = await self._object(path)
        except NotFound:
            entry = await self._unlike_its_name(directory, path, name)
            if entry is None:
                raise
            return entry
        if found.info.type != layout.NOTEBOOK:
            return layout.entry_of(found.info, name)
        entry = await self._unlike_its_name(directory, path, name)
        if entry is None:
            raise NotFound(f"the notebook {path} is shown as {layout.entry_of(found.info).name}")
        return entry

    async def _notebook(self, path: str, name: str) -> Entry | None:
        """Return the object at ``path`` under ``name`` if it still is something that is exported, None otherwise."""
        try:
            info = (await self._object(path)).info
        except NotFound:
            return None
        return None if info.type in layout.FOLDERS or info.type == layout.FILE else layout.entry_of(info, name)

    async def _unlike_its_name(self, directory: Entry, path: str, name: str) -> Entry | None:
        """Return what a folder shows as ``name`` although no object at ``path`` has it: a notebook."""
        if " (notebook" in name:  # one of those that had to make way; only the whole folder tells
            found = {entry.name: entry for entry in layout.entries_of(await self._infos(directory))}
            return found.get(name)
        stem = layout.notebook_stem(path)
        if stem is None:
            return None
        try:
            info = (await self._object(stem[0])).info
        except NotFound:
            return None
        if info.type != layout.NOTEBOOK:
            return None
        if layout.suffix_of(info).lower() == stem[1].lower():
            return layout.entry_of(info, name)
        if stem[1] != ".ipynb":
            return None
        # Shown as Jupyter only while something else has its own name.
        taken = {entry.name: entry for entry in layout.entries_of(await self._infos(directory))}
        return taken.get(name)

    async def _infos(self, directory: Entry) -> list[Info]:
        return [found.info for found in await self._api.list_files(directory.ref)]

    async def _download(self, link: Link, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        """Read a range of ``entry`` by its signed URL, and doubt what came where there is a reason to."""
        try:
            answer = await self._api.download(link, start, stop, sink, Expect(size=entry.size, etag=link.etag))
        except Stale:
            self._links.drop(entry.ref)
            raise
        link.etag = link.etag or answer.headers.get("etag")
        modified = answer.headers.get("last-modified")
        if modified is None or modified == link.confirmed or entry.version is None:
            return
        changed_s, known_ms = http_date_s(modified), layout.modified_ms(entry.version)
        if changed_s is not None and known_ms is not None and changed_s > known_ms // 1000:
            found = await self._require_version(entry)
            for one in filter(None, (link, found.link)):
                one.confirmed = modified

    async def _renewed(self, entry: Entry) -> Link | None:
        """Return a fresh signed URL for ``entry``, None where the service gives none; one request for all who wait.

        Raises:
            Stale: the file is no longer what ``entry`` describes.
        """
        path = Address.of(entry.ref).path
        async with self._lock(f"link {path}"):
            link = self._links.find(path, entry.version)
            if link is not None:
                return link
            found = await self._require_version(entry)
            return found.link

    async def _require_version(self, entry: Entry) -> Found:
        """Return the object behind ``entry``.

        Raises:
            Stale: it is of another version or type. NotFound: it is gone.
        """
        found = await self._object(Address.of(entry.ref).path)
        now = layout.entry_of(found.info, entry.name)
        if (now.kind, now.ref, now.version) != (entry.kind, entry.ref, entry.version):
            raise Stale(f"{entry.name} was changed at the service")
        return found

    async def _check_folder(self, directory: Entry, outcome: list[BackendError]) -> None:
        """Add to ``outcome`` why nothing can be made in ``directory``."""
        try:
            found = await self._api.object_info(directory.ref)
        except BackendError as error:
            outcome.append(error)
        else:
            if found.info.type not in layout.FOLDERS:
                outcome.append(NotDirectory(f"{directory.ref} is no folder any more"))

    async def _check_free(self, path: str, outcome: list[BackendError]) -> None:
        """Add to ``outcome`` why nothing can be made at ``path``."""
        try:
            await self._api.object_info(path)
        except NotFound:
            return
        except BackendError as error:
            outcome.append(error)
        else:
            outcome.append(Exists(f"{path} is there already"))

    async def _make_way(self, entry: Entry, replacing: Entry) -> None:
        """Refuse to replace what ``entry`` cannot replace; what it can the service replaces, but for empty folders."""
        if entry.kind is not Kind.DIRECTORY and replacing.kind is Kind.DIRECTORY:
            raise IsDirectory(f"{replacing.name} is a folder")
        if entry.kind is Kind.DIRECTORY and replacing.kind is not Kind.DIRECTORY:
            raise NotDirectory(f"{replacing.name} is no folder")
        if Address.of(replacing.ref).form or (Address.of(entry.ref).form and replacing.kind is Kind.FILE):
            raise ReadOnly(f"{replacing.name if Address.of(replacing.ref).form else entry.name} {_READ_ONLY}")
        if replacing.kind is Kind.DIRECTORY:
            await self._api.delete(replacing.ref)


def _renamed(entry: Entry, path: str, name: str) -> str:
    """Return the path to move something that is no plain file to, so that it is shown as ``name`` there."""
    if Address.of(entry.ref).form == "AUTO":
        return path
    suffix = f".{entry.name.rpartition('.')[2]}"
    if not name.endswith(suffix) or len(name) == len(suffix):
        raise Invalid(f"{entry.name} is a notebook; its name must keep ending in {suffix}")
    return path[: -len(suffix)]


async def _gathered(content: Content, name: str) -> tuple[list[Part], Part]:
    """Return all parts of ``content``, and one part with all the bytes: the service takes a file in one piece."""
    parts: list[Part] = []
    room = FILE_BYTES_MAX
    while (part := await content.next(max(room, 1))) is not None:
        parts.append(part)
        room -= part.stop - part.start
        if room < 0 or (room == 0 and not part.last):
            raise TooLarge(f"{name} is larger than {FILE_BYTES_MAX} bytes; {_TOO_LARGE}")
        if part.last:
            break
    if not parts:
        raise Invalid(f"nothing was given to write as {name}")
    return parts, parts[0] if len(parts) == 1 else _Whole(b"".join([await part.read() for part in parts]))


@attrs.frozen
class _Whole:
    """Parts that became one; what they were made of is acknowledged by itself."""

    data: bytes
    number: int = 1
    start: int = 0
    last: bool = True

    @property
    def stop(self) -> int:
        return len(self.data)

    async def read(self) -> memoryview:
        await trio.lowlevel.checkpoint()
        return memoryview(self.data)

    def done(self) -> None:
        """Nothing to free."""
