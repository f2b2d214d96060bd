"""The control socket: who finds it, what it answers, and that no client can harm the mount."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from fusekit.control.client import NotAnswered, ask, live_mounts, wait_for_end
from fusekit.control.registry import Endpoint, connect, endpoint, endpoints, runtime_directory, short_path
from fusekit.control.socket import Control
from fusekit.errors import MountError

MOUNTPOINT = Path("/mnt/somewhere")


@attrs.define
class FakeMount:
    """What a mount process is to its control socket."""

    stopping: trio.Event = attrs.field(factory=trio.Event)
    reported: trio.Event = attrs.field(factory=trio.Event)
    asked: int = 0
    broken: bool = False

    async def status(self) -> dict[str, Any]:
        self.asked += 1
        self.reported.set()
        if self.broken:
            raise RuntimeError("no status today")
        return {"mountpoint": str(MOUNTPOINT), "asked": self.asked}

    async def info(self) -> dict[str, Any]:
        return {"options": []}

    def control(self) -> Control:
        return Control(self.status, self.info, self.stopping.set)


async def in_thread(call: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


async def test_status_and_info_are_answered_and_the_socket_is_private_and_removed(tmp_path: Path) -> None:
    mount = FakeMount()
    async with mount.control().listening(tmp_path, MOUNTPOINT):
        (one,) = endpoints(tmp_path, MOUNTPOINT)
        assert one.pid == os.getpid()
        assert stat.S_IMODE(one.path.stat().st_mode) == 0o600
        assert await in_thread(partial(ask, one, "status")) == {"mountpoint": str(MOUNTPOINT), "asked": 1}
        assert await in_thread(partial(ask, one, "info")) == {"options": []}
        assert endpoints(tmp_path, Path("/mnt/other")) == []
    assert os.listdir(tmp_path) == []


async def test_live_mounts_asks_each(tmp_path: Path) -> None:
    mount = FakeMount()
    async with mount.control().listening(tmp_path, MOUNTPOINT):
        (live,) = await in_thread(partial(live_mounts, tmp_path))
    assert live.status["asked"] == 1


async def test_unmount_stops_shows_progress_and_answers_with_what_is_left(tmp_path: Path) -> None:
    mount, seen = FakeMount(), list[dict[str, Any]]()
    told = trio.Event()
    control = mount.control()

    async def client(one: Endpoint) -> None:
        result = await in_thread(partial(ask, one, "unmount", progress=seen.append))
        assert result == {"left": 2}
        told.set()

    async with control.listening(tmp_path, MOUNTPOINT), trio.open_nursery() as nursery:
        nursery.start_soon(client, endpoint(tmp_path, MOUNTPOINT, os.getpid()))
        await mount.stopping.wait()
        await mount.reported.wait()
        await control.finish({"left": 2})
        await told.wait()
    assert seen[0] == {"mountpoint": str(MOUNTPOINT), "asked": 1}


@pytest.mark.parametrize(
    "line", [b"\n", b"not json\n", b"[]\n", b'{"do": "harm"}\n', b'{"do": 7}\n', b"x" * 70_000, b'{"do"', b""]
)
async def test_nonsense_gets_an_error_or_nothing_and_the_next_client_is_served(tmp_path: Path, line: bytes) -> None:
    mount = FakeMount()
    async with mount.control().listening(tmp_path, MOUNTPOINT):
        (one,) = endpoints(tmp_path)
        with short_path(tmp_path, one.name) as path:
            stream = await trio.open_unix_socket(path)
        async with stream:
            await stream.send_all(line)
            await stream.send_eof()
            answer = b""
            try:
                async for data in stream:
                    answer += data
            except trio.BrokenResourceError:
                pass  # reset: the rest of an over-long line was never read
        if answer:
            assert json.loads(answer)["ok"] is False
        assert await in_thread(partial(ask, one, "status")) is not None


async def test_an_exception_in_status_is_the_clients_error_alone(tmp_path: Path) -> None:
    mount = FakeMount(broken=True)
    async with mount.control().listening(tmp_path, MOUNTPOINT):
        (one,) = endpoints(tmp_path)
        with pytest.raises(MountError, match="RuntimeError: no status today"):
            await in_thread(partial(ask, one, "status"))
        mount.broken = False
        assert await in_thread(partial(ask, one, "status")) is not None


async def test_an_exception_in_the_mount_passes_and_removes_the_socket(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with FakeMount().control().listening(tmp_path, MOUNTPOINT):
            raise MountError("went wrong")
    assert caught.group_contains(MountError, match="went wrong")
    assert os.listdir(tmp_path) == []


async def test_a_directory_too_deep_for_a_socket_address_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    async with FakeMount().control().listening(deep, MOUNTPOINT):
        (one,) = endpoints(deep)
        assert await in_thread(partial(ask, one, "status")) is not None


def abandoned(directory: Path, pid: int) -> Endpoint:
    one = endpoint(directory, MOUNTPOINT, pid)
    with short_path(directory, one.name) as path, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
    return one


def test_a_socket_that_a_crash_left_is_removed(tmp_path: Path) -> None:
    one = abandoned(tmp_path, 4711)
    assert one.path.exists()
    assert live_mounts(tmp_path) == []
    assert not one.path.exists()
    assert connect(one) is None


def test_a_process_that_does_not_answer_in_time_is_said_so(tmp_path: Path) -> None:
    one = endpoint(tmp_path, MOUNTPOINT, os.getpid())
    with short_path(tmp_path, one.name) as path, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(NotAnswered, match=r"did not answer within 0\.01 s"):
            ask(one, "status", timeout_s=0.01)


def test_runtime_directory_is_private_and_refuses_a_foreign_one(tmp_path: Path) -> None:
    directory = runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert directory == tmp_path / "fusekit"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    directory.chmod(0o755)
    assert stat.S_IMODE(runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path)}).stat().st_mode) == 0o700
    directory.rmdir()
    (tmp_path / "elsewhere").mkdir()
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MountError, match="must be a directory of yours"):
        runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path)})


def test_without_a_runtime_directory_the_state_directory_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path / "none")}) == tmp_path / "state" / "fusekit" / "run"
    assert not (tmp_path / "none").exists()
    assert runtime_directory({}) == tmp_path / "state" / "fusekit" / "run"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody else")
def test_runtime_directory_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 12345, 12345)
    assert runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path / "run")}) == tmp_path / "state" / "fusekit" / "run"
    assert os.listdir(tmp_path / "run") == []


def test_waiting_for_a_process_tells_whether_it_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not wait_for_end(child.pid, 0)
    child.communicate(b"\n")
    assert wait_for_end(child.pid, 10)
