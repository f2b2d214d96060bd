"""The pytest plugin of the test kit: readable reports, and tests marked ``fuse`` where a mount is possible.

Where it is not, they are skipped with the reason in one line at the end.

Outside the layers. Loaded with ``-p fusekit.testing.plugin``, or from the ``conftest.py`` of a backend's own repository with
``pytest_plugins = ["fusekit.testing.plugin"]``.
"""

from __future__ import annotations

import os
import pkgutil
import shutil
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

import fusekit.testing

# Readable asserts in the rest of the kit; only modules that are not yet imported can be given them.
pytest.register_assert_rewrite(
    *(
        found.name
        for found in pkgutil.iter_modules(fusekit.testing.__path__, "fusekit.testing.")
        if found.name != __name__
    )
)

MARKER = "fuse"
DEVICE = Path("/dev/fuse")
UNMOUNTED = "cannot mount: "
REASONS_SHOWN = 5


@cache
def fuse_problem() -> str | None:
    """Say why nothing can be mounted here, or None where it can; found out by mounting."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR))
    except OSError as error:
        return f"{DEVICE} cannot be opened ({error.strerror})"
    helper = shutil.which("fusermount3")
    if helper is None:
        return "fusermount3 is not installed (Debian package fuse3)"
    with tempfile.TemporaryDirectory(prefix="fusekit-probe-") as directory:
        return _mount_problem(helper, directory)


def _mount_problem(helper: str, directory: str) -> str | None:
    # A container can have the device and the program and still forbid the mount. fusermount3 mounts and passes the descriptor
    # of the device over the socket; nobody ever serves it, so whatever touched the mount before it is gone would wait forever.
    ours, theirs = socket.socketpair()
    with ours, theirs:
        mounted = subprocess.run(
            [helper, "-o", "fsname=fusekit-probe", "--", directory],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if mounted.returncode != 0:
            said = (mounted.stderr or mounted.stdout).strip().splitlines() or [f"exit status {mounted.returncode}"]
            return f"mounting is not permitted here ({said[-1]})"
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        for descriptor in descriptors:
            os.close(descriptor)
    subprocess.run([helper, "-u", "-q", "-z", "--", directory], stdin=subprocess.DEVNULL, check=True)
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("fusekit").addoption(
        "--require-fuse", action="store_true", help="fail, instead of skipping, where the tests that mount cannot run"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}: needs /dev/fuse and fusermount3")
    if config.getoption("--require-fuse") and (problem := fuse_problem()):
        raise pytest.UsageError(f"--require-fuse: {problem}")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker(MARKER)]
    if marked and (problem := fuse_problem()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"{UNMOUNTED}{problem}"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> None:
    """Bring back the reason of a skip inside an async test: pytest-trio unwraps the group and skips anew without it."""
    skipped = call.excinfo.value if call.excinfo else None
    if isinstance(skipped, pytest.skip.Exception) and not skipped.msg:
        inner = skipped.__context__
        while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
            inner = inner.exceptions[0]
        if isinstance(inner, pytest.skip.Exception):
            skipped.msg = inner.msg


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each reason for skipping once, however many files it was met in, and that nothing can be mounted last of all."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.getreports("skipped"):
        if isinstance(report.longrepr, tuple):
            reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
    unmounted = {reason: reasons.pop(reason) for reason in list(reasons) if reason.startswith(UNMOUNTED)}
    common = reasons.most_common(None if terminalreporter.verbosity > 0 else REASONS_SHOWN)
    if rest := reasons.total() - sum(count for _, count in common):
        common.append((f"{len(reasons) - len(common)} other reasons (-v shows them)", rest))
    for reason, count in [*common, *unmounted.items()]:
        terminalreporter.write_line(f"SKIPPED {count}: {reason}")
