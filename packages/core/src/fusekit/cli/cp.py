"""``fusekit cp``: copy between this machine and sources, without a mount."""

from __future__ import annotations

import os
import posixpath
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from fusekit.cli.options import Debug, OptionLists, read_lists
from fusekit.cli.output import give_up
from fusekit.cli.volumes import Flags, directory_or_file, each, opened, run, within
from fusekit.errors import ConfigError
from fusekit.plugins.sources import is_source

if TYPE_CHECKING:
    from fusekit.cli.copying import Side

HELP = """Copy files, and with -r directories, between this machine and sources.

The last argument is where to; a directory there gets the copies under their own names. Times and modes go along, as
with cp -p, where both sides keep them; owners do not. With -r symbolic links are copied as links where the target takes
them. Write ./a:b for a local name with a colon.

\b
Examples:
  fusekit cp report.csv databricks:/Users/me/
  fusekit cp -r databricks:/Users/me/project .
  fusekit cp a.txt b.txt work:inbox
"""


def command(
    places: Annotated[list[str], typer.Argument(metavar="FROM... TO", help="Paths, scheme:path or PROFILE:path.")],
    recursive: Annotated[bool, typer.Option("-r", "-R", "--recursive", help="Copy directories as well.")] = False,
    options: OptionLists = None,
    debug: Debug = False,
) -> None:
    if len(places) < 2:
        raise typer.BadParameter("name what to copy and where to", param_hint="FROM... TO")
    flags = read_lists(options or [])
    *sources, target = places

    async def work() -> bool:
        return await _copy(sources, target, flags, recursive=recursive)

    if not run(work):
        give_up()


async def _copy(sources: Sequence[str], target: str, flags: Flags, *, recursive: bool) -> bool:
    from fusekit.cli.copying import copy
    from fusekit.types import Kind

    whole = True
    async with _side(target, flags, whole=True) as (side, path):
        there = await side.facts(path)
        inside = there is not None and there.kind is Kind.DIRECTORY
        if not inside and (len(sources) > 1 or target.endswith("/")):
            raise ConfigError(f"{target} is no directory; make it first, or name one target for one source")

        async def one(source: str) -> None:
            nonlocal whole
            async with _side(source, flags, whole=recursive) as (origin, origin_path):
                final = side.join(path, _name(source)) if inside else path
                whole = await copy(origin, origin_path, side, final, recursive=recursive) and whole

        return await each(sources, one) and whole


@asynccontextmanager
async def _side(text: str, flags: Flags, *, whole: bool) -> AsyncIterator[tuple[Side, str]]:
    """Give the side of ``text`` and its path there; ``whole``: it may be a directory."""
    from fusekit.cli.copying import Local, Remote

    if not is_source(text):
        yield Local(text), text
    elif whole:
        async with directory_or_file(text, flags) as (paths, path):
            yield Remote(paths), path
    else:
        place = within(text, flags)
        async with opened(place) as volume:
            yield Remote(volume.paths), place.path


def _name(text: str) -> str:
    """Return what a copy of ``text`` is called."""
    if not is_source(text):
        return os.path.basename(os.path.abspath(text))
    name = posixpath.basename(text.partition(":")[2].rstrip("/"))
    if not name:
        raise ConfigError(f"{text} has no name to call its copy by; name the target")
    return name
