"""``fusekit rm``: remove from a source, without a mount."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fusekit.cli.options import Debug, OptionLists, read_lists
from fusekit.cli.output import give_up
from fusekit.cli.volumes import each, opened, run, within
from fusekit.errors import IsDirectory

if TYPE_CHECKING:
    from fusekit.vfs.paths import Paths

HELP = """Remove files, and with -r directories with all that is in them.

\b
Examples:
  fusekit rm databricks:/Users/me/old.csv
  fusekit rm -r work:build
"""


def command(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="scheme:path, or PROFILE:path.")],
    recursive: Annotated[
        bool, typer.Option("-r", "-R", "--recursive", help="Remove directories and what is in them.")
    ] = False,
    options: OptionLists = None,
    debug: Debug = False,
) -> None:
    flags = read_lists(options or [])

    async def remove(source: str) -> None:
        from fusekit.types import Kind

        place = within(source, flags)
        async with opened(place) as volume:
            attr = await volume.paths.stat(place.path)
            if attr.kind is Kind.DIRECTORY and not recursive:
                raise IsDirectory(f"{source} is a directory; to remove it with all that is in it add -r")
            await _remove(volume.paths, place.path, attr.kind is Kind.DIRECTORY)

    async def work() -> bool:
        return await each(sources, remove)

    if not run(work):
        give_up()


async def _remove(paths: Paths, path: str, directory: bool) -> None:
    from fusekit.types import Kind

    if directory:
        for name, attr in await paths.list(path):
            await _remove(paths, f"{path}/{name}", attr.kind is Kind.DIRECTORY)
    await paths.remove(path)
