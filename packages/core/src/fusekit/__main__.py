"""``python -m fusekit``: the command line; also how a mount starts its background process."""

from __future__ import annotations

from fusekit.cli.main import main

main()
