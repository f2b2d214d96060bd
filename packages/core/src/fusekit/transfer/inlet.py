"""A sink that lends its own memory, so that bytes go from the socket straight to where they stay.

Transfer layer, without I/O. The data plane asks whether the sink that a backend handed to `fetch` is an `Inlet`, and
receives into its memory if so; every other sink gets views of a buffer that the data plane owns. What goes through an
inlet is known to be of the version that was asked for before its first byte arrives: head, length and validators were
judged. So its owner may hand bytes on while the rest is still on its way, and the data plane lends nothing where it
cannot tell that before the end.
"""

from __future__ import annotations

from typing import Protocol, cast, runtime_checkable

from fusekit.types import Sink


@runtime_checkable
class Inlet(Sink, Protocol):
    """Takes bytes in place."""

    async def room(self, at: int) -> memoryview:
        """Return writable memory for the bytes of the file from offset ``at`` on, as much as there is in one piece.

        At least one byte; waits where a budget is used up. The memory is lent until the next call of either method by
        the same fetch, and may be lent to another fetch of the same range as well: both bring the same bytes.

        Raises:
            Stale: ``at`` is behind the end of the file.
        """

    async def filled(self, count: int, at: int) -> None:
        """Take note that the first ``count`` bytes of the room at ``at`` are the file's."""


def inlet_of(sink: Sink) -> Inlet | None:
    """Return ``sink`` as an inlet if it is one. As `isinstance`, which takes as long as all of a small request's checks."""
    return cast(Inlet, sink) if hasattr(sink, "room") and hasattr(sink, "filled") else None
