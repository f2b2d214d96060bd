"""Mount points as the kernel lists them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusekit.errors import MountError
from fusekit.fuse.mounts import detach, is_dead, mount_points, mounted_at, real_path, users

LINES = r"""22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
36 22 0:45 / /mnt/with\040space rw,nosuid,nodev - fuse.fusekit memory: rw,user_id=0
37 22 0:46 / /mnt/two ro - fuse.sshfs host:/x rw
38 37 0:47 / /mnt/two ro,nosuid shared:2 master:3 - fuse.fusekit shop:/a\011b rw
"""


@pytest.fixture
def mountinfo(tmp_path: Path) -> Path:
    file = tmp_path / "mountinfo"
    file.write_text(LINES)
    return file


def test_lines_are_read_with_escapes_and_optional_fields(mountinfo: Path) -> None:
    points = mount_points(mountinfo)
    assert [(str(point.path), point.ours) for point in points[1:]] == [
        ("/mnt/with space", True),
        ("/mnt/two", False),
        ("/mnt/two", True),
    ]
    assert points[3].source == "shop:/a\tb"
    assert points[3].read_only
    assert points[1].device == os.makedev(0, 45)


def test_the_upper_of_two_mounts_at_one_place_is_the_visible_one(mountinfo: Path) -> None:
    point = mounted_at(Path("/mnt/two"), mountinfo)
    assert point is not None
    assert point.filesystem == "fuse.fusekit"
    assert mounted_at(Path("/mnt"), mountinfo) is None


def test_real_path_follows_links_and_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert real_path(Path("link")) == tmp_path / "real"
    assert real_path(Path("link/../link/new")) == tmp_path / "real" / "new"
    assert real_path(Path("/proc")) == Path("/proc")
    assert real_path(Path("/")) == Path("/")


def test_an_ordinary_directory_is_not_dead_and_cannot_be_detached(tmp_path: Path) -> None:
    assert not is_dead(tmp_path)
    with pytest.raises(MountError) as caught:
        detach(tmp_path, lazy=False)
    assert "\n" not in str(caught.value)


def test_users_names_the_process_that_has_something_open(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w"):
        assert any(f"({os.getpid()})" in user for user in users(tmp_path))
    assert not any(f"({os.getpid()})" in user for user in users(tmp_path))
