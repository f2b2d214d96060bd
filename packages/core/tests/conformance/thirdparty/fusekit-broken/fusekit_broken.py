"""A backend whose library is not there."""

from __future__ import annotations

import library_that_is_not_installed  # type: ignore[import-not-found]  # noqa: F401 - that is the point
