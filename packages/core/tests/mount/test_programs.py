"""Programs on a mount of a local directory, by the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusekit.control.client import ask
from fusekit.control.registry import endpoints, runtime_directory
from fusekit.testing.cli_mount import cli_mount
from fusekit.testing.programs import Mounted, Place, ProgramSuite, held

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    directory = tmp_path_factory.mktemp("local")
    behind = directory / "behind"
    behind.mkdir()

    def look(path: str) -> dict[str, bytes | str | None]:
        return held(behind / path)

    with cli_mount(f"local:{behind}", directory) as there:
        yield Mounted(there, look)


class TestLocal(ProgramSuite):
    def test_sqlite_keeps_a_database(self, place: Place) -> None:
        said = place.python(
            """
            import sqlite3
            for journal in ('delete', 'truncate', 'persist'):
                with sqlite3.connect('a.db') as base:
                    base.execute(f'pragma journal_mode={journal}')
                    base.execute('create table if not exists t (n integer primary key, text)')
                    base.executemany('insert into t (text) values (?)', [(str(n),) for n in range(500)])
                base.close()
            base = sqlite3.connect('a.db')
            print(base.execute('select count(*) from t').fetchone()[0], base.execute('pragma integrity_check').fetchone()[0])
            """
        )
        assert said == "1500 ok\n"
        assert place.agree()["a.db"] is not None

    def test_a_socket_and_a_fifo_join_processes(self, place: Place) -> None:
        assert place.sh("mkfifo pipe; (echo through > pipe) & cat pipe; wait; rm pipe") == "through\n"
        place.check({})


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    directory = tmp_path_factory.mktemp("later")
    behind = directory / "behind"
    behind.mkdir()
    with cli_mount(f"local:{behind}", directory, "--write", "async") as there:

        def look(path: str) -> dict[str, bytes | str | None]:
            (one,) = endpoints(runtime_directory(there.environment), there.path)
            told = ask(one, "flush", timeout_s=60, below="/", wait=True)
            assert told is not None, "the mount runs"
            assert told["left"] == []
            return held(behind / path)

        yield Mounted(there, look)


class TestLater(ProgramSuite):
    """The same where a close waits for this disk alone, and the service is looked at when what waits was flushed."""

    @pytest.fixture
    def mount(self, later: Mounted) -> Mounted:
        return later


def test_the_mount_is_gone_at_the_end_and_its_process_too(tmp_path: Path) -> None:
    behind = tmp_path / "behind"
    behind.mkdir()
    with cli_mount(f"local:{behind}", tmp_path) as there:
        (there.path / "f").write_bytes(b"x")
        assert there.alive
    assert not there.alive
    assert list(there.path.iterdir()) == []
    assert (behind / "f").read_bytes() == b"x"


def test_a_failing_test_leaves_nothing_mounted(tmp_path: Path) -> None:
    (tmp_path / "behind").mkdir()
    with (
        pytest.raises(ZeroDivisionError),
        cli_mount(f"local:{tmp_path}/behind", tmp_path) as there,
        open(there.path / "still open", "wb"),
    ):
        raise ZeroDivisionError
    assert not there.alive
    assert list(there.path.iterdir()) == []
