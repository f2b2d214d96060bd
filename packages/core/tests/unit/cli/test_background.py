"""The process that mounts, and the pipe back to who started it; the process is a stand-in that does as it is told."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fusekit.cli import background
from fusekit.cli.background import Ready, start
from fusekit.errors import ConfigError, MountError

STAND_IN = """#!{python}
import json, os, signal, sys
descriptor = int(sys.argv[sys.argv.index("--ready-fd") + 1])
facts = {{"argv": sys.argv[1:], "session": os.getsid(0) == os.getpid(), "stdin": os.readlink("/proc/self/fd/0")}}
open(os.environ["FACTS"], "w").write(json.dumps({{**facts, "pid": os.getpid()}}))
print("to the log", flush=True)
do = os.environ["DO"]
if do == "mounted":
    os.write(descriptor, b"mounted\\n")
elif do == "fail":
    os.write(descriptor, b'{{"reason": "the token is wrong", "trace": ""}}\\n')
    sys.exit(1)
elif do == "fail and hang":
    os.write(descriptor, b'{{"reason": "the token is wrong", "trace": ""}}\\n')
    signal.pause()
elif do == "die":
    os.kill(os.getpid(), signal.SIGSEGV)
elif do == "hang":
    signal.pause()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the stand-in the interpreter that is started; returns the file with what it saw."""
    program = tmp_path / "python"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("FACTS", str(tmp_path / "facts"))
    return tmp_path / "facts"


def seen(facts: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(facts.read_text())
    return found


def gone(pid: object) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_returns_once_mounted_with_the_options_handed_on(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DO", "mounted")
    log = tmp_path / "state" / "log" / "x.log"
    pid = start(["mount", "-o", "uid=7", "--", "memory:", "/mnt"], log)
    os.waitpid(pid, 0)
    facts = seen(stand_in)
    assert facts["session"] is True
    assert facts["stdin"] == "/dev/null"
    argv = facts["argv"]
    assert isinstance(argv, list)
    assert argv[:4] == ["-P", "-m", "fusekit", "mount"]
    assert argv[-5:] == ["-o", "uid=7", "--", "memory:", "/mnt"]
    assert log.read_text() == "to the log\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("do", ["fail", "fail and hang"])
def test_the_reason_arrives_and_nothing_runs_on(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: str
) -> None:
    monkeypatch.setenv("DO", do)
    with pytest.raises(MountError, match=r"^the token is wrong$"):
        start(["mount"], tmp_path / "log")
    assert gone(seen(stand_in)["pid"])


@pytest.mark.parametrize(("do", "how"), [("die", "by signal 11"), ("nothing", "with status 0")])
def test_a_process_that_dies_without_a_word_is_reported_with_its_log(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: str, how: str
) -> None:
    monkeypatch.setenv("DO", do)
    with pytest.raises(MountError, match=f"ended {how} before it had mounted; its log: {tmp_path / 'log'}"):
        start(["mount"], tmp_path / "log")


def test_ctrl_c_while_waiting_ends_the_process(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO", "hang")
    os.mkfifo(stand_in)  # read below: by then the process is there and hangs

    def interrupt() -> None:
        found.update(seen(stand_in))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    found: dict[str, object] = {}
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        start(["mount"], tmp_path / "log")
    thread.join()
    assert gone(found["pid"])


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match=r"cannot write the log .*; choose another with --log-file"):
        start(["mount"], tmp_path / "file" / "log")


def test_a_long_log_is_put_aside(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO", "fail")
    monkeypatch.setattr(background, "LOG_BYTES_MAX", 5)
    (tmp_path / "log").write_text("old and long")
    with pytest.raises(MountError):
        start(["mount"], tmp_path / "log")
    assert (tmp_path / "log").read_text() == "to the log\n"
    assert (tmp_path / "log.1").read_text() == "old and long"


def test_ready_says_it_once_and_does_not_hand_the_pipe_on() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    ready = Ready(writing)
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        ready.failed(ExceptionGroup("of trio", [ConfigError("wrong\nport")]))
        with open(reading, "rb") as pipe:
            assert json.loads(pipe.read()) == {"reason": "wrong port", "trace": ""}  # the end, though the holder lives
    finally:
        holder.communicate(b"\n")


def test_ready_does_not_mind_that_nobody_listens() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    Ready(writing).mounted()
    Ready(None).mounted()
