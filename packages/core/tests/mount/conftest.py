"""What the tests on mounts share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusekit.testing.mounts import Mounted, memory, mounted


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Mounted]:
    """Give a mount of a backend in memory, in the process of the test."""
    with mounted(memory, tmp_path) as made:
        yield made
