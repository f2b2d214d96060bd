"""The memory backend, addressed by path and by number, keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fusekit.backends.memory import MemoryBackend, Options
from fusekit.testing.conformance import BackendConformance
from fusekit.testing.harness import Place, PlainMount, opened


class TestMemory(BackendConformance):
    @pytest.fixture
    async def place(self) -> AsyncIterator[Place]:
        async with opened(MemoryBackend(Options(page_size=7), PlainMount())) as place:
            yield place


class TestMemoryByNumber(BackendConformance):
    @pytest.fixture
    async def place(self) -> AsyncIterator[Place]:
        async with opened(MemoryBackend(Options(stable_refs=True), PlainMount())) as place:
            yield place
