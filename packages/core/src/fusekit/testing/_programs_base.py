"""What all parts of the program suite share: the mount to give, the folder of a test, and the comparison at its end.

Outside the layers; see `fusekit.testing.programs` for how to use the suite.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final

import attrs
import pytest

from fusekit.testing.cli_mount import CliMount

Content = bytes | str | None
Held = dict[str, Content]
"""What is below a folder, by path: the bytes of files, None for folders, the target (text) of symbolic links."""

# Nothing here takes long; a program that hangs in the mount is to fail by itself, with the mount's log.
PROGRAM_TIMEOUT_S: Final = 60.0


def held(directory: Path) -> Held:
    """Return what is below ``directory``, as its file system tells."""
    found: Held = {}
    for above, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = Path(above) / name
            key = str(path.relative_to(directory))
            if path.is_symlink():
                found[key] = os.readlink(path)
            else:
                found[key] = None if path.is_dir() else path.read_bytes()
    return found


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test where one of ``programs`` is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@attrs.frozen
class Mounted:
    """A mount, and ``behind``: what the service holds below a path of it, seen by other means."""

    there: CliMount
    behind: Callable[[str], Held]


@attrs.frozen
class Place:
    """A folder of the mount, for one test; ``outside`` is an empty folder beside the mount."""

    mounted: Mounted
    name: str
    outside: Path

    @property
    def path(self) -> Path:
        return self.mounted.there.path / self.name

    def run(self, *command: str, input: str | bytes = b"", status: int = 0, cwd: Path | None = None) -> str:
        """Run a program in the folder (or in ``cwd``), see that it ends with ``status``, and return what it printed."""
        done = subprocess.run(
            command,
            cwd=cwd or self.path,
            env=self.mounted.there.environment,
            input=input.encode() if isinstance(input, str) else input,
            capture_output=True,
            timeout=PROGRAM_TIMEOUT_S,
            check=False,
        )
        said = done.stderr.decode(errors="replace")
        assert done.returncode == status, f"{' '.join(command)} ended with {done.returncode}: {said}"
        return done.stdout.decode(errors="replace") + (said if status else "")

    def sh(self, script: str, *, status: int = 0) -> str:
        """Run a script of the shell; the first command that fails ends it."""
        return self.run("sh", "-euc", script, status=status)

    def python(self, code: str, *, status: int = 0) -> str:
        """Run Python in the folder, in a process of its own."""
        return self.run(sys.executable, "-c", textwrap.dedent(code), status=status)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program in the folder that the test talks to; the test ends it."""
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=self.mounted.there.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def behind(self) -> Held:
        """Return what the service holds in the folder."""
        return self.mounted.behind(self.name)

    def shown(self) -> Held:
        """Return what the mount shows in the folder."""
        return held(self.path)

    def check(self, expected: Mapping[str, Content]) -> None:
        """See that the mount shows just what is ``expected``, and that the service holds just that."""
        assert self.shown() == expected, "what the mount shows"
        assert self.behind() == expected, "what the service holds"

    def agree(self) -> Held:
        """See that the mount shows just what the service holds, and return it."""
        shown = self.shown()
        assert self.behind() == shown
        return shown


class ProgramBase:
    """What a subclass gives (``mount``) and may set: what the service can store."""

    symlinks: ClassVar[bool] = True
    hard_links: ClassVar[bool] = True
    refused_names: ClassVar[frozenset[str]] = frozenset()
    """Names among those tried that the service cannot store."""

    @pytest.fixture
    def place(self, mount: Mounted, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
        """Give a new folder of the mount; afterwards see that the mount came through it unharmed."""
        name = re.sub(r"\W+", "-", request.node.name).strip("-")
        before = len(mount.there.unforeseen())
        place = Place(mount, name, tmp_path / "outside")
        place.outside.mkdir()
        place.path.mkdir()
        yield place
        assert mount.there.alive
        assert mount.there.unforeseen()[before:] == []
