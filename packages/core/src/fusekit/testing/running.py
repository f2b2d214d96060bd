"""An emulator that runs: in threads of this process, in a process of its own, or as the whole of a command.

Part of the emulator base. The child gets its options on standard input (they hold secrets, which have no place among
arguments), says on standard output where it listens, and ends when its standard input does: so it cannot outlive who
started it, however that ended.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from fusekit.config import METADATA_KEY
from fusekit.testing.controls import Controls

if TYPE_CHECKING:
    from fusekit.testing.emulator import Emulator, EmulatorOptions

_STOP_S: Final = 10.0


@attrs.define(eq=False)
class RunningEmulator:
    """One that listens at ``url``. ``ca_file`` is to be trusted (TLS), ``here`` set if it is in this process."""

    scheme: str
    url: str
    ca_file: Path | None
    pid: int
    controls: Controls
    here: Emulator | None = None

    def environment(self) -> dict[str, str]:
        """Return the variables that a user exports to talk to it."""
        return {str(name): str(value) for name, value in self.controls.about()["environment"].items()}


@contextmanager
def run_here(cls: type[Emulator], settings: EmulatorOptions) -> Iterator[RunningEmulator]:
    """Run an emulator in threads of this process."""
    emulator = cls(settings)
    try:
        emulator.open()
        controls = Controls(emulator.url, emulator.ca_file)
        yield RunningEmulator(cls.scheme, emulator.url, emulator.ca_file, os.getpid(), controls, emulator)
    finally:
        emulator.close()


@contextmanager
def run_in_process(cls: type[Emulator], settings: EmulatorOptions) -> Iterator[RunningEmulator]:
    """Run an emulator in a process of its own.

    Raises:
        RuntimeError: it did not start; its complaint went to standard error.
    """
    name = f"{cls.__module__}:{cls.__qualname__}"
    values = attrs.asdict(
        settings, value_serializer=lambda _, __, value: str(value) if isinstance(value, Path) else value
    )
    with subprocess.Popen(
        [sys.executable, "-m", "fusekit.testing.running", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(values) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
            if not line:
                raise RuntimeError(f"the emulator {name} did not start (exit status {child.wait(_STOP_S)})")
            ready = json.loads(line)
            ca_file = Path(ready["ca_file"]) if ready["ca_file"] else None
            controls = Controls(ready["url"], ca_file)
            yield RunningEmulator(cls.scheme, ready["url"], ca_file, child.pid, controls)
        finally:
            child.stdin.close()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()


def serve(cls: type[Emulator], settings: EmulatorOptions, ready: Any = None) -> None:
    """Run an emulator until SIGINT or SIGTERM, as ``fusekit emulate`` does; ``ready`` is called with it once it listens.

    To be called in the main thread.
    """
    stop = threading.Event()
    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: stop.set()))
        running = stack.enter_context(run_here(cls, settings))
        if ready is not None:
            ready(running)
        stop.wait()


def command_line(cls: type[Emulator], arguments: Sequence[str] | None = None) -> None:
    """Run an emulator from its module (``python -m``): options are flags, secrets come from the environment."""
    parser = argparse.ArgumentParser(description=f"Serve an emulator of the service behind {cls.scheme}: on loopback.")
    for field in attrs.fields(cls.options):
        facts = field.metadata.get(METADATA_KEY, {})
        if facts.get("secret"):
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=facts.get("help"))
        else:
            parser.add_argument(flag, default=None, help=facts.get("help"))
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    for field in attrs.fields(cls.options):
        facts = field.metadata.get(METADATA_KEY, {})
        for variable in facts.get("env", ()) if facts.get("secret") else ():
            if variable in os.environ:
                given.setdefault(field.name, os.environ[variable])
    try:
        settings = cls.options(**given)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    serve(cls, settings, _print_environment)


def _print_environment(running: RunningEmulator) -> None:
    for name, value in running.environment().items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"the emulator of {running.scheme} listens at {running.url}; Ctrl-C ends it", file=sys.stderr, flush=True)
    sys.stdout.flush()


def _child(name: str) -> None:
    module, _, qualified = name.partition(":")
    cls: Any = importlib.import_module(module)
    for part in qualified.split("."):
        cls = getattr(cls, part)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the parent's terminal: the parent ends us, in its order
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by way of the context manager below, which cleans up
    settings = cls.options(**json.loads(sys.stdin.readline()))
    with run_here(cls, settings) as running:
        print(
            json.dumps({"url": running.url, "ca_file": str(running.ca_file) if running.ca_file else None}), flush=True
        )
        sys.stdin.read()


if __name__ == "__main__":
    _child(sys.argv[1])
