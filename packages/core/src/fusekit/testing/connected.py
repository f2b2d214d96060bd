"""A mount with the real HTTP client, for tests of a backend against its emulator.

Outside the layers; needs httpx. With `fusekit.testing.harness.opened` it makes the hooks of a backend talk to a
server, without the engine: what one hook costs is what `asked` counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from fusekit.testing.controls import Controls
from fusekit.testing.harness import PlainMount
from fusekit.transfer.client import Client
from fusekit.types import Auth, Explain


@asynccontextmanager
async def connected(ca_file: Path | None = None) -> AsyncIterator[PlainMount]:
    """Give a mount whose HTTP is the engine's own; connections are closed at the end."""
    async with AsyncExitStack() as stack:

        def http(base_url: str, auth: Auth | None, explain: Explain | None) -> Client:
            client = Client(base_url, auth, explain, ca_file=ca_file)
            stack.push_async_callback(client.aclose)
            return client

        yield PlainMount(http)


def asked(controls: Controls) -> dict[str, int]:
    """Return how often each route was asked since this was called last (or the emulator started)."""
    counts = Counter(one.route for one in controls.requests())
    controls.reset()
    return dict(counts)
