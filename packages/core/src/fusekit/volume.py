"""A volume: everything of a mount but the kernel, put together and taken apart in the right order.

Above the vfs, below the adapter. `open_volume` makes the backend and its layers, the HTTP pools they ask for, cache,
journal and file system; the command line drives it directly, `fusekit.fuse.session` puts a kernel on top.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
import trio

from fusekit import __version__
from fusekit.cache.blocks import Blocks, open_blocks
from fusekit.cache.listings import Remembered
from fusekit.config import LayerChoice, Source
from fusekit.config import identity as identity_of
from fusekit.disk import Disk
from fusekit.errors import FusekitError, MountError, PluginError
from fusekit.journal.journal import Journal, Row, State
from fusekit.metrics import Metrics
from fusekit.plugins import manager
from fusekit.plugins.sources import resolve
from fusekit.plugins.specs import OPERATIONS, Hooks
from fusekit.settings import Settings, Write
from fusekit.transfer.calls import Calls
from fusekit.transfer.limits import Limits
from fusekit.types import Auth, Caller, Entry, Explain, Http, Mount
from fusekit.vfs.filesystem import Filesystem
from fusekit.vfs.paths import Paths

if TYPE_CHECKING:
    from fusekit.transfer.client import Client

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How often who waits for the end of a mount, to take its place, can read how far that is.
TELL_INTERVAL_S: Final = 0.5

Invalidate = Callable[[int, str | None], None]


class Volume:
    """One source, open. ``identity`` names its store, so that cache, journal and numbers are found again, and no others."""

    def __init__(self, source: str, settings: Settings, identity: str, mount: VolumeMount) -> None:
        self.source = source
        self.settings = settings
        self.identity = identity
        self.mount = mount
        self.metrics = Metrics()
        self.began = time.time()
        self.hooks: Hooks
        self.filesystem: Filesystem
        self.journal: Journal
        self.blocks: Blocks
        self.paths: Paths
        self.kernel: dict[str, Any] = {}  # its limits, as far as there is a kernel
        self.kernel_known = trio.Event()
        self.ending: Callable[[], None] = lambda: None
        self._ends: float | None = None

    def end_by(self) -> float:
        """Return the time on trio's clock at which what is not sent is left to the journal.

        It is the drain timeout from when somebody first asks, which begins the end; ``ending`` is called then, once.
        """
        if self._ends is None:
            self._ends = trio.current_time() + self.settings.drain_timeout_s
            self.ending()
        return self._ends

    @property
    def me(self) -> Caller:
        """Return the mounting user as a caller."""
        return Caller(os.getuid(), os.getgid(), os.getpid(), self.mount.principal)

    async def drain(self) -> None:
        """Send what can be sent, and tell whoever wants the same store meanwhile how much that still is."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_rest)
            await self.filesystem.drain()
            nursery.cancel_scope.cancel()

    async def _tell_rest(self) -> None:
        while left := len(self.filesystem.unsent()):
            await self.journal.tell(
                f"the mount of {self.source}, which is still draining, {left} file{'' if left == 1 else 's'}"
            )
            await trio.sleep(TELL_INTERVAL_S)

    async def flush(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer `fusekit flush`: hurry what waits below a path of the mount, and tell what is left."""
        below = str(request.get("below", "/"))
        await self.filesystem.flush_below(below, self.me, wait=bool(request.get("wait")))
        within = f"{below.rstrip('/')}/"
        return {"left": [path for path in self.filesystem.unsent() if f"{path}/".startswith(within)]}

    async def retry(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer `fusekit journal retry`."""
        await self.filesystem.recovery.retry([int(row) for row in request["rows"]], self.me)
        return {}

    async def discard(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer `fusekit journal discard`."""
        await self.filesystem.recovery.discard([int(row) for row in request["rows"]], self.me)
        return {}

    async def status(self) -> dict[str, Any]:
        """Return what `fusekit status` shows, as plain values."""
        rows = await self.journal.rows()
        return {
            "source": self.source,
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(time.time() - self.began, 1),
            "write": self.settings.write.value,
            "consistency": self.settings.consistency.value,
            "unsent": self.filesystem.unsent(),
            "failed": self.filesystem.files.commits.kept.failures(),
            "journal": [described(row, self.journal) for row in rows],
            "store": self.identity,
            "journal_directory": str(self.journal.directory),
            "waiting_bytes": sum(row.size for row in rows if row.state in {State.FLUSHED, State.SENDING}),
            "handles": len(self.filesystem.handles),
            "inodes": len(self.filesystem.tree.inodes),
            "hosts": self.mount.hosts(),
            **self.blocks.as_dict(),
            "kernel": self.kernel,
            **self.metrics.as_dict(),
        }

    def info(self) -> dict[str, Any]:
        """Return what `fusekit info` shows: what the source can do at its top, and how it is set up."""
        fact = self.filesystem.tree.fact(self.filesystem.tree.inodes.root, self.me)
        capabilities = self.hooks.fusekit_capabilities(directory=fact.entry if fact else Entry.directory(""))
        values = attrs.asdict(capabilities, filter=lambda field, _: field.name not in {"hooks", "fold", "rename"})
        return {
            "source": self.source,
            "hooks": sorted(hook for hook in OPERATIONS if capabilities.has(hook)),
            "capabilities": {**values, "rename": [flag.name for flag in capabilities.rename]},
            "case_folding": capabilities.fold is not None,
            "skipped_names": self.metrics.skipped_names,
            "hosts": self.mount.hosts(),
            "long_directories": self.filesystem.tree.listings.long_directories,
            "kernel": self.kernel,
        }


def described(row: Row, journal: Journal) -> dict[str, Any]:
    """Return what is told of a row of the journal, as plain values."""
    return {
        "id": row.id,
        "path": row.path,
        "state": row.state.value,
        "size": row.size,
        "error": row.error,
        "whole": row.whole,
        "changed": row.updated_ns / 1e9,
        "staging": str(journal.staging_path(row.staging)),
    }


class VolumeMount:
    """What a backend or layer gets as its `Mount`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: list[Client] = []
        self._limits = Limits(settings.requests_max)
        self._tls: ssl.SSLContext | None = None
        self.opened: list[manager.Stack] = []
        self.volume: Volume | None = None
        self.invalidate: Invalidate | None = None
        self.principal = ""

    def http(self, base_url: str, auth: Auth | None = None, explain: Explain | None = None) -> Http:
        # Imported late: half of the start-up time of a mount that speaks no HTTP.
        from fusekit.transfer.client import Client
        from fusekit.transfer.trouble import tls_context

        self._tls = self._tls or tls_context(self._settings.ca_file)
        client = Client(
            base_url,
            auth,
            explain,
            tls=self._tls,
            limits=self._limits,
            connect_timeout_s=self._settings.metadata_timeout_s,
            idle_timeout_s=self._settings.idle_timeout_s,
        )
        self._clients.append(client)
        return client

    def hosts(self) -> dict[str, dict[str, Any]]:
        """Return how many requests run and wait at each host that was asked, and how many may run."""
        return {authority: attrs.asdict(found) for authority, found in self._limits.statistics().items()}

    def changed(self, ref: str, name: str | None = None, principal: str | None = None) -> None:
        """Ask again before what was said to have changed is believed, here and in the kernel."""
        if self.volume is None:
            return
        tree = self.volume.filesystem.tree
        tree.unsaved(ref)
        views = tree.metadata.views() if principal is None else [tree.metadata.view(principal)]
        last = ref.rpartition("/")[2]
        for view in views:
            for ino, fact in list(view.facts.items()):
                node = tree.inodes.get(ino)
                # An address that was not told ends in the name: so not a million of them are made for one change.
                if node is None or (fact.ref or node.name) not in {ref, last} or tree.address(node, view) != ref:
                    continue
                touched = [ino]
                if name is not None and (record := view.directories.get(ino)) is not None:
                    touched += [child for key, child in record.names.items() if key == name]
                for number in touched:
                    tree.metadata.expire(number)
                if self.invalidate is not None:
                    self.invalidate(ino, name)

    def open(self, source: str, mount: Mount) -> Hooks:
        """Return the hooks of another source as part of this mount."""
        stack = _stack(resolve(source).source, self._settings, mount)
        self.opened.append(stack)
        return stack.hooks

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.aclose()


@asynccontextmanager
async def open_volume(source: Source, settings: Settings, *, private: bool = False) -> AsyncIterator[Volume]:
    """Open ``source`` and hand out the volume; at the end everything is sent, closed and given back.

    ``private`` keeps cache and journal in a temporary directory, for commands that run beside a mount.

    Raises:
        ConfigError, PluginError: the source cannot be made. MountError: another process has its directories.
        BackendError: the service refuses its root.
    """
    async with open_stack(
        lambda mount: _stack(source, settings, mount), str(source), settings, private=private
    ) as volume:
        yield volume


@asynccontextmanager
async def open_stack(
    make: Callable[[Mount], manager.Stack], source: str, settings: Settings, *, private: bool = False
) -> AsyncIterator[Volume]:
    """As `open_volume`, for a backend that ``make`` makes (a test's, or one without an entry point)."""
    if private and settings.write is Write.ASYNC:
        settings = attrs.evolve(settings, write=Write.SYNC)  # its journal ends with the command
    mount = VolumeMount(settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(mount.aclose)
        built = make(mount)
        identity = _digest(source, [*mount.opened, built])
        volume = Volume(source, settings, identity, mount)
        volume.hooks = built.hooks
        cache_dir = settings.cache_dir and settings.cache_dir / identity
        state_dir = settings.state_dir / identity
        if private:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fusekit-")))
            cache_dir, state_dir = settings.cache_dir and scratch / "cache", scratch / "state"
        for opened in (*mount.opened, built):
            for lifespan in opened.lifespans:
                await stack.enter_async_context(lifespan)
        calls = Calls(built.hooks, settings, volume.metrics)
        disk = Disk()
        owner = f"the mount of {source}"
        volume.journal = await _opened(Journal.open(state_dir, owner, source=source), state_dir)
        stack.push_async_callback(volume.journal.close)
        opening = open_blocks(cache_dir, owner, calls, disk, settings)
        volume.blocks = await _opened(stack.enter_async_context(opening), cache_dir or state_dir)
        remembered = None if private or cache_dir is None else await Remembered.open(cache_dir, identity)
        if remembered is not None:
            stack.push_async_callback(remembered.close)
        volume.filesystem = Filesystem(
            calls, volume.blocks, volume.journal, disk, settings, volume.metrics, identity, remembered
        )
        await stack.enter_async_context(volume.filesystem.running())
        mount.volume = volume
        with calls.starting():
            caller = await volume.filesystem.caller(os.getuid(), os.getgid(), os.getpid())
            mount.principal = caller.principal
            await volume.filesystem.start(caller)
        volume.paths = Paths(volume.filesystem, caller)
        if settings.write is not Write.OFF:
            await volume.filesystem.recover(caller)
        await _report_left(volume)
        try:
            yield volume
        finally:
            with trio.CancelScope(shield=True, deadline=volume.end_by()):
                await volume.drain()


def _stack(source: Source, settings: Settings, mount: Mount) -> manager.Stack:
    """Make the backend of ``source`` and put its layers on."""
    cls = manager.backend_class(source.scheme)
    backend = _made(lambda: cls(source.options, mount), f"the backend {source.scheme!r}")

    def factory(layer: LayerChoice) -> Callable[[Hooks], object]:
        above = manager.layer_class(layer.name)
        return lambda inner: _made(lambda: above(layer.options, mount, inner), f"the layer {layer.name!r}")

    built = manager.stack(backend, [factory(layer) for layer in source.layers])
    return attrs.evolve(built, identity=(identity_of(source), *built.identity))


def _digest(source: str, stacks: Sequence[manager.Stack]) -> str:
    """Return the name of a store: of all that says which it is, of its own and of the sources that it is made of."""
    words = json.dumps([source, *(stack.identity for stack in stacks)])
    return blake2b(words.encode(), digest_size=8).hexdigest()


def _made(make: Callable[[], object], what: str) -> object:
    try:
        return make()
    except FusekitError:
        raise
    except Exception as error:
        logger.debug("%s cannot be made", what, exc_info=True)
        raise PluginError(f"{what} cannot be made: {type(error).__name__}: {error}") from error


async def _opened(opening: Awaitable[T], directory: Path) -> T:
    try:
        return await opening
    except OSError as error:
        raise MountError(f"{directory}: {error.strerror}; choose another with --cache-dir or --state-dir") from error


async def _report_left(volume: Volume) -> None:
    """Say what an earlier run left unsent; it is kept until the user decides."""
    going_on = {State.FLUSHED, State.SENDING} if volume.settings.write is not Write.OFF else set()
    for row in await volume.journal.rows():
        if row.state in going_on:
            logger.info("%s was not sent when the last mount ended, and is on its way", row.path)
            continue
        what = "was not closed" if row.state is State.OPEN else "was not sent"
        logger.warning("%s %s when the last mount ended; its bytes are kept in %s", row.path, what, row.staging)
