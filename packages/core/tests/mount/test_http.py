"""A web server as a directory: what programs see, and what it costs the server."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusekit.testing.cli_mount import CliMount, cli_mount
from fusekit.testing.connected import asked
from fusekit.testing.running import RunningEmulator
from fusekit.testing.web import WebEmulator, files_state

pytestmark = pytest.mark.fuse

FILES = {
    "readme.txt": b"hello\n",
    "100% of a+b #1;?.txt": b"odd name",
    "big.bin": bytes(range(256)) * 4096,
    "sub/inner.txt": b"inner",
    "sub/deeper/leaf": b"leaf",
    "empty": b"",
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningEmulator]:
    with WebEmulator.spawn() as running:
        running.controls.replace_state(
            {**files_state(FILES), "generated": {"many": {"folders": 10, "files": 20, "size": 100}}}
        )
        yield running


@pytest.fixture(scope="module", params=["webdav", "nginx-json", "nginx-html", "apache-table", "python"])
def there(
    server: RunningEmulator, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CliMount]:
    directory = tmp_path_factory.mktemp("http")
    with cli_mount(f"{server.url}/{request.param}", directory, "--ttl", "1h") as mount:
        asked(server.controls)
        yield mount


def test_files_are_what_the_server_has(there: CliMount) -> None:
    subprocess.run(["ls", "-lR", str(there.path)], check=True, stdout=subprocess.DEVNULL)
    found = {
        str(path.relative_to(there.path)): path.read_bytes()
        for path in there.path.rglob("*")
        if path.is_file() and "many" not in path.parts
    }
    assert found == FILES
    assert {name: (there.path / name).stat().st_size for name in FILES} == {name: len(FILES[name]) for name in FILES}
    assert there.unforeseen() == []


def test_nothing_can_be_written(there: CliMount) -> None:
    for change in (
        lambda: (there.path / "new").write_bytes(b"x"),
        lambda: (there.path / "readme.txt").write_bytes(b"x"),
        lambda: (there.path / "readme.txt").unlink(),
        lambda: (there.path / "made").mkdir(),
        lambda: os.rename(there.path / "readme.txt", there.path / "sub/readme.txt"),
    ):
        with pytest.raises(OSError) as raised:
            change()
        assert raised.value.errno == errno.EROFS


def test_a_missing_name_is_missing(there: CliMount) -> None:
    assert not (there.path / "no such name").exists()
    assert not (there.path / "sub/no such name").exists()


def test_a_walk_costs_one_request_a_folder_and_again_none(server: RunningEmulator, tmp_path: Path) -> None:
    with cli_mount(f"http:{server.url}/webdav/many", tmp_path, "--ttl", "1h") as mount:
        asked(server.controls)
        subprocess.run(["ls", "-lR", str(mount.path)], check=True, stdout=subprocess.DEVNULL)
        assert asked(server.controls) == {"propfind": 11}
        subprocess.run(["ls", "-lR", str(mount.path)], check=True, stdout=subprocess.DEVNULL)
        assert asked(server.controls) == {}
        assert (mount.path / "folder-0003/file-000007").read_bytes() == bytes(100)
        assert asked(server.controls) == {"get": 1}
