"""``fusekit flush``: send what was closed, now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusekit.cli.options import Debug
from fusekit.cli.output import complain, give_up, printable
from fusekit.cli.progress import Progress
from fusekit.control import client
from fusekit.control.registry import endpoints, runtime_directory
from fusekit.errors import MountError
from fusekit.fuse import mounts
from fusekit.values import parse_duration

HELP = """Send what was closed below DIR and waits, without its usual pause.

With --wait it returns when all of it is at the remote side, and ends with status 1 and the list of what is not.

\b
Examples:
  fusekit flush ~/work
  fusekit flush --wait ~/work/results
"""


def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A mount point, or something in it.")],
    wait: Annotated[bool, typer.Option("--wait", help="Return when everything is sent.")] = False,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="How long to wait at most.")] = None,
    debug: Debug = False,
) -> None:
    try:
        timeout_s = None if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from error
    target = mounts.real_path(directory)
    point = next((above for above in (target, *target.parents) if mounts.mounted_at(above) is not None), None)
    serving = endpoints(runtime_directory(), point) if point is not None else []
    if point is None or not serving:
        raise MountError(f"{directory} is in no mount of fusekit")
    progress = Progress()
    below = f"/{target.relative_to(point)}".rstrip(".")
    try:
        result = client.ask(serving[-1], "flush", timeout_s=timeout_s, progress=progress.show, below=below, wait=wait)
    finally:
        progress.end()
    if result is None:
        raise MountError(f"the process of {point} ended; what was not sent is in the journal")
    if wait and result["left"]:
        for path in result["left"]:
            complain(f"not sent: {printable(path)}; `fusekit journal list` says why")
        give_up()
