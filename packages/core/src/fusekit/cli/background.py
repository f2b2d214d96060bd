"""Start a mount in a process of its own, and hear from it whether it is mounted.

Cli layer. The process is spawned, not forked: plugins may have started threads, and a fork would copy their locks
without them. It gets the same options again as arguments; secrets come to it by environment. A pipe carries one line
back: ``mounted``, or the reason why not. Who waits sees the end of the pipe if the process dies without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from fusekit.cli.output import debugging, reason, say_trace, trace
from fusekit.errors import MountError

LOG_BYTES_MAX: Final = 4 << 20  # kept twice: the log that is written and the one before
_STOP_TIMEOUT_S: Final = 20.0
_MOUNTED: Final = "mounted"


@attrs.frozen
class Ready:
    """The end of the pipe in the process that mounts. Without a descriptor (``--foreground``) nobody listens."""

    descriptor: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.descriptor is not None:
            # Whatever this process starts (fusermount3) must not hold the pipe open after we are gone.
            os.set_inheritable(self.descriptor, False)

    def mounted(self) -> None:
        """Say that the mount is there."""
        self._send(_MOUNTED)

    def failed(self, error: BaseException) -> None:
        """Say why it is not."""
        self._send(json.dumps({"reason": reason(error), "trace": trace(error) if debugging() else ""}))

    def _send(self, line: str) -> None:
        if self.descriptor is None:
            return
        with contextlib.suppress(OSError):  # who started us is gone; the mount is not less mounted for it
            os.write(self.descriptor, f"{line}\n".encode())
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


def start(arguments: Sequence[str], log_file: Path) -> int:
    """Run ``fusekit`` with ``arguments`` and ``--ready-fd`` in the background until it is mounted; return its number.

    Raises:
        MountError: it is not mounted; the message is its reason, or says where the log is.
    """
    log = _open_log(log_file)
    reading, writing = os.pipe()
    # -P: without it a file called like a module (trio.py) in the working directory would be run.
    command = [sys.executable, "-P", "-m", "fusekit", *arguments[:1], "--ready-fd", str(writing), *arguments[1:]]
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[writing], start_new_session=True
        )
    except OSError as error:
        os.close(reading)
        raise MountError(f"cannot start the background process: {error.strerror}") from error
    finally:
        os.close(writing)
        os.close(log)
    with open(reading, "rb") as pipe:
        try:
            line = pipe.readline().decode().strip()
        except BaseException:
            _stop(child)
            raise
    if line == _MOUNTED:
        return child.pid
    status = _stop(child)
    if not line:
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        raise MountError(f"the background process ended {how} before it had mounted; its log: {log_file}")
    told = json.loads(line)
    if told["trace"]:
        say_trace(told["trace"])
    raise MountError(told["reason"])


def _stop(child: subprocess.Popen[bytes]) -> int:
    """End a process that did not mount, and return its status; one that said why is about to end by itself."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    try:
        return child.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _open_log(file: Path) -> int:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if file.exists() and file.stat().st_size > LOG_BYTES_MAX:
            file.replace(file.with_name(f"{file.name}.1"))
        return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MountError(f"cannot write the log {file}: {error.strerror}; choose another with --log-file") from error
