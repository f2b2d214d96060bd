"""Who owns what is made through a mount of `local`: the same as on the disk itself, step by step."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from fusekit.backends.local import LocalBackend, Options
from fusekit.testing.mounts import mounted

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="only the administrator makes files for others"),
]

GROUP: Final = 4444

# The interpreter may be where other users do not reach it, so it changes hands once it runs.
MAKE: Final = """
import os, sys
uid = int(sys.argv[1])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
os.umask(0o022)
os.mkdir("sub")
os.mkdir("sub/deeper", 0o700)
for name in ("file", "sub/file"):
    with open(name, "w") as file:
        file.write("x")
open("empty", "w").close()
os.symlink("file", "link")
os.mkfifo("fifo", 0o640)
os.mknod("plain", 0o600)
with open("temp", "w") as file:
    file.write("y")
    file.flush()
    os.rename("temp", "renamed")
    file.write("z")
"""


@pytest.fixture
def reachable() -> Iterator[Path]:
    """Return a directory that other users reach: pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def made_in(directory: Path, uid: int) -> dict[str, tuple[int, int, int]]:
    """Let a program of user ``uid`` make things in ``directory``, and return owner, group and mode of each by path."""
    subprocess.run([sys.executable, "-c", MAKE, str(uid)], cwd=directory, check=True, timeout=60)
    found = {}
    for path in sorted(directory.rglob("*")):
        facts = path.lstat()
        found[str(path.relative_to(directory))] = (facts.st_uid, facts.st_gid, facts.st_mode)
    return found


@pytest.mark.parametrize("uid", [0, 4321])
@pytest.mark.parametrize("mode", [0o2777, 0o777], ids=["set-group-id", "plain"])
def test_owner_group_and_mode_are_those_of_a_local_disk(reachable: Path, tmp_path: Path, uid: int, mode: int) -> None:
    behind = reachable / "behind"
    behind.mkdir()
    for name in ("here", "there"):
        (behind / name).mkdir()
        os.chown(behind / name, 0, GROUP)
        os.chmod(behind / name, mode)
    wanted = made_in(behind / "here", uid)
    options = frozenset({"allow_other"})
    with mounted(lambda mount: LocalBackend(Options(behind), mount), reachable, options=options) as there:
        assert made_in(there.path / "there", uid) == wanted
    assert wanted["sub"][1:] == ((GROUP, stat.S_IFDIR | 0o2755) if mode & stat.S_ISGID else (uid, stat.S_IFDIR | 0o755))
    on_disk = {name: (behind / "there" / name).lstat() for name in wanted}
    assert {name: (facts.st_uid, facts.st_gid, facts.st_mode) for name, facts in on_disk.items()} == wanted
