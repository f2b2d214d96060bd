"""``fusekit unmount``: send what is not sent, then take the mount away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fusekit.cli.options import Debug
from fusekit.cli.output import complain, give_up, not_sent, say, tell_left
from fusekit.cli.progress import Progress
from fusekit.control import client
from fusekit.control.registry import Endpoint, endpoints, runtime_directory
from fusekit.errors import MountError
from fusekit.fuse import mounts
from fusekit.values import parse_duration

HELP = """Unmount DIR after everything written there has been sent.

Ends with status 1 and the list of files if something could not be sent; those stay in the journal. A directory that
programs still use is not taken from them, unless by --abandon.

\b
Examples:
  fusekit unmount ~/work
  fusekit unmount --timeout 30s ~/work
  fusekit unmount --abandon ~/work       (at once; what is not sent stays in the journal)
"""

# How long a process may take to end once the mount is gone: closing connections and the journal.
_END_TIMEOUT_S = 15.0


def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The mount point.")],
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long to wait for what is still being sent.")
    ] = None,
    abandon: Annotated[bool, typer.Option("--abandon", help="Detach at once, also while programs use it.")] = False,
    debug: Debug = False,
) -> None:
    try:
        timeout_s = None if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from error
    target = mounts.real_path(directory)
    point = mounts.mounted_at(target)
    if point is None:
        raise MountError(f"{directory} is not mounted")
    if not point.filesystem.startswith("fuse"):
        raise MountError(f"{directory} is a mount of {point.filesystem}, not of fusekit; use umount")
    if abandon:
        mounts.detach(target, lazy=True)
        say(f"{directory} is detached; its process ends when nobody uses it any more")
        return
    if mounts.clear_dead(target):
        say(f"{directory} was dead and is cleared")
        return
    if not point.ours:
        raise MountError(f"{directory} is a mount of {point.filesystem}, not of fusekit; use fusermount3 -u")
    _unmount(directory, target, timeout_s)


def _unmount(directory: Path, target: Path, timeout_s: float | None) -> None:
    using = mounts.users(target)
    if using:
        raise MountError(f"{directory} is in use by {', '.join(using[:5])}; close them, or add --abandon")
    progress = Progress()
    result: dict[str, Any] | None = None
    serving: Endpoint | None = None
    for serving in reversed(endpoints(runtime_directory(), target)):
        try:
            result = client.ask(serving, "unmount", timeout_s=timeout_s, progress=progress.show)
        except client.NotAnswered:
            progress.end()
            _list(progress.unsent)
            mounts.detach(target, lazy=True)
            raise MountError(f"{directory}: not everything was sent in time; the rest stays in the journal") from None
        if result is not None or progress.seen:
            break
    progress.end()
    if mounts.mounted_at(target) is not None:
        # Nobody listens, or who did has died on the way: then the kernel's word is all there is.
        mounts.detach(target, lazy=False)
    if result is not None and serving is not None and not client.wait_for_end(serving.pid, _END_TIMEOUT_S):
        complain(f"the mount process {serving.pid} has not ended yet")
    if result is None and progress.seen:
        _list(progress.unsent)
        raise MountError(
            f"the process of {directory} ended before it said that all was sent; what was not is in the journal, and its log "
            "says why"
        )
    if result is not None and result.get("left"):
        tell_left(result.get("files", ()))
        complain(f"{not_sent(result['left'])} in the journal")
        give_up()


def _list(files: list[str]) -> None:
    for name in files:
        complain(f"not sent: {name}")
