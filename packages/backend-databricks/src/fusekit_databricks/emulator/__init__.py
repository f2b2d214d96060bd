"""An emulator of a Databricks workspace: the HTTP contract on loopback, good enough for the vendor's own client.

Outside the layers, imported only when asked for. `service.DatabricksEmulator` puts it together; the other modules are
what it consists of. ``python -m fusekit_databricks.emulator`` runs it.
"""

from __future__ import annotations

from fusekit_databricks.emulator.service import DatabricksEmulator, DatabricksEmulatorOptions, Knobs

__all__ = ["DatabricksEmulator", "DatabricksEmulatorOptions", "Knobs"]
