"""``fusekit ls``: what is in a directory of a source, without a mount."""

from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusekit.cli.options import Debug, Json, OptionLists, read_lists
from fusekit.cli.output import give_up, name_text, tell, tell_json, tell_table
from fusekit.cli.volumes import Flags, directory_or_file, each, run

if TYPE_CHECKING:
    from fusekit.vfs.attributes import Attr

HELP = """List what is in SOURCE.

\b
Examples:
  fusekit ls databricks:/Users/me
  fusekit ls -l local:/srv
  fusekit ls --json work:reports
"""


def command(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="scheme:path, or PROFILE:path.")],
    long: Annotated[bool, typer.Option("-l", "--long", help="Modes, owners, sizes and times as well.")] = False,
    as_json: Json = False,
    options: OptionLists = None,
    debug: Debug = False,
) -> None:
    flags = read_lists(options or [])
    found: dict[str, list[dict[str, Any]]] = {}

    async def show(source: str) -> None:
        entries = await _list(source, flags)
        if as_json:
            found[source] = [facts(name, attr) for name, attr in entries]
            return
        if len(sources) > 1:
            tell(f"{source}:")
        if long:
            tell_table(("MODE", "UID", "GID", "SIZE", "MODIFIED", "NAME"), (_row(name, attr) for name, attr in entries))
        else:
            for name, _ in entries:
                tell(name_text(name))

    async def work() -> bool:
        return await each(sources, show)

    fine = run(work)
    if as_json:
        tell_json(found if len(sources) > 1 else found.get(sources[0], []))
    if not fine:
        give_up()


def facts(name: str, attr: Attr) -> dict[str, Any]:
    """Return one entry as plain values, for JSON."""
    return {
        "name": name,
        "kind": attr.kind.value,
        "mode": f"{stat.S_IMODE(attr.mode):04o}",
        "uid": attr.uid,
        "gid": attr.gid,
        "size": attr.size,
        "nlink": attr.nlink,
        "mtime_ns": attr.mtime_ns,
        "inode": attr.ino,
    }


def time_text(time_ns: int) -> str:
    """Return a time as people of this place write it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // 10**9))


async def _list(source: str, flags: Flags) -> list[tuple[str, Attr]]:
    from fusekit.types import Kind

    async with directory_or_file(source, flags) as (paths, path):
        attr = await paths.stat(path)
        if attr.kind is Kind.DIRECTORY:
            return await paths.list(path)
        return [(path.rpartition("/")[2], attr)]


def _row(name: str, attr: Attr) -> tuple[str, ...]:
    when = time_text(attr.mtime_ns)
    return stat.filemode(attr.mode), str(attr.uid), str(attr.gid), str(attr.size), when, name_text(name)
