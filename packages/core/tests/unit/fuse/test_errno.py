"""Errors become numbers that programs take for what they mean."""

from __future__ import annotations

import errno

import pytest

from fusekit.errors import BackendError, Corrupt, Invalid, NotFound, Stale, Throttled, TimedOut, Unavailable
from fusekit.fuse.errno import TABLE, number


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotFound("x"), errno.ENOENT),
        (Stale("x"), errno.ESTALE),
        (Throttled("x"), errno.EBUSY),
        (TimedOut("x"), errno.ETIMEDOUT),
        (Unavailable("x"), errno.EIO),
        (Corrupt("x"), errno.EIO),
        (BackendError("x"), errno.EIO),
        (Invalid("x", errno=errno.EFBIG), errno.EFBIG),
        (OSError(errno.ENOSPC, "x"), errno.ENOSPC),
        (OSError("x"), errno.EIO),
        (ValueError("x"), errno.EIO),
    ],
)
def test_an_error_has_its_number(error: Exception, expected: int) -> None:
    assert number(error) == expected


def test_every_error_of_a_backend_has_a_number() -> None:
    assert set(BackendError.__subclasses__()) <= TABLE.keys()


def test_no_number_asks_a_program_to_try_again_at_once() -> None:
    # A regular file never blocks: Python's read() would return None and copies would end early.
    assert not {errno.EAGAIN, errno.EINTR, errno.ENOSYS} & set(TABLE.values())
