"""Attributes of the vfs as the structures that pyfuse3 hands to the kernel.

Fuse layer.
"""

from __future__ import annotations

from typing import Final

import pyfuse3

from fusekit.types import Space
from fusekit.vfs.attributes import Attr

# What tools should read and write at a time.
BLOCK_BYTES: Final = 128 << 10
_SECTOR: Final = 512
_FRAGMENT: Final = 4096


def entry_attributes(attr: Attr) -> pyfuse3.EntryAttributes:
    """Return ``attr`` with its time of validity for the name and the attributes."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(attr.ino)
    entry.generation = 0  # changing it would turn open handles into EIO
    entry.entry_timeout = entry.attr_timeout = attr.valid_s
    entry.st_mode = pyfuse3.ModeT(attr.mode)
    entry.st_nlink = attr.nlink
    entry.st_uid = attr.uid
    entry.st_gid = attr.gid
    entry.st_rdev = attr.rdev
    entry.st_size = attr.size
    entry.st_blksize = BLOCK_BYTES
    entry.st_blocks = -(-attr.size // _SECTOR)
    entry.st_atime_ns = attr.atime_ns
    entry.st_mtime_ns = attr.mtime_ns
    entry.st_ctime_ns = attr.ctime_ns
    return entry


def missing_entry(valid_s: float) -> pyfuse3.EntryAttributes:
    """Return the answer that a name does not exist, which the kernel may believe for ``valid_s``."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = valid_s
    return entry


def statvfs(space: Space, name_bytes_max: int) -> pyfuse3.StatvfsData:
    """Return ``space`` as statvfs(3) shows it."""
    available = space.free_bytes if space.available_bytes is None else space.available_bytes
    data = pyfuse3.StatvfsData()
    data.f_bsize = BLOCK_BYTES
    data.f_frsize = _FRAGMENT
    data.f_blocks = space.total_bytes // _FRAGMENT
    data.f_bfree = space.free_bytes // _FRAGMENT
    data.f_bavail = available // _FRAGMENT
    data.f_files = space.total_files
    data.f_ffree = data.f_favail = space.free_files
    data.f_namemax = name_bytes_max
    return data
