"""Options that several commands share, and mount(8)'s ``-o`` lists.

Cli layer. A list mixes three kinds: options of the engine, the backend and its layers are handed on by name; those of
FUSE itself are taken out here; words that only fstab and mount(8) care about are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Final

import attrs
import typer

from fusekit.cli.output import set_debug
from fusekit.errors import ConfigError

Debug = Annotated[
    bool, typer.Option("--debug", help="Show tracebacks behind errors.", callback=lambda on: set_debug(on))
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
OptionLists = Annotated[
    list[str] | None,
    typer.Option("-o", metavar="OPT[,OPT...]", help="Options of the engine, the backend and FUSE: NAME=VALUE or NAME."),
]

# Handed to libfuse as they are. nosuid and nodev always hold and need not be said.
_FUSE: Final = frozenset({"allow_other", "allow_root", "noexec", "noatime", "dirsync"})
_FUSE_VALUED: Final = frozenset({"max_read"})
_DROPPED: Final = frozenset(
    {"rw", "defaults", "auto", "noauto", "user", "nouser", "users", "group", "owner", "nofail", "_netdev", "exec"}
    | {"atime", "relatime", "norelatime", "strictatime", "nodiratime", "lazytime", "sync", "async", "nosuid", "nodev"}
)
_DROPPED_PREFIXES: Final = ("x-", "comment=")
_REFUSED: Final = {"suid": "nosuid", "dev": "nodev"}


@attrs.frozen
class MountOptions:
    """An ``-o`` list, taken apart: ``flags`` for the engine and plugins, ``fuse`` for libfuse."""

    flags: dict[str, str | None]
    fuse: frozenset[str]
    nonempty: bool = False


def read_lists(lists: Iterable[str]) -> dict[str, str | None]:
    """Return the names and values of ``-o`` lists; ``\\,`` is a comma inside a value, a later name wins."""
    found: dict[str, str | None] = {}
    for text in lists:
        for part in re.split(r"(?<!\\),", text):
            word = part.replace("\\,", ",").strip()
            if word:
                name, equals, value = word.partition("=")
                found[name.strip()] = value if equals else None
    return found


def write_list(flags: dict[str, str | None]) -> list[str]:
    """Return arguments that `read_lists` reads back: one ``-o`` for each."""
    arguments = []
    for name, value in flags.items():
        word = name if value is None else f"{name}={value}"
        arguments += ["-o", word.replace(",", "\\,")]
    return arguments


def split_mount_options(found: dict[str, str | None]) -> MountOptions:
    """Take apart what `read_lists` found.

    Raises:
        ConfigError: an option that a fusekit mount can never have.
    """
    flags: dict[str, str | None] = {}
    fuse: set[str] = set()
    nonempty = False
    for name, value in found.items():
        if name in _REFUSED and value is None:
            raise ConfigError(f"option {name} is not possible: a fusekit mount is always {_REFUSED[name]}")
        if name == "nonempty":
            nonempty = True
        elif name == "ro" and value is None:
            flags["write"] = "off"
        elif name in _FUSE and value is None:
            fuse.add(name)
        elif name in _FUSE_VALUED and value is not None:
            fuse.add(f"{name}={value}")
        elif not (name in _DROPPED and value is None) and not name.startswith(_DROPPED_PREFIXES):
            flags[name] = value
    return MountOptions(flags, frozenset(fuse), nonempty)
