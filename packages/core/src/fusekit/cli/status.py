"""``fusekit status``: the mounts of this user, and what goes on in each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fusekit.cli.options import Debug, Json
from fusekit.cli.output import printable, size_text, span_text, tell, tell_json
from fusekit.control import client
from fusekit.control.registry import runtime_directory
from fusekit.errors import MountError
from fusekit.fuse import mounts

HELP = """Show the mounts of this user: what is not sent yet, cache, requests, errors.

\b
Examples:
  fusekit status
  fusekit status ~/work
  fusekit status --json
"""


def command(
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Only this mount, in full.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    target = None if directory is None else mounts.real_path(directory)
    found = _mounts(target)
    if target is not None and not found:
        raise MountError(f"{directory} is not mounted by fusekit")
    if as_json:
        tell_json(found if target is None else found[-1])
        return
    if not found:
        tell("nothing is mounted")
    for status in found:
        _show(status, full=target is not None)


def _mounts(target: Path | None) -> list[dict[str, Any]]:
    """Return the status of each mount: those that answer, then those of the kernel's table that nobody answers for."""
    live = client.live_mounts(runtime_directory(), target)
    points = [point for point in mounts.mount_points() if point.ours and target in (None, point.path)]
    found = []
    for one in live:
        status = {"state": "mounted", **one.status}
        if "mountpoint" in status and status["mountpoint"] not in {str(point.path) for point in points}:
            status["state"] = "draining"
        found.append(status)
    answered = {status.get("mountpoint") for status in found}
    for point in points:
        if str(point.path) not in answered:
            state = "dead" if mounts.is_dead(point.path) else "of another user or without a control socket"
            found.append({"mountpoint": str(point.path), "source": point.source, "state": state})
    return found


def _show(status: dict[str, Any], *, full: bool) -> None:
    where = printable(status.get("mountpoint", f"process {status.get('pid')}"))
    tell(f"{where}  {printable(str(status.get('source', '')))}  {status['state']}")
    if status["state"] == "dead":
        tell(f"  clear it with: fusekit unmount {where}")
    if "pid" not in status or "calls" not in status:
        return
    errors = sum(status["errors"].values())
    tell(f"  process {status['pid']}, version {status['version']}, up {span_text(status['uptime_s'])}")
    tell(
        f"  not sent: {len(status['unsent'])}, in the journal: {len(status['journal'])}, failed: {len(status['failed'])}"
    )
    if status.get("waiting_bytes"):
        tell(f"  waiting to be sent: {size_text(status['waiting_bytes'])}")
    tell(f"  cache: {size_text(status['cache_bytes'])}, open files: {status['handles']}, inodes: {status['inodes']}")
    tell(f"  requests: {sum(status['calls'].values())}, of them failed: {errors}")
    unsent = set(status["unsent"])
    for row in status["journal"]:
        if row["error"] and row["path"] in unsent:
            tell(f"  not sent yet: {printable(row['path'])}: {printable(row['error'])}")
        elif row["state"] == "failed" or row["path"] not in unsent:
            why = row["error"] or "an earlier mount ended before it was sent"
            tell(f"  failed: {printable(row['path'])}: {printable(why)}")
            tell(f"    its {size_text(row['size'])} are kept in {printable(row['staging'])}")
    if not full:
        return
    tell(f"  consistency: {status['consistency']}, write: {status['write']}")
    tell(f"  read: {size_text(status['bytes_read'])}, written: {size_text(status['bytes_written'])}")
    for host, at in sorted(status.get("hosts", {}).items()):
        waiting = f", {at['waiting']} waiting" if at["waiting"] else ""
        lowered = f"; it asked for fewer {at['lowered']} times" if at["lowered"] else ""
        tell(f"  {printable(host)}: {at['running']} of {at['allowed']} requests at once{waiting}{lowered}")
    for hook, number in sorted(status["calls"].items(), key=lambda pair: -pair[1]):
        failed = f", {status['errors'][hook]} failed" if status["errors"].get(hook) else ""
        tell(f"    {hook.removeprefix('fusekit_')}: {number}{failed}, {status['seconds'].get(hook, 0):.2f} s in all")
    for path in status["unsent"]:
        tell(f"  not sent: {printable(path)}")
