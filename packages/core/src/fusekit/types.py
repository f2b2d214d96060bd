"""The values that hooks take and give, and the protocols of what core hands to a backend.

The base of all layers: no behaviour, no I/O, no import from the rest of fusekit but `fusekit.errors`.
Every name here is re-exported by `fusekit.api`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import attrs

from fusekit.errors import BackendError, PluginError, Unavailable

if TYPE_CHECKING:
    from fusekit.plugins.specs import Hooks


class Kind(enum.Enum):
    """What a directory entry is. The last four are for show unless the backend keeps them."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    BLOCK = "block"
    CHAR = "char"


class Io(enum.Enum):
    """How the bytes of a file move: through the cache, never kept, or as request and answer."""

    CACHED = "cached"
    DIRECT = "direct"
    EXCHANGE = "exchange"


class Want(enum.Flag):
    """What a caller is about to do with an entry, for `fusekit_access`."""

    READ = enum.auto()
    WRITE = enum.auto()
    EXECUTE = enum.auto()
    LIST = enum.auto()


class Rename(enum.Flag):
    """What `fusekit_rename` can do in a place."""

    NONE = 0
    FILES = enum.auto()
    DIRECTORIES = enum.auto()
    REPLACE = enum.auto()
    EXCHANGE = enum.auto()


@attrs.frozen
class Attributes:
    """Attributes to set; None leaves one as it is. Times are nanoseconds since 1970, ``mode`` has permission bits only.

    Of something new, None is for the place to decide: where owners are kept, the group is the caller's, or that of a
    directory with the set-group-ID bit, which a new directory then gets as well.
    ``rdev`` is the device number, for `fusekit_mknod` of a block or character device.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    rdev: int | None = None

    def over(self, older: Attributes) -> Attributes:
        """Return ``older`` with what is set here put on top."""
        mine = {name: value for name, value in attrs.asdict(self).items() if value is not None}
        return attrs.evolve(older, **mine)

    def __bool__(self) -> bool:
        return self != _UNCHANGED


_UNCHANGED = Attributes()


@attrs.frozen
class Entry:
    """One name in a directory and everything that the service told about what it names.

    ``ref`` is the backend's address; empty means that core fills in the directory's ref, "/" and the name.
    ``id`` is an identity that outlives a rename (an object id); None: the place is the identity.
    ``version`` names the content (of a directory: its listing) and comes out the same from list, stat, write and
    read; None: the service cannot tell. ``blob`` names the bytes wherever they turn up, so that equal blobs share
    cached blocks. ``size`` is bytes; None: only reading tells. ``mode`` has permission bits, no file type.
    ``ref``, ``id``, ``version`` and ``blob`` are stored and shown: never put a secret into them.
    """

    name: str
    kind: Kind
    ref: str = ""
    id: str | None = None
    version: str | None = None
    blob: str | None = None
    size: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    atime_ns: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    nlink: int = 1
    rdev: int = 0
    target: str | None = None
    xattrs: Mapping[str, bytes] | None = None
    io: Io = Io.CACHED

    def within(self, directory: Entry) -> Entry:
        """Return this entry with the address that core gives it in ``directory`` where it has none."""
        return self if self.ref else attrs.evolve(self, ref=f"{directory.ref}/{self.name}")

    @classmethod
    def file(cls, name: str, ref: str = "", *, size: int | None = None, **facts: Any) -> Entry:
        """Return a regular file; ``facts`` are the other fields."""
        return cls(name=name, kind=Kind.FILE, ref=ref, size=size, **facts)

    @classmethod
    def directory(cls, name: str, ref: str = "", **facts: Any) -> Entry:
        """Return a directory; ``facts`` are the other fields."""
        return cls(name=name, kind=Kind.DIRECTORY, ref=ref, **facts)

    @classmethod
    def symlink(cls, name: str, target: str, ref: str = "", **facts: Any) -> Entry:
        """Return a symbolic link to ``target``; ``facts`` are the other fields."""
        return cls(name=name, kind=Kind.SYMLINK, ref=ref, target=target, **facts)


def _characters(_: object, field: attrs.Attribute[str], value: object) -> None:
    # A pattern or a list of characters would be taken for the characters of its spelling, or for none.
    if not isinstance(value, str):
        raise PluginError(f"Capabilities.{field.name} is one string of characters, not {type(value).__name__}")


@attrs.frozen
class Capabilities:
    """What hooks cannot say, for one directory.

    ``hooks`` are the operations possible here; None: those that the backend implements. ``replace`` False: a file
    that was closed is never written again. ``guarded``: write, rename and remove check ``replacing`` and
    ``entry.version`` at the service; otherwise core asks `fusekit_stat` just before. ``unlinked``: `fusekit_write`
    takes ``directory=None``. ``unlisted_names``: names exist that listings lack. ``ranges`` False: a read always
    brings the whole file. ``forbidden`` are characters that no name here can have: such names are refused before
    anything is sent or accepted. ``fold`` maps names that are one name (case, NFC) to one string. Sizes are bytes.
    """

    hooks: frozenset[str] | None = None
    rename: Rename = Rename.FILES | Rename.DIRECTORIES | Rename.REPLACE
    replace: bool = True
    guarded: bool = False
    unlinked: bool = False
    unlisted_names: bool = False
    ranges: bool = True
    requests_max: int = 16
    file_bytes_max: int | None = None
    exchange_bytes_max: int = 10 << 20
    name_bytes_max: int = 255
    utf8_names: bool = True
    forbidden: str = attrs.field(default="", validator=_characters)
    fold: Callable[[str], str] | None = None
    time_step_ns: int = 1

    def has(self, hook: str) -> bool:
        """Return whether ``hook`` can be called in this place."""
        return self.hooks is not None and hook in self.hooks


@attrs.frozen
class Caller:
    """Who asks. ``pid`` None is core's own errand (read-ahead, an upload); ``principal`` is a public name."""

    uid: int
    gid: int
    pid: int | None
    principal: str = ""


@attrs.frozen
class Space:
    """What `fusekit_statfs` tells, in bytes and in numbers of files."""

    total_bytes: int
    free_bytes: int
    available_bytes: int | None = None
    total_files: int = 1 << 24
    free_files: int = 1 << 24


Page = Callable[[Sequence[Entry]], Awaitable[None]]
"""Takes the next entries of a listing. Any number of calls, in any order; a later entry replaces one of the same name."""


class Sink(Protocol):
    """Where `fusekit_read` puts bytes."""

    async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        """Take ``data`` as the bytes of the file from offset ``at``; None goes on where the last write ended.

        The first write without ``at`` is at the ``start`` of the read. Bytes outside the range asked for are
        welcome and kept. ``data`` may be reused as soon as this returns.
        """


class Part(Protocol):
    """One piece of the content being written. ``number`` counts from 1; ``start, stop`` are bytes of the file."""

    @property
    def number(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def last(self) -> bool: ...

    async def read(self) -> memoryview:
        """Return the bytes; as often as wanted, until `done`."""

    def done(self) -> None:
        """Say that the service acknowledged the part; a stream may now free it."""


class Content(Protocol):
    """What `fusekit_write` sends.

    ``size`` is bytes, None while the program is still writing. ``attributes`` are to be stored with the content.
    ``key`` is the same at every attempt at this upload: an idempotency key. ``note`` is what the attempt before
    saved, empty at first.
    """

    @property
    def size(self) -> int | None: ...
    @property
    def attributes(self) -> Attributes: ...
    @property
    def key(self) -> str: ...
    @property
    def note(self) -> Mapping[str, str]: ...

    async def next(self, size: int) -> Part | None:
        """Return the next part of at most ``size`` bytes, None after the last; an empty file has one empty part."""

    async def save(self, note: Mapping[str, str]) -> None:
        """Keep ``note`` in the journal before returning. No secrets."""

    def report(self, state: str) -> None:
        """Say what is going on ("closing"); shown by status, and starts the idle deadline again."""


class Auth(Protocol):
    """Signs requests. Made by a backend, used by `Http`."""

    async def headers(self, renew: bool) -> Mapping[str, str]:
        """Return the headers that sign a request; ``renew`` after the service refused the last ones.

        Raises:
            Denied: there is nothing (more) to sign with; the message says what to do.
        """


@attrs.frozen
class Answer:
    """A whole HTTP response: ``headers`` by lower-case name, the body as bytes."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str = ""

    def json(self) -> Any:
        """Return the body parsed as JSON.

        Raises:
            Unavailable: it is something else (an error page, a cut body).
        """
        try:
            return json.loads(self.content or b"null")
        except ValueError as error:
            kind = self.headers.get("content-type", "unknown type")
            raise Unavailable(
                f"the service answered {self.status} with something that is not JSON ({kind}, {len(self.content)} bytes)",
                status=self.status,
            ) from error


Explain = Callable[[Answer], BackendError | None]
"""Turns a service's error body into an error; None leaves it to the table by status."""


@attrs.frozen
class Expect:
    """What a fetched body must be, so that other content is never taken for it; None is not checked.

    ``size`` is the length of the whole object in bytes; ``etag`` and ``last_modified`` are compared to the headers.
    A mismatch raises `Stale`.
    """

    size: int | None = None
    etag: str | None = None
    last_modified: str | None = None


class Http(Protocol):
    """HTTP for one service: pooled connections, limits, deadlines, TLS always verified.

    URLs may be absolute or relative to the base URL. A request to another host than the base URL's is never signed.
    Nothing is retried here but a request refused with 401, once, with renewed `Auth`; core retries whole hooks.
    Connection trouble raises `Unavailable`, a passed deadline `TimedOut`; an unexpected status goes through
    ``explain`` and then the table of `fusekit.transfer.status`.
    """

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str | int | bool] | None = None,
        json: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Container[int] = range(200, 300),
        signed: bool = True,
    ) -> Answer:
        """Make a control call and return the whole answer; ``expect`` are the statuses that are no error."""

    async def fetch(
        self,
        url: str,
        start: int,
        stop: int | None,
        sink: Sink,
        *,
        headers: Mapping[str, str] | None = None,
        expect: Expect | None = None,
        signed: bool = True,
    ) -> Answer:
        """GET the bytes ``start`` to ``stop`` (None: the end) into ``sink`` and return status and headers, no body.

        Every byte is checked against the range and length that the server announced: a short, over-long or shifted
        body raises `Corrupt`, never ends up as data. An empty range makes no request.
        """

    async def send(
        self,
        url: str,
        part: Part,
        *,
        method: str = "PUT",
        params: Mapping[str, str | int | bool] | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Container[int] = range(200, 300),
        signed: bool = True,
    ) -> Answer:
        """Send the bytes of ``part`` as the body and return the whole answer. Does not call ``part.done``."""


class Mount(Protocol):
    """What core gives to a backend or layer when it is made."""

    def http(self, base_url: str, auth: Auth | None = None, explain: Explain | None = None) -> Http:
        """Return HTTP for the service at ``base_url``; closed by core at unmount."""

    def changed(self, ref: str, name: str | None = None, principal: str | None = None) -> None:
        """Say that the entry ``name`` of directory ``ref`` changed at the service (None: the directory or file itself)."""

    def open(self, source: str, mount: Mount) -> Hooks:
        """Return the hooks of another source as part of this mount, for backends made of others (`tree`).

        ``mount`` is what that backend gets as its own. Its lifespan is entered before the one of who asks.
        """


class BackendClass(Protocol):
    """What `fusekit_backends` returns: a class with a scheme and an options class, made as ``Class(options, mount)``.

    The object may have an attribute ``identity``, a string without secrets: what it found out when it was made about
    which store it is (the host that a profile of the service's own tools names). Another one has another cache and
    journal. What its options know they say themselves, with ``option(identity=True)``.
    """

    scheme: ClassVar[str]
    options: ClassVar[type]

    def __call__(self, options: Any, mount: Mount) -> object: ...
