"""Servers that answer exactly the bytes a test wants, and a client for the first of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fusekit.testing.raw import Server, running
from fusekit.transfer.client import Client


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running() as made:
        yield made


@pytest.fixture
async def other() -> AsyncIterator[Server]:
    async with running() as made:
        yield made


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with Client(server.url) as made:
        yield made
