"""What a session says to the log."""

from __future__ import annotations

import logging

import pytest

from fusekit.fuse.session import _UNANSWERED


@pytest.mark.parametrize(
    ("operation", "why", "shown"),
    [
        ("fuse_release", "No such file or directory", False),
        ("fuse_releasedir", "No such file or directory", False),
        ("fuse_release", "Invalid argument", True),
        ("fuse_read", "No such file or directory", True),
    ],
)
def test_only_the_unanswered_release_is_left_out(operation: str, why: str, shown: bool) -> None:
    message = f"{operation}(): fuse_reply_* failed with %s"
    record = logging.LogRecord("pyfuse3", logging.ERROR, "", 0, message, (why,), None)
    assert bool(_UNANSWERED.filter(record)) is shown
