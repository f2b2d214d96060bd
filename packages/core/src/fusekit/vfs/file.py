"""An open file: the state of its content between the program and the remote side.

Vfs layer, below `contents`, which changes it, and `commits`, which sends it.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Mapping

import attrs
import trio

from fusekit.cache.objects import Object
from fusekit.errors import BackendError, NoSpace
from fusekit.journal.staging import Staging
from fusekit.types import Attributes, Caller, Entry
from fusekit.vfs.inodes import Node


@attrs.define(eq=False)
class Frozen:
    """A generation as it was frozen, and how many changes it includes.

    ``unsure``: an attempt to send it ended so that nobody knows whether it arrived. ``note`` is what that attempt left.
    """

    staging: Staging
    key: str
    row: int
    changes: int
    attributes: Attributes
    unsure: bool = False
    note: Mapping[str, str] = attrs.field(factory=dict)


@attrs.define(eq=False)
class File:
    """The content of one open inode.

    ``entry`` is the version that the remote side has (with its address), None for a file that was never sent.
    ``attributes`` were set by the program since then, ``written_ns`` is when it last changed the content, ``group``
    the one shown for a new file as long as the backend has not said which it has. ``row`` is the journal's of
    ``staging``. ``dirty``: there is something that no commit has begun to send; ``sending``: one is under way.
    ``filled`` is False while the file is empty since its create or truncate: such a flush is not worth an upload of
    its own. ``failed`` is why the last commit did not succeed, ``failed_at`` how many ``changes`` there were then, and
    ``failed_rows`` what the journal keeps of that; ``older_rows`` are those of generations that were written over while
    they were on their way. ``refused`` is why a write was not taken: until the next change, what
    is here is a torso, kept in the journal and never sent. ``finishing`` is set while the last handle's release commits.
    ``cached`` is the block cache's object of a version, held open.

    Where a close only waits for the journal, ``acknowledged`` are the generations that it has and that are to be sent,
    oldest first; all but the last are there because an attempt to send them may have succeeded. ``over`` is what
    stands at the remote side under the name of a file that was never sent, and goes when it is; ``tried``: such a file
    may be there all the same. ``trouble`` is why the last attempt in the background was none.
    """

    node: Node
    entry: Entry | None
    caller: Caller
    staging: Staging | None = None
    key: str = ""
    row: int | None = None
    dirty: bool = False
    sending: bool = False
    filled: bool = True
    attributes: Attributes = Attributes()
    written_ns: int | None = None
    group: int | None = None
    failed: BackendError | None = None
    failed_at: int = 0
    refused: BackendError | None = None
    changes: int = 0
    failed_rows: set[int] = attrs.field(factory=set)
    older_rows: set[int] = attrs.field(factory=set)
    handles: int = 0
    finishing: trio.Event | None = None
    changing: trio.Lock = attrs.field(factory=trio.Lock)
    cached: tuple[Entry, Object] | None = None
    acknowledged: deque[Frozen] = attrs.field(factory=deque)
    over: Entry | None = None
    tried: bool = False
    trouble: BackendError | None = None

    @property
    def local(self) -> bool:
        """Return whether the content here is not, or not only, what the remote side has."""
        return self.staging is not None or self.entry is None or self.dirty

    @property
    def unsent(self) -> bool:
        """Return whether there is something that the remote side is not known to have."""
        return self.dirty or self.sending or bool(self.acknowledged)

    @property
    def size(self) -> int:
        """Return the size of the content in bytes."""
        if self.staging is not None:
            return self.staging.size
        return (self.entry.size or 0) if self.entry is not None else 0

    def rows(self) -> set[int]:
        """Return all rows that the journal has for this file."""
        waiting = {frozen.row for frozen in self.acknowledged}
        return self.failed_rows | self.older_rows | waiting | ({self.row} if self.row is not None else set())

    def as_entry(self, told: Entry | None) -> Entry:
        """Return the entry that a stat of the local content shows; ``told`` is what the remote side said last."""
        base = told or self.entry or Entry.file(self.node.name, gid=self.group)
        mtime_ns = self.attributes.mtime_ns or self.written_ns or base.mtime_ns
        return attrs.evolve(
            base,
            size=self.size,
            mtime_ns=mtime_ns,
            ctime_ns=max(mtime_ns or 0, base.ctime_ns or 0) or None,
            atime_ns=self.attributes.atime_ns or base.atime_ns,
            mode=_set(self.attributes.mode, base.mode),
            uid=_set(self.attributes.uid, base.uid),
            gid=_set(self.attributes.gid, base.gid),
        )


def block_key(entry: Entry) -> str:
    """Return what names the object of ``entry`` in the block store."""
    return entry.id if entry.id is not None else entry.ref


def of_this_disk(error: OSError) -> BackendError:
    """Return ``error``, which staging files or cache met with on this machine, as what a program is told."""
    kind = NoSpace if error.errno in {errno.ENOSPC, errno.EDQUOT} else BackendError
    return kind(f"on this machine: {error.strerror or error}", errno=error.errno)


def _set(first: int | None, second: int | None) -> int | None:
    return first if first is not None else second
