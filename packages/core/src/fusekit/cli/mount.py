"""``fusekit mount``: a source becomes a directory."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
import typer

from fusekit.cli import background
from fusekit.cli.describe import describe
from fusekit.cli.mountpoint import check_directories, check_fuse, prepare
from fusekit.cli.options import Debug, MountOptions, OptionLists, read_lists, split_mount_options, write_list
from fusekit.cli.output import FAILED, complain, debugging, give_up, not_sent, printable, report, say, tell_left
from fusekit.config import closest
from fusekit.control.registry import claimed, runtime_directory
from fusekit.errors import ConfigError
from fusekit.fuse.mounts import real_path
from fusekit.plugins.sources import Request, resolve

if TYPE_CHECKING:
    import trio

    from fusekit.volume import Volume

HELP = """Mount SOURCE on the directory DIR.

Returns as soon as DIR can be used, or says in one line why it cannot. What any option means for SOURCE, and where its
value comes from, is shown by: fusekit info SOURCE

\b
Examples:
  fusekit mount local:/srv/data ~/data
  fusekit mount databricks:/Users/me ~/work -o host=https://example.cloud.databricks.com
  fusekit mount work ~/work --read-only         (work is a profile of config.toml)
  fusekit mount memory: /mnt/scratch -o allow_other,uid=1000,gid=1000
  fusekit mount --foreground --log-level debug local:/srv/data ~/data
"""
LEVELS = ("debug", "info", "warning", "error")

# What the end may take when the time for sending is over: last answers, closing connections and the journal.
_END_GRACE_S: Final = 5.0

logger = logging.getLogger(__name__)


def command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="scheme:path, or a profile.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory to mount on.")],
    options: OptionLists = None,
    foreground: Annotated[bool, typer.Option("--foreground", "-f", help="Stay, log to stderr; Ctrl-C ends.")] = False,
    consistency: Annotated[
        str | None, typer.Option(metavar="MODE", help="strict, close-to-open (default), relaxed or snapshot.")
    ] = None,
    ttl: Annotated[str | None, typer.Option(metavar="TIME", help="How long names and attributes are believed.")] = None,
    write: Annotated[str | None, typer.Option(metavar="MODE", help="sync (default), async or off.")] = None,
    on_conflict: Annotated[
        str | None, typer.Option(metavar="HOW", help="fail (default), keep-both (default of async) or overwrite.")
    ] = None,
    drain_timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long the end waits for uploads (60s).")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="As --write off.")] = False,
    uid: Annotated[str | None, typer.Option(metavar="UID", help="Owner shown where the service names none.")] = None,
    gid: Annotated[str | None, typer.Option(metavar="GID", help="Group shown where the service names none.")] = None,
    umask: Annotated[str | None, typer.Option(metavar="OCTAL", help="Permission bits taken away.")] = None,
    file_mode: Annotated[str | None, typer.Option(metavar="OCTAL", help="Permission bits of all files.")] = None,
    dir_mode: Annotated[str | None, typer.Option(metavar="OCTAL", help="Permission bits of all directories.")] = None,
    cache_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where clean blocks are kept; none: in memory alone.")
    ] = None,
    cache_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="How much of the disk they may take (10GiB).")
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Bytes in memory on their way (256MiB).")] = None,
    readahead: Annotated[
        str | None, typer.Option(metavar="SIZE", help="How far to read ahead (64MiB); 0: not at all.")
    ] = None,
    requests_max: Annotated[
        str | None, typer.Option(metavar="N", help="Requests to one host at once (16); fewer while it is too many.")
    ] = None,
    state_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Where what is not yet sent is kept.")] = None,
    entries_max: Annotated[
        str | None, typer.Option(metavar="N", help="Names kept in memory (500,000); the oldest are dropped.")
    ] = None,
    layer: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Put a layer on top; repeatable.")] = None,
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Let other users in.")] = False,
    log_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Log of the background process.")] = None,
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help=f"One of {', '.join(LEVELS)}.")] = "info",
    debug: Debug = False,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    flags = {
        "consistency": consistency,
        "ttl": ttl,
        "write": _write_mode(write, read_only=read_only),
        "on_conflict": on_conflict,
        "drain_timeout": drain_timeout,
        "uid": uid,
        "gid": gid,
        "umask": umask,
        "file_mode": file_mode,
        "dir_mode": dir_mode,
        "cache_dir": cache_dir,
        "cache_bytes": cache_bytes,
        "memory": memory,
        "readahead": readahead,
        "requests_max": requests_max,
        "state_dir": state_dir,
        "entries_max": entries_max,
        "layers": ",".join(layer) if layer else None,
    }
    if log_level not in LEVELS:
        raise ConfigError(f"{log_level!r} is no log level{closest(log_level, LEVELS)} ({', '.join(LEVELS)})")
    given = split_mount_options(read_lists(options or []))
    merged = {**given.flags, **{name: value for name, value in flags.items() if value is not None}}
    wanted = attrs.evolve(given, flags=merged, fuse=given.fuse | ({"allow_other"} if allow_other else set()))
    if foreground or ready_fd is not None:
        _serve_here(source, directory, wanted, log_level, background.Ready(ready_fd))
        return
    request, target = _prepare(source, directory, wanted)
    log = log_file or _log_file(request, target)
    again = {**merged, **_fuse_flags(wanted)}
    arguments = ["mount", *write_list(again), "--log-level", log_level, *(["--debug"] if debugging() else [])]
    # DIR as it was given, made absolute: messages then name it as the user does.
    background.start([*arguments, "--", source, str(directory.expanduser().absolute())], log.absolute())
    say(f"{request.source} is mounted on {directory}; to leave: fusekit unmount {directory}")


def _write_mode(write: str | None, *, read_only: bool) -> str | None:
    if not read_only:
        return write
    if write not in {None, "off"}:
        raise ConfigError(f"--read-only and --write {write} contradict each other; leave one out")
    return "off"


def _fuse_flags(wanted: MountOptions) -> dict[str, str | None]:
    pairs = (option.partition("=") for option in sorted(wanted.fuse))
    flags = {name: value if equals else None for name, equals, value in pairs}
    return {**flags, "nonempty": None} if wanted.nonempty else flags


def _prepare(source: str, directory: Path, wanted: MountOptions) -> tuple[Request, Path]:
    """Check all that can be checked before a process is started for it."""
    request = resolve(source, wanted.flags)
    target = prepare(directory, nonempty=wanted.nonempty)
    check_fuse(wanted.fuse)
    check_directories(request.settings, target)
    return request, target


def _log_file(request: Request, target: Path) -> Path:
    # The end tells most, and a name has 255 bytes, not letters.
    name = os.fsencode(printable(str(target)).strip("/").replace("/", "-"))[-200:].decode(errors="ignore") or "root"
    return request.settings.state_dir / "log" / f"{name}.log"


def _serve_here(source: str, directory: Path, wanted: MountOptions, level: str, ready: background.Ready) -> None:
    """Mount and serve in this process until the mount ends."""
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Libraries tell every request at INFO; that is our DEBUG.
    for library in ("httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    try:
        with ExitStack() as claim:
            claim.enter_context(claimed(runtime_directory(), real_path(directory)))
            request, target = _prepare(source, directory, wanted)
            import trio

            def mounted() -> None:
                claim.close()
                ready.mounted()

            left = trio.run(functools.partial(_run, request, target, wanted, mounted))
    except BaseException as error:
        ready.failed(error)
        if ready.descriptor is None:
            raise
        give_up(report(error))
    if left:
        tell_left(left)
        complain(f"{not_sent(len(left))} in {request.settings.state_dir}")
        give_up()


async def _run(request: Request, target: Path, wanted: MountOptions, ready: Callable[[], None]) -> list[dict[str, Any]]:
    """Mount and serve until the end, and return what was not sent."""
    import trio

    from fusekit.control.socket import Control
    from fusekit.fuse.session import serve
    from fusekit.volume import open_volume

    stopping = trio.Event()
    sockets = runtime_directory()
    async with open_volume(request.source, request.settings) as volume:
        # A working directory is a mount that cannot be unmounted. Not before this: a tree resolves its sources here.
        os.chdir("/")
        volume.ending = functools.partial(_bound_end, volume)
        facts = {"mountpoint": str(target), "profile": request.source.profile}

        async def status() -> dict[str, Any]:
            return {**facts, **await volume.status()}

        async def info() -> dict[str, Any]:
            return {**facts, **describe(request), **volume.info()}

        actions = {"flush": volume.flush, "retry": volume.retry, "discard": volume.discard}
        control = Control(status, info, stopping.set, actions)
        async with trio.open_nursery() as nursery, control.listening(sockets, target):
            nursery.start_soon(_stop_at_signal, stopping)
            await serve(volume, target, options=wanted.fuse, ready=ready, stopping=stopping)
            left = list((await volume.status())["journal"])
            await control.finish({"left": len(left), "files": left})
            nursery.cancel_scope.cancel()
    return left


def _bound_end(volume: Volume) -> None:
    """See to it that this process ends: code of a backend that hangs in a thread cannot be cancelled."""

    def end() -> None:
        left = volume.filesystem.unsent()
        tell_left([{"path": path, "state": "still being sent"} for path in left])
        logger.error(
            "a backend does not return; the mount ends without it, and the journal keeps what was not sent in %s",
            volume.settings.state_dir,
        )
        os._exit(FAILED)  # as sudden as a power loss, which the journal is made for

    timer = threading.Timer(volume.settings.drain_timeout_s + _END_GRACE_S, end)
    timer.daemon = True
    timer.start()


async def _stop_at_signal(stopping: trio.Event) -> None:
    import trio

    # SIGHUP: a terminal that closes ends a mount in its foreground; one in the background has none.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for _ in signals:
            stopping.set()
