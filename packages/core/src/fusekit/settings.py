"""The engine's own options: what `fusekit mount` takes for every backend.

A base module, filled by `fusekit.config` from flags, ``-o``, environment, profile and default, like the options of a
backend. Layers read their numbers from here and nowhere else.
"""

from __future__ import annotations

import enum
import os
from pathlib import Path

import attrs
import platformdirs

from fusekit.config import octal, option, parse_duration, parse_size, words


class Consistency(enum.Enum):
    """How fresh an answer must be; the modes and what each asks are in ``docs/SEMANTICS.md``."""

    STRICT = "strict"
    CLOSE_TO_OPEN = "close-to-open"
    RELAXED = "relaxed"
    SNAPSHOT = "snapshot"


class Write(enum.Enum):
    """When ``close`` and ``fsync`` return; off is a read-only mount."""

    SYNC = "sync"
    ASYNC = "async"
    OFF = "off"


class OnConflict(enum.Enum):
    """What becomes of a file that somebody else changed since it was opened here."""

    FAIL = "fail"
    KEEP_BOTH = "keep-both"
    OVERWRITE = "overwrite"


class KeepAttributes(enum.Enum):
    """What becomes of modes, owners and times that the service cannot store."""

    LOCAL = "local"
    REJECT = "reject"
    IGNORE = "ignore"


def _cache_home() -> Path:
    return Path(platformdirs.user_cache_dir("fusekit"))


def _cache_directory(value: str | Path) -> Path | None:
    return None if str(value) == "none" else Path(value)


def _state_home() -> Path:
    return Path(platformdirs.user_state_dir("fusekit"))


@attrs.frozen
class Settings:
    """Everything that the engine can be told. Times are seconds, sizes bytes."""

    consistency: Consistency = option(
        default=Consistency.CLOSE_TO_OPEN,
        converter=Consistency,
        help="strict, close-to-open, relaxed or snapshot",
    )
    ttl_s: float | None = option(
        default=None,
        converter=attrs.converters.optional(parse_duration),
        help="how long names and attributes are believed (5s; relaxed: 5min)",
    )
    write: Write = option(
        default=Write.SYNC,
        converter=Write,
        help="when close returns: sync (the service has the file), async (it is safe on this disk); off: read-only",
    )
    on_conflict: OnConflict | None = option(
        default=None,
        converter=attrs.converters.optional(OnConflict),
        help="where somebody else changed the file meanwhile: fail (default), keep-both (default of async) or overwrite",
    )
    attributes: KeepAttributes = option(
        default=KeepAttributes.LOCAL,
        converter=KeepAttributes,
        help="modes, owners and times that the service cannot store: local (kept here), reject or ignore",
    )
    uid: int = option(factory=os.getuid, converter=int, help="owner shown where the service names none")
    gid: int = option(factory=os.getgid, converter=int, help="group shown where the service names none")
    umask: int = option(default=0o022, converter=octal, help="permission bits taken away from what is shown, octal")
    file_mode: int | None = option(
        default=None,
        converter=attrs.converters.optional(octal),
        help="permission bits of files where the service tells none, octal",
    )
    dir_mode: int | None = option(
        default=None,
        converter=attrs.converters.optional(octal),
        help="permission bits of directories where the service tells none, octal",
    )
    cache_dir: Path | None = option(
        factory=_cache_home, converter=_cache_directory, help="where clean blocks are kept; none: in memory alone"
    )
    state_dir: Path = option(factory=_state_home, converter=Path, help="where the journal and dirty files are kept")
    cache_bytes: int = option(default=10 << 30, converter=parse_size, help="how much of the disk clean blocks may take")
    cache_free: int = option(
        default=1 << 30, converter=parse_size, help="how much of the disk the cache leaves free, whatever it may take"
    )
    cache_age_s: float = option(
        default=30 * 86400.0, converter=parse_duration, help="how long blocks that nobody reads are kept"
    )
    memory: int = option(
        default=256 << 20,
        converter=parse_size,
        validator=attrs.validators.ge(16 << 20),
        help="how many bytes may be in memory on their way to programs and disk (16MiB at least)",
    )
    readahead: int = option(
        default=64 << 20,
        converter=parse_size,
        help="how far to read ahead where a file is read in order; 0: not at all",
    )
    entries_max: int = option(
        default=500_000,
        converter=int,
        validator=attrs.validators.ge(1000),
        help="names kept in memory; beyond it the oldest that are not open are dropped",
    )
    direct_io: bool = option(default=False, help="bypass the kernel's page cache (shared mmap stops working)")
    layers: tuple[str, ...] = option(default=(), converter=words, help="layers on the backend, lowest first")
    metadata_timeout_s: float = option(default=30.0, converter=parse_duration, help="deadline of a metadata call")
    idle_timeout_s: float = option(
        default=30.0, converter=parse_duration, help="deadline of a read, listing or write in which nothing moves"
    )
    commit_timeout_s: float = option(
        default=3600.0, converter=parse_duration, help="deadline of the whole of one file's upload"
    )
    drain_timeout_s: float = option(
        default=60.0, converter=parse_duration, help="how long SIGTERM waits for uploads before it detaches"
    )
    requests_max: int = option(
        default=16,
        converter=int,
        validator=attrs.validators.ge(1),
        help="most requests at once at one host; a host that says it is too many gets fewer",
    )
    ca_file: Path | None = option(
        default=None, converter=attrs.converters.optional(Path), help="certificates to trust besides the system's"
    )

    @property
    def conflicts(self) -> OnConflict:
        """Return what becomes of conflicts, by write mode where nothing was said."""
        if self.on_conflict is not None:
            return self.on_conflict
        return OnConflict.KEEP_BOTH if self.write is Write.ASYNC else OnConflict.FAIL

    @property
    def ttl(self) -> float:
        """Return the seconds that names and attributes are believed, by consistency mode."""
        if self.consistency is Consistency.STRICT:
            return 0.0
        if self.consistency is Consistency.SNAPSHOT:
            return float("inf")
        if self.ttl_s is not None:
            return self.ttl_s
        return 300.0 if self.consistency is Consistency.RELAXED else 5.0
