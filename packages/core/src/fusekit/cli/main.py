"""The program ``fusekit``: its commands, and the one place where an error becomes a line and an exit status.

Cli layer. Errors that fusekit raises on purpose end with status 1, wrong usage with 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from fusekit import __version__
from fusekit.cli import backends, cat, cp, emulate, flush, info, journal, ls, mount, rm, stat, status, unmount
from fusekit.cli.options import Debug
from fusekit.cli.output import open_streams, report

app = typer.Typer(
    help=(
        "Mount anything that holds files.\n\nSOURCE is scheme:path (see: fusekit backends) or a profile of config.toml."
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fusekit {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Debug = False,
) -> None:
    """Hold what comes before the command; the callbacks of the options do the rest."""


for _module in (mount, unmount, flush, status, info, backends, ls, stat, cat, cp, rm, emulate):
    app.command(_module.__name__.rpartition(".")[2], help=_module.HELP)(_module.command)
app.add_typer(journal.app, name="journal")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        app(args=arguments, prog_name="fusekit")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last place before the shell
        return report(error)
    return 0


def main() -> None:
    """Run the command line and end the process."""
    open_streams()
    sys.exit(run())
