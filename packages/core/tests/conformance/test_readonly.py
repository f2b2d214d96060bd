"""Under the read-only layer the memory backend is a read-only backend that keeps the contract."""

from __future__ import annotations

import pytest

from fusekit.backends.memory import MemoryBackend
from fusekit.backends.memory import Options as MemoryOptions
from fusekit.backends.readonly import Options, ReadOnlyLayer
from fusekit.plugins.manager import stack
from fusekit.testing.conformance import BackendConformance
from fusekit.testing.harness import ME, Place, PlainMount


class TestReadOnlyMemory(BackendConformance):
    @pytest.fixture
    async def place(self) -> Place:
        mount = PlainMount()
        memory = MemoryBackend(MemoryOptions(), mount)
        below = stack(memory).hooks
        root = await below.fusekit_root(caller=ME)
        await self.seed(Place(below, root))
        layered = stack(memory, [lambda inner: ReadOnlyLayer(Options(), mount, inner)])
        return Place(layered.hooks, await layered.hooks.fusekit_root(caller=ME), seeded=True)
