"""The backend ``http`` keeps the contract, whatever listing the server has; one server for each way to tell versions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fusekit.backends.http import HttpBackend, Options
from fusekit.testing.conformance import SEED, BackendConformance
from fusekit.testing.connected import connected
from fusekit.testing.harness import Place, opened
from fusekit.testing.web import WebEmulator, files_state


class TestHttp(BackendConformance):
    @pytest.fixture(params=["webdav", "nginx-json", "nginx-html", "python"])
    async def place(self, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
        with WebEmulator.start() as server:
            server.controls.replace_state(files_state(SEED))
            async with connected() as mount:
                backend = HttpBackend(Options(f"{server.url}/{request.param}/"), mount)
                async with opened(backend, seeded=True) as place:
                    yield place
