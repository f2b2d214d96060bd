"""``fusekit stat``: the attributes of one thing in a source, without a mount."""

from __future__ import annotations

import stat
from typing import Annotated, Any

import typer

from fusekit.cli.ls import facts, time_text
from fusekit.cli.options import Debug, Json, OptionLists, read_lists
from fusekit.cli.output import give_up, name_text, tell, tell_json
from fusekit.cli.volumes import directory_or_file, each, run

HELP = """Show the attributes of a file or directory.

\b
Examples:
  fusekit stat databricks:/Users/me/report.csv
  fusekit stat --json local:/srv
"""


def command(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="scheme:path, or PROFILE:path.")],
    as_json: Json = False,
    options: OptionLists = None,
    debug: Debug = False,
) -> None:
    flags = read_lists(options or [])
    found: list[dict[str, Any]] = []

    async def show(source: str) -> None:
        from fusekit.types import Kind

        async with directory_or_file(source, flags) as (paths, path):
            attr = await paths.stat(path)
            target = await paths.readlink(path) if attr.kind is Kind.SYMLINK else None
        if as_json:
            found.append({**facts(source, attr), **({"target": target} if target is not None else {})})
            return
        arrow = "" if target is None else f" -> {name_text(target)}"
        tell(f"    name: {name_text(source)}{arrow}")
        tell(f"    kind: {attr.kind.value}")
        tell(f"    size: {attr.size}")
        tell(f"    mode: {stat.S_IMODE(attr.mode):04o} ({stat.filemode(attr.mode)})")
        tell(f"   owner: {attr.uid}:{attr.gid}")
        tell(f"modified: {time_text(attr.mtime_ns)}")
        tell(f"   inode: {attr.ino}, links: {attr.nlink}")

    async def work() -> bool:
        return await each(sources, show)

    fine = run(work)
    if as_json:
        tell_json(found)
    if not fine:
        give_up()
