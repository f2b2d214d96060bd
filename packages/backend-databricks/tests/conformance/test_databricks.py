"""The backend keeps the contract, against an emulated workspace as each of the clouds runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fusekit.testing.conformance import BackendConformance
from fusekit.testing.connected import connected
from fusekit.testing.controls import Controls
from fusekit.testing.harness import Place, opened
from fusekit_databricks.backend import DatabricksBackend
from fusekit_databricks.options import Options


class TestDatabricks(BackendConformance):
    @pytest.fixture
    async def place(self, options: Options) -> AsyncIterator[Place]:
        async with connected() as mount, opened(DatabricksBackend(options, mount)) as place:
            yield place


class TestWithoutSignedUrls(TestDatabricks):
    """A workspace behind a firewall that hands out none: everything is read by export."""

    @pytest.fixture
    async def place(self, options: Options, controls: Controls) -> AsyncIterator[Place]:
        controls.set_knobs(signed_urls=False, chunked=True)
        async with connected() as mount, opened(DatabricksBackend(options, mount)) as place:
            yield place


class TestSharpUrls(TestDatabricks):
    """URLs that stop working as soon as the content is replaced, and are over at once."""

    @pytest.fixture
    async def place(self, options: Options, controls: Controls) -> AsyncIterator[Place]:
        controls.set_knobs(keep_replaced=False, url_lifetime_s=5.0, cloud="AZURE")
        async with connected() as mount, opened(DatabricksBackend(options, mount)) as place:
            yield place
