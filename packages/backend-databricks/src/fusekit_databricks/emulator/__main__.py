"""Run the emulator: ``python -m fusekit_databricks.emulator --port 8080``."""

from __future__ import annotations

from fusekit.testing.running import command_line
from fusekit_databricks.emulator.service import DatabricksEmulator

command_line(DatabricksEmulator)
