"""The moments at which a crash is interesting: each has a name, and a test can end the process there.

Journal layer, below everything else in it. The code says `reached` at the boundary between two states on disk or at
the remote side; that does nothing, unless ``FUSEKIT_CRASH_AT`` was in the environment when this module was imported:
``remote-committed`` kills the process (SIGKILL, as sudden as it gets) the first time it comes there,
``remote-committed:3`` the third time. In one process a test may replace ``reached`` instead: callers ask for it by
this module each time.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Final

VARIABLE: Final = "FUSEKIT_CRASH_AT"

STEPS: Final = (
    "row-begun",  # a program began to change a file: its row is there, its bytes are not
    "staging-synced",  # the bytes of a flush are durable, the row does not say so yet
    "row-flushed",  # the flush is acknowledged by the journal, and not yet to the program
    "row-sending",  # the upload is about to begin
    "note-saved",  # the backend left a note about how far it came
    "remote-committed",  # the remote side has the content, the row still says that it is on its way
    "row-settled",  # the row is gone, the staged bytes are still there
    "bytes-settled",  # the staged bytes are cached or gone as well
    "row-failed",  # the remote side refused, and the row says so
    "name-changed",  # the remote side renamed or removed a name, the rows below it do not follow yet
    "rows-moved",  # and now they do
    "recovery-begun",  # a mount found rows of an earlier one
    "row-adopted",  # one of them is a file of this mount again
)


def _wanted(text: str) -> tuple[str, int]:
    step, _, count = text.partition(":")
    if step not in STEPS:
        raise ValueError(f"{VARIABLE}={text}: no such step; there are {', '.join(STEPS)}")
    return step, int(count or 1)


_crash: Final = _wanted(text) if (text := os.environ.get(VARIABLE)) else None
_seen: Final[Counter[str]] = Counter()


def reached(step: str) -> None:
    """Say that ``step``, one of `STEPS`, was just reached."""
    if _crash is None:
        return
    _seen[step] += 1
    if _crash == (step, _seen[step]):
        os.kill(os.getpid(), signal.SIGKILL)
