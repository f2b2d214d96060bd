"""``fusekit journal``: what is not at the remote side yet, or never got there, and what is to become of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusekit.cli.options import Debug, Json
from fusekit.cli.output import printable, say, size_text, tell, tell_json
from fusekit.control import client
from fusekit.control.registry import runtime_directory
from fusekit.errors import MountError
from fusekit.fuse.mounts import real_path
from fusekit.settings import Settings

if TYPE_CHECKING:
    from fusekit.control.stores import Store

HELP = """Show and settle what was written and is not at the remote side.

Works with and without a running mount. An entry is named as `list` shows it, such as 3f2a9c1d-12.

\b
Examples:
  fusekit journal list
  fusekit journal retry 3f2a9c1d-12
  fusekit journal export 3f2a9c1d-12 report.txt
  fusekit journal discard 3f2a9c1d-12
"""

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None)

StateDir = Annotated[
    Path | None, typer.Option("--state-dir", metavar="DIR", help="Where mounts keep it.", envvar="FUSEKIT_STATE_DIR")
]
Entries = Annotated[list[str], typer.Argument(metavar="ENTRY...", help="Entries, as `list` names them.")]


@app.command("list")
def list_(
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Only of the mount on DIR.")] = None,
    state_dir: StateDir = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what is not sent: entry, state, size and path, and why the last attempt failed."""
    from fusekit.control.stores import state_text

    found = _stores(state_dir)
    if directory is not None:
        live = client.live_mounts(runtime_directory(), real_path(directory))
        wanted = {one.status.get("journal_directory") for one in live}
        found = [store for store in found if str(store.directory) in wanted]
        if not found:
            raise MountError(f"{directory} is not mounted by fusekit; without DIR, all journals are listed")
    if as_json:
        tell_json(
            [
                {"entry": store.entry(row), "source": store.source, "mounted": store.endpoint is not None, **row}
                for store in found
                for row in store.rows
            ]
        )
        return
    for store in found:
        if store.rows:
            tell(f"{printable(store.source)}{'' if store.endpoint is not None else '  (not mounted)'}")
        for row in store.rows:
            tell(f"  {store.entry(row)}  {state_text(row)}  {size_text(row['size'])}  {printable(row['path'])}")
            if row["error"]:
                tell(f"    {printable(row['error'])}")
    if not any(store.rows for store in found):
        say("everything that was written is at the remote side")


@app.command()
def retry(entries: Entries, state_dir: StateDir = None, debug: Debug = False) -> None:
    """Send entries again: at once where the source is mounted, else with its next mount."""
    for store, rows in _named(entries, state_dir):
        store.retry(rows)
        if store.endpoint is None:
            say(f"sent when {store.source} is mounted again")


@app.command()
def export(
    entry: Annotated[str, typer.Argument(metavar="ENTRY", help="An entry, as `list` names it.")],
    target: Annotated[Path, typer.Argument(metavar="FILE", help="A new file for its bytes.")],
    state_dir: StateDir = None,
    debug: Debug = False,
) -> None:
    """Copy the bytes of an entry to a file; what was not closed may have holes."""
    ((store, (row,)),) = _named([entry], state_dir)
    say(f"{size_text(store.export(row, target))} are in {target}")


@app.command()
def discard(entries: Entries, state_dir: StateDir = None, debug: Debug = False) -> None:
    """Forget entries and their bytes, for good."""
    for store, rows in _named(entries, state_dir):
        store.discard(rows)


def _stores(state_dir: Path | None) -> list[Store]:
    from fusekit.control.stores import stores

    live = client.live_mounts(runtime_directory())
    return stores(state_dir if state_dir is not None else Settings().state_dir, live)


def _named(entries: Iterable[str], state_dir: Path | None) -> list[tuple[Store, list[int]]]:
    found = _stores(state_dir)
    wanted: dict[str, list[int]] = {}
    for entry in entries:
        matching = [(store, row["id"]) for store in found for row in store.rows if store.entry(row) == entry]
        if not matching:
            raise MountError(f"there is no entry {entry}; `fusekit journal list` shows them")
        wanted.setdefault(matching[0][0].name, []).append(matching[0][1])
    return [(store, wanted[store.name]) for store in found if store.name in wanted]
