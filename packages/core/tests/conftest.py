"""Readable asserts in the published test kit."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("fusekit.testing")
