"""Registers the backend for Databricks workspaces, and the emulator of one."""

from __future__ import annotations

from typing import Any

from fusekit.api import hookimpl
from fusekit_databricks.backend import DatabricksBackend


@hookimpl
def fusekit_backends() -> list[type[Any]]:
    """Return the one backend of this module."""
    return [DatabricksBackend]


@hookimpl
def fusekit_emulators() -> list[type[Any]]:
    """Return the emulated workspace."""
    from fusekit_databricks.emulator import DatabricksEmulator

    return [DatabricksEmulator]
