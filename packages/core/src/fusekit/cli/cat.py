"""``fusekit cat``: the bytes of files in a source, without a mount."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fusekit.cli.options import Debug, OptionLists, read_lists
from fusekit.cli.output import give_up
from fusekit.cli.volumes import each, opened, run, within

HELP = """Write the content of files to standard output.

\b
Examples:
  fusekit cat databricks:/Users/me/report.csv | head
  fusekit cat work:notes/today.txt
"""


def command(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="scheme:path, or PROFILE:path.")],
    options: OptionLists = None,
    debug: Debug = False,
) -> None:
    flags = read_lists(options or [])

    async def show(source: str) -> None:
        import trio

        async def out(data: bytes | memoryview) -> None:
            # In a thread: a reader that takes its time must not hold up what the volume does meanwhile.
            await trio.to_thread.run_sync(sys.stdout.buffer.write, data)

        place = within(source, flags)
        async with opened(place) as volume:
            await volume.paths.read(place.path, out)
        await trio.to_thread.run_sync(sys.stdout.buffer.flush)

    async def work() -> bool:
        return await each(sources, show)

    if not run(work):
        give_up()
