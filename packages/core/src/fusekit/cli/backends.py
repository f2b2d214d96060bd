"""``fusekit backends``: what is installed, what each takes, and what cannot be used and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fusekit.cli.options import Debug, Json
from fusekit.cli.output import tell, tell_json, tell_table
from fusekit.config import declared
from fusekit.errors import PluginError
from fusekit.plugins.manager import Plugin, find, installed

HELP = """List the installed backends and layers, also those that cannot be used and why.

\b
Examples:
  fusekit backends
  fusekit backends --options databricks
  fusekit backends --json
"""


def command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this backend or layer.")] = None,
    options: Annotated[bool, typer.Option("--options", help="The options of each as well.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    plugins = installed() if name is None else [_one(name)]
    rows = [row for plugin in plugins for row in _rows(plugin, name)]
    if as_json:
        tell_json(rows)
        return
    if options:
        for row in rows:
            _show_options(row)
        return
    header = ("NAME", "KIND", "FROM", "")
    tell_table(header, ((row["name"], row["kind"], row["from"], row["error"] or "") for row in rows))


def _one(name: str) -> Plugin:
    try:
        return find(name)
    except PluginError:
        # Broken or not there: the list shows the first with its reason, the second has none to show.
        for plugin in installed():
            if plugin.name == name:
                return plugin
        raise


def _rows(plugin: Plugin, only: str | None) -> list[dict[str, Any]]:
    origin = f"{plugin.distribution} {plugin.version}" if plugin.distribution else plugin.module
    if plugin.error is not None:
        return [{"name": plugin.name, "kind": "unusable", "from": origin, "error": plugin.error, "options": []}]
    classes = [("backend", cls, cls.scheme) for cls in plugin.backends]
    classes += [("layer", cls, cls.name) for cls in plugin.layers]
    return [
        {
            "name": name,
            "kind": kind,
            "from": origin,
            "error": None,
            "emulator": any(emulator.scheme == name for emulator in plugin.emulators),
            "options": [
                {
                    "name": one.name,
                    "takes": one.kind,
                    "default": one.default,
                    "secret": one.secret,
                    "variables": list(one.variables),
                    "help": one.help,
                }
                for one in declared(cls.options, name)
            ],
        }
        for kind, cls, name in classes
        # A module may be behind several entry points; each shows what it is called after.
        if name == (only or plugin.name)
    ]


def _show_options(row: dict[str, Any]) -> None:
    tell(f"{row['name']} ({row['kind']}, {row['from']})")
    if row["error"]:
        tell(f"  {row['error']}")
    for one in row["options"]:
        default = "required" if one["default"] is None else f"default {one['default']}" if one["default"] else ""
        places = " ".join(one["variables"])
        name = f"{one['name']}_file" if one["secret"] else one["name"]
        tell(f"  {name}: {', '.join(part for part in (one['takes'], default) if part)}")
        for line in (one["help"], f"environment: {places}" if places else ""):
            if line:
                tell(f"      {line}")
