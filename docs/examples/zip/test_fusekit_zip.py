"""The zip backend keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from fusekit_zip import Options, ZipBackend

from fusekit.testing.conformance import SEED, BackendConformance
from fusekit.testing.harness import Place, PlainMount, opened


class TestZip(BackendConformance):
    @pytest.fixture
    async def place(self, tmp_path: Path) -> AsyncIterator[Place]:
        with ZipFile(tmp_path / "seed.zip", "w") as archive:
            for path, data in SEED.items():
                archive.writestr(path, data)
        async with opened(ZipBackend(Options(tmp_path / "seed.zip"), PlainMount()), seeded=True) as place:
            yield place
