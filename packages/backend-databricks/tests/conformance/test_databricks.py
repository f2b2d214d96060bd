"""The Databricks backend keeps the contract, against an emulated workspace."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, ClassVar

import pytest

from fusekit.testing.conformance import BackendConformance
from fusekit.testing.harness import Place

if TYPE_CHECKING:
    from ..conftest import Workspace


class TestDatabricks(BackendConformance):
    refused_names: ClassVar[frozenset[str]] = frozenset({"tab\there", "line\nbreak"})

    @pytest.fixture
    async def place(self, workspace: Workspace) -> AsyncIterator[Place]:
        async with workspace.mounted() as place:
            yield place
