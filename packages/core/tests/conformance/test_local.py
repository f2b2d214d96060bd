"""The local backend keeps the contract, on the filesystem that the tests run on and on tmpfs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fusekit.backends.local import LocalBackend, Options
from fusekit.testing.conformance import BackendConformance
from fusekit.testing.harness import Place, PlainMount, opened


class TestLocal(BackendConformance):
    @pytest.fixture
    async def place(self, tmp_path: Path) -> AsyncIterator[Place]:
        async with opened(LocalBackend(Options(tmp_path), PlainMount())) as place:
            yield place
