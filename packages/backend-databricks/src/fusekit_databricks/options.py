"""What a Databricks mount can be told: the folder, the workspace, and how to sign in.

Part of the backend; filled by core from SOURCE, flags, environment, profile and default.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from fusekit.api import option
from fusekit_databricks.layout import canonical


@attrs.frozen
class Options:
    """Options of `databricks:`. ``profile`` and ``config_file`` are those of the vendor's own tools."""

    path: str = option(default="/", converter=canonical, help="folder to mount, for example /Users/me@example.com")
    host: str = option(default="", env=("DATABRICKS_HOST",), help="address of the workspace")
    token: str = option(default="", env=("DATABRICKS_TOKEN",), secret=True, help="personal access token")
    profile: str = option(
        default="", env=("DATABRICKS_CONFIG_PROFILE",), help="profile of the configuration file to sign in with"
    )
    config_file: Path = option(
        default=Path("~/.databrickscfg"),
        env=("DATABRICKS_CONFIG_FILE",),
        converter=Path,
        help="configuration file of the Databricks tools",
    )
