"""A source inside a tree keeps the contract as it does alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from fusekit.backends.local import LocalBackend
from fusekit.backends.local import Options as LocalOptions
from fusekit.backends.memory import MemoryBackend
from fusekit.backends.memory import Options as MemoryOptions
from fusekit.backends.tree import Options, TreeBackend, parse_mounts
from fusekit.plugins.manager import stack
from fusekit.testing.conformance import BackendConformance
from fusekit.testing.harness import Place, PlainMount, looked_up, opened


def tree(*, stable_refs: bool = False) -> TreeBackend:
    mount = PlainMount(
        sources={
            "memory:": lambda mount: stack(MemoryBackend(MemoryOptions(stable_refs=stable_refs), mount)).hooks,
            "other:": lambda mount: stack(MemoryBackend(MemoryOptions(), mount)).hooks,
        }
    )
    return TreeBackend(Options(parse_mounts("one=memory:,two=other:")), mount)


class TestTreeOfMemory(BackendConformance):
    @pytest.fixture
    async def place(self) -> AsyncIterator[Place]:
        async with opened(tree()) as place:
            yield attrs.evolve(place, directory=await looked_up(place.hooks, place.directory, "one"))


class TestTreeOfMemoryByNumber(BackendConformance):
    @pytest.fixture
    async def place(self) -> AsyncIterator[Place]:
        async with opened(tree(stable_refs=True)) as place:
            yield attrs.evolve(place, directory=await looked_up(place.hooks, place.directory, "one"))


class TestTreeOfLocal(BackendConformance):
    @pytest.fixture
    async def place(self, tmp_path: Path) -> AsyncIterator[Place]:
        below = stack(LocalBackend(LocalOptions(tmp_path, fsync=False), PlainMount()))
        (span,) = below.lifespans
        backend = TreeBackend(
            Options(parse_mounts("disk=local:")), PlainMount(sources={"local:": lambda _: below.hooks})
        )
        async with span, opened(backend) as place:
            yield attrs.evolve(place, directory=await looked_up(place.hooks, place.directory, "disk"))
