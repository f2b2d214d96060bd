"""``fusekit info``: what a source can do, and where the value of each option came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fusekit.cli.describe import describe
from fusekit.cli.options import Debug, Json, OptionLists, read_lists, split_mount_options
from fusekit.cli.output import give_up, name_text, report, tell, tell_json, tell_table
from fusekit.cli.volumes import opened, run, whole
from fusekit.control import client
from fusekit.control.registry import endpoints, runtime_directory
from fusekit.errors import FusekitError, MountError
from fusekit.fuse import mounts

HELP = """Show what SOURCE, or what is mounted on DIR, can do, and where each option's value came from.

Secrets are shown as set or not set.

\b
Examples:
  fusekit info databricks:/Users/me
  fusekit info ~/work
  fusekit info --json work -o ttl=1min
"""

_NO_OPERATIONS = {"lifespan", "capabilities"}


def command(
    place: Annotated[str, typer.Argument(metavar="SOURCE|DIR", help="scheme:path, a profile, or a mount point.")],
    as_json: Json = False,
    options: OptionLists = None,
    debug: Debug = False,
) -> None:
    mounted = _of_mount(place)
    if mounted is not None:
        _show(mounted, as_json=as_json)
        return
    flags = split_mount_options(read_lists(options or [])).flags
    found = whole(place, flags)
    facts = describe(found.request)

    async def ask() -> dict[str, Any]:
        async with opened(found) as volume:
            return volume.info()

    try:
        facts = {**facts, **run(ask)}
    except (FusekitError, ExceptionGroup) as error:
        # The options are what is looked at to find out why.
        _show(facts, as_json=as_json)
        give_up(report(error))
    _show(facts, as_json=as_json)


def _of_mount(place: str) -> dict[str, Any] | None:
    """Return what the process that serves the mount point ``place`` says, None where it is no mount of ours."""
    target = mounts.real_path(Path(place))
    point = mounts.mounted_at(target)
    if point is None or not point.ours:
        return None
    for one in reversed(endpoints(runtime_directory(), target)):
        found = client.ask(one, "info")
        if found is not None:
            return found
    raise MountError(f"nobody answers for {place}; see: fusekit status {place}")


def _show(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        tell_json(facts)
        return
    tell(f"source: {name_text(str(facts.get('source', facts['scheme'] + ':' + facts['path'])))}")
    if facts.get("profile"):
        tell(f"profile: {facts['profile']}")
    if facts.get("mountpoint"):
        tell(f"mounted on: {name_text(facts['mountpoint'])}")
    if "hooks" in facts:
        can = [hook.removeprefix("fusekit_") for hook in facts["hooks"]]
        tell(f"can: {', '.join(what for what in can if what not in _NO_OPERATIONS)}")
        for name, value in facts["capabilities"].items():
            tell(f"  {name}: {_word(value)}")
        if facts.get("skipped_names"):
            tell(f"names left out because no file can be called so: {facts['skipped_names']}")
        if facts.get("long_directories"):
            tell(f"directories with more than 100,000 names: {facts['long_directories']}")
        if facts.get("kernel"):
            _show_kernel(facts["kernel"])
    tell("")
    rows = [(one["of"], one["name"], name_text(one["value"]), one["origin"]) for one in facts["options"]]
    tell_table(("OF", "OPTION", "VALUE", "FROM"), rows)


def _show_kernel(kernel: dict[str, Any]) -> None:
    values = (f"{name} {kernel[name]}" for name in ("read_ahead_kb", "max_background") if kernel[name] is not None)
    tell(f"kernel: {', '.join(values) or 'limits unknown'}")
    for note in kernel["notes"]:
        tell(f"  {note}")


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return ascii(value) if value else "none"
    if isinstance(value, list):
        return ", ".join(str(item).lower() for item in value) or "none"
    return "no limit" if value is None else str(value)
