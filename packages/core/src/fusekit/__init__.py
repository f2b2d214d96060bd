"""fusekit: anything with an API that holds files becomes a directory."""

from __future__ import annotations

__version__ = "0.1.0"
