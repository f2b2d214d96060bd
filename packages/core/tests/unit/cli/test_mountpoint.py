"""What is checked before a mount is tried; each failure is one line that says what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fusekit.cli import mountpoint
from fusekit.cli.mountpoint import check_directories, check_fuse, prepare
from fusekit.errors import ConfigError, MountError
from fusekit.settings import Settings

NO_OPTIONS = frozenset[str]()


def test_missing_plain_file_and_filled_mount_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MountError, match=f"does not exist; run: mkdir -p {tmp_path / 'none'}"):
        prepare(tmp_path / "none", nonempty=False)
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match="file is no directory"):
        prepare(tmp_path / "file", nonempty=False)
    with pytest.raises(MountError, match=r"is not empty; .* -o nonempty"):
        prepare(tmp_path, nonempty=False)
    assert prepare(tmp_path, nonempty=True) == tmp_path


def test_a_link_to_an_empty_directory_is_mounted_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert prepare(tmp_path / "link", nonempty=False) == tmp_path / "real"


def test_missing_and_forbidden_device_say_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "DEVICE", tmp_path / "fuse")
    with pytest.raises(MountError, match="fuse is missing; run as root: modprobe fuse"):
        check_fuse(NO_OPTIONS)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MountError, match="may not be opened; in a container add: --device"):
        check_fuse(NO_OPTIONS)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ordinary user on a machine with a device, fusermount3 and a fuse.conf; returns the latter."""
    device, conf, program = tmp_path / "fuse", tmp_path / "fuse.conf", tmp_path / "fusermount3"
    device.touch()
    program.touch(0o755)
    monkeypatch.setattr(mountpoint, "DEVICE", device)
    monkeypatch.setattr(mountpoint, "FUSE_CONF", conf)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    return conf


def test_missing_fusermount_names_the_package(user: Path) -> None:
    check_fuse(NO_OPTIONS)
    (user.parent / "fusermount3").unlink()
    with pytest.raises(MountError, match="fusermount3 is missing; run: apt install fuse3"):
        check_fuse(NO_OPTIONS)


@pytest.mark.parametrize(
    ("conf", "allowed"),
    [(None, False), ("#user_allow_other\n", False), ("mount_max=3\n user_allow_other # yes\n", True)],
)
def test_allow_other_needs_the_line_in_fuse_conf_unless_root(
    user: Path, monkeypatch: pytest.MonkeyPatch, conf: str | None, allowed: bool
) -> None:
    if conf is not None:
        user.write_text(conf)
    if allowed:
        check_fuse(frozenset({"allow_other"}))
    else:
        with pytest.raises(ConfigError, match="allow_other needs the line user_allow_other in"):
            check_fuse(frozenset({"allow_other"}))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check_fuse(frozenset({"allow_other"}))


@pytest.mark.parametrize(("field", "what"), [("cache_dir", "cache"), ("state_dir", "state")])
def test_cache_and_state_inside_the_mount_are_refused_also_through_a_link(
    tmp_path: Path, field: str, what: str
) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    apart = {"cache_dir": tmp_path / "mnt-cache", "state_dir": tmp_path / "s"}
    check_directories(Settings(**apart), target)  # type: ignore[arg-type]  # mypy tries every field
    for inside in (target, target / "a" / "b", tmp_path / "link" / "a"):
        with pytest.raises(ConfigError, match=f"the {what} directory .* is inside the mount point; .* --{what}-dir"):
            check_directories(Settings(**{**apart, field: inside}), target)  # type: ignore[arg-type]  # as above
