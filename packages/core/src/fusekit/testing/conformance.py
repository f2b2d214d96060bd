"""The suite that every backend passes, yours too.

Outside the layers. A test module of a backend subclasses `BackendConformance` and gives one fixture::

    import pytest
    from fusekit.testing.conformance import BackendConformance
    from fusekit.testing.harness import PlainMount, opened

    class TestMine(BackendConformance):
        @pytest.fixture
        async def place(self):
            async with opened(MyBackend(Options(...), PlainMount())) as place:
                yield place

It needs pytest and pytest-trio. ``place`` is an empty directory; a backend that cannot be written to gives one which
holds `SEED` and says ``opened(..., seeded=True)``. Each test honours the capabilities that the backend declares for that
directory: what is absent is tried once, to see that it refuses, and skipped with its name otherwise. The limits of a
service are set as class attributes: see `Suite`.

For readable failures, and for the reasons of what is skipped, ``conftest.py`` says::

    pytest_plugins = ["fusekit.testing.plugin"]
"""

from __future__ import annotations

from fusekit.testing._suite_base import SEED, Suite, covered, covers
from fusekit.testing._suite_reading import Reading
from fusekit.testing._suite_tree import Tree
from fusekit.testing._suite_writing import Writing

__all__ = ["SEED", "BackendConformance", "Suite", "covered", "covers"]


class BackendConformance(Reading, Writing, Tree):
    """Every test of the contract; a subclass gives the ``place`` fixture."""
