"""Every call of a hook by the engine: deadline, retries, counters, and the question after an unknown outcome.

Transfer layer, right above the plugins. The layers above call `Calls` and never a hook, so that there is one place
that knows which hooks are safe to repeat and what is asked when a call failed so that nobody knows whether it acted.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import trio

from fusekit.errors import BackendError, Exists, NoSpace, NotFound, Stale, TimedOut, Unreachable
from fusekit.metrics import Metrics
from fusekit.plugins.specs import Hooks
from fusekit.settings import Settings
from fusekit.transfer.inlet import Inlet
from fusekit.transfer.retry import RETRIABLE, RETRIABLE_ONCE, RETRIABLE_READ, Failures, Progress, RetryPolicy
from fusekit.types import Attributes, Caller, Capabilities, Content, Entry, Kind, Page, Part, Sink, Space, Want

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Deadline:
    """A deadline over several attempts, which progress pushes on: nothing may stand still for longer than ``idle_s``."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._scope: trio.CancelScope | None = None
        self.at = trio.current_time() + idle_s

    def moved(self) -> None:
        """Start the idle time again."""
        self.at = trio.current_time() + self._idle_s
        if self._scope is not None:
            self._scope.deadline = self.at

    def scope(self) -> trio.CancelScope:
        """Return the scope for one attempt; a cancel scope serves once, so each attempt has its own."""
        self._scope = trio.CancelScope(deadline=self.at)
        return self._scope


class Calls:
    """The hooks of one mount as the engine calls them."""

    def __init__(self, hooks: Hooks, settings: Settings, metrics: Metrics) -> None:
        self._hooks = hooks
        self._settings = settings
        self._metrics = metrics
        self._retry = RetryPolicy()
        self._failures = Failures()
        self._starting = False
        self._places = frozenset(self.capabilities(Entry.directory("")).hooks or ())

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Give up at once while the block runs where nobody answers at an address: it may be wrong, and a user waits."""
        self._starting = True
        try:
            yield
        finally:
            self._starting = False

    # ---- from memory -------------------------------------------------------------------------------------------

    def capabilities(self, directory: Entry) -> Capabilities:
        """Return what can be done in ``directory``."""
        return self._hooks.fusekit_capabilities(directory=directory)

    def implements(self, hook: str) -> bool:
        """Return whether any place of this mount has ``hook``, as told for the top at mount time."""
        return hook in self._places

    # ---- safe to repeat ----------------------------------------------------------------------------------------

    async def principal(self, uid: int, gid: int, pid: int) -> str:
        """Return the public name under which a local user acts."""
        return await self._metadata("principal", lambda: self._hooks.fusekit_principal(uid=uid, gid=gid, pid=pid), str)

    async def access(self, entry: Entry, want: Want, caller: Caller) -> None:
        """Raise `Denied` if ``caller`` may not do ``want``."""
        await self._metadata(
            "access", lambda: self._hooks.fusekit_access(entry=entry, want=want, caller=caller), type(None)
        )

    async def root(self, caller: Caller) -> Entry:
        """Return the directory that is mounted."""
        return await self._metadata("root", lambda: self._hooks.fusekit_root(caller=caller), Entry)

    async def stat(self, directory: Entry, name: str, known: Entry | None, caller: Caller) -> Entry:
        """Return the entry ``name``, as the hook tells it."""
        return await self._metadata(
            "stat",
            lambda: self._hooks.fusekit_stat(directory=directory, name=name, known=known, caller=caller),
            Entry,
        )

    async def find(self, directory: Entry, name: str, known: Entry | None, caller: Caller) -> Entry:
        """Return the entry ``name`` by the stat hook, or from the listing where there is none.

        Raises:
            NotFound: there is no such name.
        """
        capabilities = self.capabilities(directory)
        if capabilities.has("fusekit_stat"):
            return await self.stat(directory, name, known, caller)
        fold = capabilities.fold or str
        wanted = fold(name)
        found: list[Entry] = []

        async def page(entries: Sequence[Entry]) -> None:
            found.extend(entry for entry in entries if fold(entry.name) == wanted)

        await self.list(directory, page, caller)
        if not found:
            raise NotFound(f"no {name!r} in the listing of its directory")
        return found[-1]

    async def list(self, directory: Entry, page: Page, caller: Caller) -> None:
        """Hand all entries of ``directory`` to ``page``; entries may come twice, after a retry all of them do."""
        deadline = Deadline(self._settings.idle_timeout_s)

        async def moving(entries: Sequence[Entry]) -> None:
            deadline.moved()
            await page(entries)
            deadline.moved()

        async def attempt() -> None:
            await self._hooks.fusekit_list(directory=directory, page=moving, caller=caller)

        try:
            await self._repeat("list", attempt, deadline, type(None))
        except Stale:
            await self._repeat("list", attempt, deadline, type(None))

    async def read(self, entry: Entry, start: int, stop: int | None, sink: Sink, caller: Caller) -> None:
        """Bring the bytes ``start`` to ``stop`` to ``sink``; after a retry only those that are missing.

        What failed for good a moment ago fails at once: the kernel asks for the next page when the first was EIO.
        """
        place = (caller.principal, entry.ref, entry.version)
        self._failures.check(place, start, stop)
        deadline = Deadline(self._settings.idle_timeout_s)
        kind = _MovingInlet if isinstance(sink, Inlet) else _Moving
        moving = kind(sink, start, deadline)
        reading = Progress(lambda: moving.reached, stop)

        async def attempt() -> None:
            moving.next = moving.reached
            if stop is None or moving.reached < stop:
                await self._hooks.fusekit_read(entry=entry, start=moving.reached, stop=stop, sink=moving, caller=caller)

        try:
            await self._repeat("read", attempt, deadline, type(None), progress=reading, passing=RETRIABLE_READ)
        except RETRIABLE_READ as error:
            self._failures.add(place, moving.reached, stop, error)
            raise
        self._metrics.bytes_read += moving.reached - start

    def forget_failures(self) -> None:
        """Try again what failed a moment ago: somebody asks who may know that it is repaired, not the kernel."""
        self._failures.clear()

    async def getxattrs(self, entry: Entry, caller: Caller) -> Mapping[str, bytes]:
        """Return all extended attributes of ``entry``."""
        return await self._metadata(
            "getxattrs",
            lambda: self._hooks.fusekit_getxattrs(entry=entry, caller=caller),
            Mapping,  # type: ignore[type-abstract]  # only for isinstance
        )

    async def statfs(self, directory: Entry, caller: Caller) -> Space:
        """Return the space around ``directory``."""
        return await self._metadata(
            "statfs", lambda: self._hooks.fusekit_statfs(directory=directory, caller=caller), Space
        )

    async def write(
        self,
        directory: Entry | None,
        name: str,
        replacing: Entry | None,
        content: Content,
        caller: Caller,
        settle: Callable[[], Awaitable[Entry | None]],
    ) -> Entry:
        """Store ``content``; safe to repeat by its key and note, within the commit deadline.

        ``settle`` is asked before each repeat: it looks whether the attempt before arrived after all, and returns
        the entry if so.
        """
        deadline = Deadline(self._settings.idle_timeout_s)
        moving = _MovingContent(content, deadline)

        async def attempt() -> Entry:
            return await self._hooks.fusekit_write(
                directory=directory, name=name, replacing=replacing, content=moving, caller=caller
            )

        entry = await self._repeat(
            "write", attempt, deadline, Entry, total_s=self._settings.commit_timeout_s, settle=settle
        )
        self._metrics.bytes_written += entry.size or 0
        return entry

    # ---- acts once ---------------------------------------------------------------------------------------------

    async def mkdir(self, directory: Entry, name: str, attributes: Attributes, caller: Caller) -> Entry:
        """Make the directory ``name``."""
        return await self._make(
            "mkdir",
            lambda: self._hooks.fusekit_mkdir(directory=directory, name=name, attributes=attributes, caller=caller),
            lambda found: found.kind is Kind.DIRECTORY,
            (directory, name, caller),
        )

    async def symlink(self, directory: Entry, name: str, target: str, caller: Caller) -> Entry:
        """Make the symbolic link ``name``."""
        return await self._make(
            "symlink",
            lambda: self._hooks.fusekit_symlink(directory=directory, name=name, target=target, caller=caller),
            lambda found: found.kind is Kind.SYMLINK and found.target == target,
            (directory, name, caller),
        )

    async def mknod(self, directory: Entry, name: str, kind: Kind, attributes: Attributes, caller: Caller) -> Entry:
        """Make the special file ``name``."""
        return await self._make(
            "mknod",
            lambda: self._hooks.fusekit_mknod(
                directory=directory, name=name, kind=kind, attributes=attributes, caller=caller
            ),
            lambda found: found.kind is kind,
            (directory, name, caller),
        )

    async def link(self, entry: Entry, directory: Entry, name: str, caller: Caller) -> Entry:
        """Give ``entry`` a second name."""
        return await self._make(
            "link",
            lambda: self._hooks.fusekit_link(entry=entry, directory=directory, name=name, caller=caller),
            lambda found: found.id == entry.id,
            (directory, name, caller),
        )

    async def copy(self, entry: Entry, directory: Entry, name: str, caller: Caller) -> Entry:
        """Copy a file on the remote side."""
        return await self._make(
            "copy",
            lambda: self._hooks.fusekit_copy(entry=entry, directory=directory, name=name, caller=caller),
            lambda found: found.kind is entry.kind and found.size == entry.size,
            (directory, name, caller),
        )

    async def rename(
        self,
        entry: Entry,
        source: Entry,
        target: Entry,
        name: str,
        replacing: Entry | None,
        exchange: bool,
        caller: Caller,
    ) -> Entry:
        """Move ``entry``; where the answer was lost, look whether it is gone from one place and in the other."""
        try:
            return await self._once(
                "rename",
                lambda: self._hooks.fusekit_rename(
                    entry=entry,
                    source=source,
                    target=target,
                    name=name,
                    replacing=replacing,
                    exchange=exchange,
                    caller=caller,
                ),
                Entry,
            )
        except RETRIABLE as error:
            try:
                found = await self.find(target, name, None, caller)
            except BackendError:
                raise error from None
            same = (
                found.id == entry.id if entry.id is not None else (found.kind, found.size) == (entry.kind, entry.size)
            )
            if not same or not (exchange or await self._absent(source, entry.name, caller)):
                raise
            return found

    async def remove(self, directory: Entry, entry: Entry, caller: Caller) -> None:
        """Remove ``entry``; that it is gone already is success."""
        try:
            await self._once(
                "remove",
                lambda: self._hooks.fusekit_remove(directory=directory, entry=entry, caller=caller),
                type(None),
            )
        except NotFound:
            return
        except RETRIABLE:
            if not await self._absent(directory, entry.name, caller):
                raise

    async def setattr(self, directory: Entry, entry: Entry, changes: Attributes, caller: Caller) -> Entry:
        """Apply ``changes``."""
        return await self._once(
            "setattr",
            lambda: self._hooks.fusekit_setattr(directory=directory, entry=entry, changes=changes, caller=caller),
            Entry,
        )

    async def setxattr(self, entry: Entry, name: str, value: bytes | None, caller: Caller) -> None:
        """Set or remove an extended attribute."""
        await self._once(
            "setxattr",
            lambda: self._hooks.fusekit_setxattr(entry=entry, name=name, value=value, caller=caller),
            type(None),
        )

    # ---- how ---------------------------------------------------------------------------------------------------

    async def _make(
        self,
        hook: str,
        call: Callable[[], Awaitable[Entry]],
        ours: Callable[[Entry], bool],
        place: tuple[Entry, str, Caller],
    ) -> Entry:
        """Call once; where the answer was lost, what stands there and looks like ours is ours."""
        try:
            return await self._once(hook, call, Entry)
        except RETRIABLE as error:
            directory, name, caller = place
            try:
                found = await self.find(directory, name, None, caller)
            except BackendError:
                raise error from None
            if not ours(found):
                raise Exists(f"{name!r} was made by somebody else in the meantime") from error
            return found

    async def _absent(self, directory: Entry, name: str, caller: Caller) -> bool:
        try:
            await self.find(directory, name, None, caller)
        except NotFound:
            return True
        except BackendError:
            return False
        return False

    async def _metadata(self, hook: str, call: Callable[[], Awaitable[object]], returns: type[T]) -> T:
        return await self._repeat(hook, call, Deadline(self._settings.metadata_timeout_s), returns, idle=False)

    async def _once(self, hook: str, call: Callable[[], Awaitable[object]], returns: type[T]) -> T:
        deadline = Deadline(self._settings.metadata_timeout_s)
        return await self._repeat(hook, call, deadline, returns, idle=False, passing=RETRIABLE_ONCE)

    async def _repeat(
        self,
        hook: str,
        call: Callable[[], Awaitable[object]],
        deadline: Deadline,
        returns: type[T],
        *,
        idle: bool = True,
        total_s: float | None = None,
        progress: Progress | None = None,
        settle: Callable[[], Awaitable[T | None]] | None = None,
        passing: tuple[type[BackendError], ...] = RETRIABLE,
    ) -> T:
        """Call until it succeeds, cannot be repeated, or a deadline passed; the last error is the one that counts."""
        total = trio.current_time() + total_s if total_s is not None else float("inf")
        attempt = 1
        while True:
            try:
                return await self._attempt(hook, call, deadline, returns, total=total)
            except passing as error:
                if self._starting and isinstance(error, Unreachable):
                    raise
                if progress is not None and progress.worth_it():
                    attempt = 1
                    self._retry.moved_on()
                wait_s = self._retry.wait_s(error, attempt)
                ends = min(total, float("inf") if idle else deadline.at)
                if wait_s is None or trio.current_time() + wait_s >= ends:
                    raise
                attempt += 1
                self._metrics.retries[hook] += 1
                logger.warning("%s: attempt %d in %.1f s after: %s", hook, attempt, wait_s, error)
            await trio.sleep(wait_s)
            if settle is not None and (settled := await settle()) is not None:
                return settled
            if idle:
                deadline.moved()

    async def _attempt(
        self,
        hook: str,
        call: Callable[[], Awaitable[object]],
        deadline: Deadline,
        returns: type[T],
        *,
        total: float = float("inf"),
    ) -> T:
        self._metrics.calls[hook] += 1
        began = trio.current_time()
        try:
            with trio.CancelScope(deadline=total), deadline.scope():
                result = _checked(hook, await call(), returns)
                self._retry.succeeded()
                return result
        except BaseException as error:
            self._metrics.errors[hook] += 1
            reason = _single(error)
            if reason is error:
                raise
            raise reason from error
        finally:
            self._metrics.seconds[hook] += trio.current_time() - began
        self._metrics.errors[hook] += 1
        raise TimedOut(f"fusekit_{hook}: nothing moved within the deadline")


def _checked(hook: str, result: object, returns: type[T]) -> T:
    if not isinstance(result, returns):
        raise BackendError(f"fusekit_{hook} returned {type(result).__name__}, not {returns.__name__}")
    return result


class _Moving:
    """A sink that remembers how far the bytes have come without a gap, and tells the deadline."""

    def __init__(self, sink: Sink, start: int, deadline: Deadline) -> None:
        self._sink = sink
        self._deadline = deadline
        self.reached = start
        self.next = start

    async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        at = self.next if at is None else at
        with _kept():
            await self._sink.write(data, at)
        self._came(at, at + len(data))

    def _came(self, start: int, stop: int) -> None:
        self.next = stop
        if start <= self.reached:
            self.reached = max(self.reached, stop)
        self._deadline.moved()


class _MovingInlet(_Moving):
    """The same for a sink that lends its memory."""

    _sink: Inlet

    async def room(self, at: int) -> memoryview:
        with _kept():
            return await self._sink.room(at)

    async def filled(self, count: int, at: int) -> None:
        with _kept():
            await self._sink.filled(count, at)
        self._came(at, at + count)


@contextmanager
def _kept() -> Iterator[None]:
    """Say what it means that the cache did not take what came: nothing that the backend did, or a retry would mend."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}:
            raise
        kind = NoSpace if error.errno in {errno.ENOSPC, errno.EDQUOT} else BackendError
        raise kind(
            f"the cache cannot take what was read: {error.strerror}; see --cache-dir", errno=error.errno
        ) from error


class _MovingContent:
    """Content whose parts and reports start the idle deadline again."""

    def __init__(self, content: Content, deadline: Deadline) -> None:
        self._content = content
        self._deadline = deadline

    @property
    def size(self) -> int | None:
        return self._content.size

    @property
    def attributes(self) -> Attributes:
        return self._content.attributes

    @property
    def key(self) -> str:
        return self._content.key

    @property
    def note(self) -> Mapping[str, str]:
        return self._content.note

    async def next(self, size: int) -> Part | None:
        self._deadline.moved()
        part = await self._content.next(size)
        self._deadline.moved()
        return part

    async def save(self, note: Mapping[str, str]) -> None:
        await self._content.save(note)
        self._deadline.moved()

    def report(self, state: str) -> None:
        self._content.report(state)
        self._deadline.moved()


def _single(error: BaseException) -> BaseException:
    """Return what a hook really failed with: one backend error out of a group, a bug as a `BackendError`."""
    if isinstance(error, BaseExceptionGroup):
        leaves = _leaves(error)
        ours = [leaf for leaf in leaves if isinstance(leaf, BackendError)]
        if ours and all(isinstance(leaf, Exception) for leaf in leaves):
            return ours[0]
        if not all(isinstance(leaf, Exception) for leaf in leaves):
            return error
        error = leaves[0]
    if isinstance(error, BackendError) or not isinstance(error, Exception):
        return error
    logger.error("a hook failed in a way that is not in the contract", exc_info=error)
    return BackendError(f"the backend failed: {type(error).__name__}: {error}")


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return leaves
