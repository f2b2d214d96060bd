"""``fusekit emulate``: a stand-in for a service, on this machine, to try things without an account."""

from __future__ import annotations

import os
import shlex
import signal
from contextlib import ExitStack
from typing import Annotated

import typer

from fusekit.cli.options import Debug, OptionLists, read_lists
from fusekit.cli.output import say, tell
from fusekit.config import fill
from fusekit.errors import MountError
from fusekit.plugins.manager import emulator_class

HELP = """Run the emulator of a service on 127.0.0.1 until it is interrupted.

Prints the variables to export, so that fusekit and the service's own tools talk to it.

\b
Examples:
  fusekit emulate databricks
  fusekit emulate databricks --port 8080 -o latency=50ms
"""


def command(
    scheme: Annotated[str, typer.Argument(metavar="SCHEME", help="The backend whose service to emulate.")],
    port: Annotated[str | None, typer.Option(metavar="PORT", help="Port to listen on; a free one without.")] = None,
    options: OptionLists = None,
    debug: Debug = False,
) -> None:
    import threading

    cls = emulator_class(scheme)
    owner = f"emulator-{scheme}"
    flags = {
        name: value if value is not None else "yes"
        for name, value in {**read_lists(options or []), **({"port": port} if port is not None else {})}.items()
    }
    settings, _ = fill(cls.options, owner, flags=flags, environment=os.environ, profile={})
    stop = threading.Event()
    try:
        with ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                before = signal.signal(number, lambda *_: stop.set())
                stack.callback(signal.signal, number, before)
            running = stack.enter_context(cls.start(settings))
            for name, value in running.environment().items():
                tell(f"export {name}={shlex.quote(value)}")
            tell("")
            say(f"the emulator of {scheme} listens at {running.url}; Ctrl-C ends it")
            stop.wait()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise MountError(f"the emulator cannot listen: {why}; choose another --port") from error
