"""The services that crashes and random operations are tried on: a directory, and a workspace on its emulator."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fusekit.testing.crash import Service
from fusekit.testing.crash_services import DirectoryService, EmulatorService
from fusekit_databricks.emulator import DatabricksEmulator

_HOME: Final = "/Users/me@example.com/"


def _state_of(directories: Sequence[str]) -> Mapping[str, Any]:
    return {"objects": {_HOME + name: {"type": "DIRECTORY"} for name in directories}}


def _contents_of(state: Mapping[str, Any]) -> dict[str, bytes]:
    return {
        path.removeprefix(_HOME): base64.b64decode(facts["content"])
        for path, facts in state["objects"].items()
        if path.startswith(_HOME) and facts["type"] == "FILE"
    }


SERVICES: Final[Mapping[str, Service]] = {
    "local": DirectoryService(),
    "databricks": EmulatorService(
        "databricks", DatabricksEmulator, f"databricks:{_HOME.rstrip('/')}", _state_of, _contents_of
    ),
}
