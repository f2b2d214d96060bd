"""The command line on real mounts, as a user has it: processes, exit statuses, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from fusekit.control.client import ask, wait_for_end
from fusekit.control.registry import endpoints
from fusekit.fuse.mounts import detach, is_dead, mount_points, mounted_at
from fusekit.testing.cli_mount import Done

pytestmark = pytest.mark.fuse

END_TIMEOUT_S = 60.0

# A service that is somewhere else: behind a port where nobody listens, or one that refuses us, or writes.
PLUGIN = """
from __future__ import annotations
import os
import threading
import attrs
import trio
from fusekit.api import Content, Denied, Entry, Mount, Page, Sink, hookimpl, option

@attrs.frozen
class Options:
    path: str = option(default="/")
    url: str = option(default="")
    token: str | None = option(default=None, secret=True, env=("FAR_TOKEN",))

class Far:
    scheme, options = "far", Options
    def __init__(self, options, mount):
        self.options = options
        self.http = mount.http(options.url) if options.url else None
    @hookimpl
    async def fusekit_root(self) -> Entry:
        if self.options.token != "right":
            raise Denied("the token is wrong or missing; set FAR_TOKEN")
        if self.http is not None:
            await self.http.request("GET", "/")
        return Entry.directory("")
    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        await page([Entry.file("a", size=5)])
    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        await sink.write(b"hello", at=0)
    @hookimpl
    async def fusekit_write(self, name: str, content: Content) -> Entry:
        if name == "stuck":
            await trio.sleep_forever()
        if os.path.exists(os.environ.get("FAR_DOOR", "")):
            return Entry.file(name, size=content.size)
        if name == "late":
            while any("fuse.fusekit far:/late " in line for line in open("/proc/self/mountinfo")):
                await trio.sleep(0.01)
        if name == "thread":
            await trio.to_thread.run_sync(threading.Event().wait)
        raise Denied("nobody may write here today")

@hookimpl
def fusekit_backends():
    return [Far]
"""


@attrs.define
class Cli:
    """Runs ``fusekit`` as processes with a home of their own; ``mnt`` is an empty directory, ``src`` one with a file."""

    home: Path
    environment: dict[str, str]

    @property
    def mnt(self) -> Path:
        return self.home / "mnt"

    @property
    def src(self) -> Path:
        return self.home / "src"

    def __call__(self, *arguments: str | Path, **environment: str) -> Done:
        done = subprocess.run(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**self.environment, **environment},
            cwd=self.home,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "fusekit", *(str(argument) for argument in arguments)]

    def fine(self, *arguments: str | Path, **environment: str) -> Done:
        done = self(*arguments, **environment)
        assert done.status == 0, done.err
        return done

    def status(self) -> dict[str, Any]:
        """Return the status of each mount below the home, by the path below it; others of the machine are not ours."""
        found = json.loads(self.fine("status", "--json").out)
        inside = [one for one in found if Path(one["mountpoint"]).is_relative_to(self.home)]
        return {str(Path(one["mountpoint"]).relative_to(self.home)): one for one in inside}

    def mounted(self) -> list[str]:
        """Return all that is mounted below the home."""
        return [str(point.path) for point in mount_points() if point.path.is_relative_to(self.home)]

    def processes(self) -> list[int]:
        return (
            [one.pid for one in endpoints(self.home / "run" / "fusekit")]
            if (self.home / "run/fusekit").exists()
            else []
        )


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    for name in ("mnt", "src", "run", "site/far-1.dist-info"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "src" / "a").write_text("hello\n")
    (tmp_path / "site" / "far_plugin.py").write_text(textwrap.dedent(PLUGIN))
    info = tmp_path / "site" / "far-1.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[fusekit]\nfar = far_plugin\nbroken = no_such_module\n")
    own = {"HOME": tmp_path, "XDG_RUNTIME_DIR": tmp_path / "run", "PYTHONPATH": tmp_path / "site"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "FUSEKIT_"))}
    made = Cli(tmp_path, {**kept, **{name: str(value) for name, value in own.items()}})
    try:
        yield made
    finally:
        pids = made.processes()
        for point in reversed(made.mounted()):
            detach(Path(point), lazy=True)
        for pid in pids:
            assert wait_for_end(pid, END_TIMEOUT_S), f"the mount process {pid} outlives its mount"
    assert not made.mounted()


def local(cli: Cli) -> str:
    return f"local:{cli.src}"


def test_mount_returns_when_the_directory_can_be_used_and_unmount_ends_the_process(cli: Cli) -> None:
    done = cli.fine("mount", local(cli), cli.mnt)
    assert done.out == ""
    assert done.line == f"local:{cli.src} is mounted on {cli.mnt}; to leave: fusekit unmount {cli.mnt}"
    assert (cli.mnt / "a").read_text() == "hello\n"
    (cli.mnt / "b").write_text("new\n")
    assert (cli.src / "b").read_text() == "new\n"
    (pid,) = cli.processes()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid
    cli.fine("unmount", cli.mnt)
    assert cli.mounted() == []
    assert wait_for_end(pid, 0)
    assert cli.processes() == []


def test_relative_directories_mean_those_of_the_caller(cli: Cli) -> None:
    cli.fine("mount", "local:src", "mnt")
    assert (cli.mnt / "a").read_text() == "hello\n"
    cli.fine("unmount", "mnt")
    assert cli.mounted() == []


def test_relative_directories_in_a_tree_mean_those_of_the_caller_as_well(cli: Cli) -> None:
    cli.fine("mount", "tree:here=local:src,there=memory:", "mnt")
    assert (cli.mnt / "here" / "a").read_text() == "hello\n"
    (pid,) = cli.processes()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_memory_keeps_what_is_written_as_long_as_it_is_mounted(cli: Cli) -> None:
    cli.fine("mount", "memory:", cli.mnt)
    (cli.mnt / "d").mkdir()
    (cli.mnt / "d" / "f").write_bytes(bytes(300_000))
    assert (cli.mnt / "d" / "f").stat().st_size == 300_000
    cli.fine("unmount", cli.mnt)
    cli.fine("mount", "memory:", cli.mnt)
    assert os.listdir(cli.mnt) == []


def test_status_and_info_tell_of_each_mount(cli: Cli) -> None:
    (cli.home / "two").mkdir()
    cli.fine("mount", local(cli), cli.mnt, "--ttl", "7s", "-o", "umask=077")
    cli.fine("mount", "memory:", cli.home / "two")
    found = cli.status()
    assert set(found) == {"mnt", "two"}
    assert (found["mnt"]["source"], found["mnt"]["state"], found["mnt"]["unsent"]) == (local(cli), "mounted", [])
    assert found["two"]["source"] == "memory:"
    assert json.loads(cli.fine("status", "--json", cli.mnt).out)["pid"] == found["mnt"]["pid"]
    text = cli.fine("status", cli.mnt).out
    assert f"{cli.mnt}  {local(cli)}  mounted" in text
    assert str(cli.home / "two") not in text
    options = {one["name"]: one for one in json.loads(cli.fine("info", "--json", cli.mnt).out)["options"]}
    assert (options["ttl"]["value"], options["ttl"]["origin"]) == ("7s", "flag")
    assert options["umask"]["value"] == "077"
    assert options["path"]["origin"] == "SOURCE"


def test_options_of_mount_take_effect(cli: Cli) -> None:
    cli.fine("mount", local(cli), cli.mnt, "-o", "ro,noatime", "--layer", "read-only")
    with pytest.raises(OSError, match="Read-only file system"):
        (cli.mnt / "x").write_text("no")
    options = {one["name"]: one for one in json.loads(cli.fine("info", "--json", cli.mnt).out)["options"]}
    assert options["layers"]["value"] == "read-only"
    cli.fine("unmount", cli.mnt)
    cli.fine("mount", "far:", cli.mnt, "--uid", "1234", "--gid", "2345", "--file-mode", "600", FAR_TOKEN="right")
    found = (cli.mnt / "a").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 2345, 0o600)


def test_nonempty_hides_what_is_there(cli: Cli) -> None:
    (cli.mnt / "below").touch()
    assert cli("mount", "memory:", cli.mnt).status == 1
    cli.fine("mount", "memory:", cli.mnt, "-o", "nonempty")
    assert os.listdir(cli.mnt) == []


def test_commands_work_beside_a_mount_of_the_same_source(cli: Cli) -> None:
    cli.fine("mount", local(cli), cli.mnt)
    assert cli.fine("cat", f"{local(cli)}/a").out == "hello\n"
    cli.fine("cp", cli.src / "a", f"{local(cli)}/c")
    assert (cli.src / "c").read_text() == "hello\n"


def test_secrets_reach_the_process_by_environment_and_are_nowhere_to_be_seen(cli: Cli) -> None:
    cli.fine("mount", "far:", cli.mnt, FAR_TOKEN="right")
    (pid,) = cli.processes()
    assert b"right" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert "right" not in cli.fine("info", "--json", cli.mnt).out
    (log,) = (cli.home / ".local/state/fusekit/log").iterdir()
    assert "right" not in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_foreground_stays_until_a_signal_and_unmounts(cli: Cli, number: signal.Signals) -> None:
    process = subprocess.Popen(
        cli.command("mount", "--foreground", "--log-level", "info", "memory:", cli.mnt),
        env=cli.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_mounted(cli)
        (cli.mnt / "f").write_text("x")
        process.send_signal(number)
        out, _ = process.communicate(timeout=END_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (0, b"")
    assert cli.mounted() == []


def test_a_release_for_which_nobody_waits_any_more_is_no_reason_to_complain(cli: Cli) -> None:
    cli.fine("mount", "far:/late", cli.mnt, FAR_TOKEN="right")
    (pid,) = cli.processes()
    (cli.mnt / "late").touch()
    subprocess.run(["umount", cli.mnt], check=True)
    assert wait_for_end(pid, END_TIMEOUT_S)
    (log,) = (cli.home / ".local/state/fusekit/log").iterdir()
    assert "/late: not sent" in log.read_text(), "it was released"
    assert "fuse_release" not in log.read_text()


def wait_until_mounted(cli: Cli) -> None:
    """Wait until the kernel shows the mount: its table can be polled for changes."""
    with open("/proc/self/mountinfo") as table:
        poll = select.poll()
        poll.register(table, select.POLLERR | select.POLLPRI)
        while mounted_at(cli.mnt) is None:
            assert poll.poll(END_TIMEOUT_S * 1000), "nothing was mounted"


def test_plain_umount_ends_the_process(cli: Cli) -> None:
    cli.fine("mount", local(cli), cli.mnt)
    (pid,) = cli.processes()
    (cli.mnt / "b").write_text("last words")
    subprocess.run(["umount", cli.mnt], check=True)
    assert wait_for_end(pid, END_TIMEOUT_S)
    assert (cli.src / "b").read_text() == "last words"
    assert cli.processes() == []


def test_of_two_that_mount_on_one_directory_at_once_one_is_refused(cli: Cli) -> None:
    both = [
        subprocess.Popen(cli.command("mount", source, cli.mnt), env=cli.environment, stderr=subprocess.PIPE, text=True)
        for source in (local(cli), "memory:")
    ]
    said = [process.communicate(timeout=END_TIMEOUT_S)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], said
    assert any("is already mounted" in text for text in said)
    assert cli.mounted() == [str(cli.mnt)]


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_trouble(cli: Cli, closed: str) -> None:
    for words in (("mount", local(cli), cli.mnt), ("status", cli.mnt), ("unmount", cli.mnt)):
        command = f"{shlex.join(cli.command(*words))} {closed}"
        assert subprocess.run(["sh", "-c", command], env=cli.environment, check=False).returncode == 0
    assert cli.mounted() == []


def test_a_mount_point_with_a_long_name_of_long_letters_has_its_log(cli: Cli) -> None:
    target = cli.home / ("\N{SNOWMAN}" * 80)
    target.mkdir()
    cli.fine("mount", local(cli), target)
    (log,) = (cli.home / ".local/state/fusekit/log").iterdir()
    assert log.name.endswith("\N{SNOWMAN}.log")


def crashed(cli: Cli, *arguments: str) -> None:
    """Mount, kill the process, and wait until the kernel knows."""
    cli.fine("mount", local(cli), cli.mnt, *arguments)
    assert (cli.mnt / "a").read_text() == "hello\n"
    (pid,) = cli.processes()
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid, END_TIMEOUT_S)
    assert is_dead(cli.mnt)


@pytest.mark.parametrize("arguments", [(), ("--consistency", "snapshot")])
def test_a_dead_mount_point_is_shown_and_cleared_by_the_next_mount(cli: Cli, arguments: tuple[str, ...]) -> None:
    crashed(cli, *arguments)
    assert {name: status["state"] for name, status in cli.status().items()} == {"mnt": "dead"}
    assert cli.processes() == [], "the socket of the dead process is removed"
    done = cli.fine("mount", local(cli), cli.mnt)
    assert f"cleared the dead mount at {cli.mnt}" in done.err
    assert (cli.mnt / "a").read_text() == "hello\n"
    assert cli.mounted() == [str(cli.mnt)]


def test_unmount_clears_a_dead_mount_point(cli: Cli) -> None:
    crashed(cli)
    assert "was dead and is cleared" in cli.fine("unmount", cli.mnt).line
    assert cli.mounted() == []


def test_a_mount_in_use_is_not_taken_away_unless_abandoned(cli: Cli) -> None:
    cli.fine("mount", local(cli), cli.mnt)
    (pid,) = cli.processes()
    user = subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=cli.mnt)
    try:
        done = cli("unmount", cli.mnt)
        assert done.status == 1
        assert done.line == f"fusekit: {cli.mnt} is in use by cat ({user.pid}); close them, or add --abandon"
        assert (cli.mnt / "a").read_text() == "hello\n"
        cli.fine("unmount", "--abandon", cli.mnt)
        assert cli.mounted() == []
    finally:
        user.communicate()
    assert wait_for_end(pid, END_TIMEOUT_S)


def test_what_could_not_be_sent_is_listed_by_unmount_with_status_1(cli: Cli) -> None:
    cli.fine("mount", "far:", cli.mnt, FAR_TOKEN="right")
    with pytest.raises(OSError, match="Permission denied"):
        (cli.mnt / "new").write_text("x")
    done = cli("unmount", cli.mnt)
    assert done.status == 1
    assert "fusekit: not sent: new" in done.err.replace("/new", "new")
    assert "nobody may write here today" in done.err
    assert "1 file was not sent; it is kept in the journal" in done.err
    (where,) = re.findall(r"not sent: /new .*; its 1 B are in (.*)", done.err)
    assert Path(where).read_text() == "x"
    assert cli.mounted() == []


def test_status_says_what_failed_and_where_it_is_until_it_is_stored(cli: Cli) -> None:
    door = cli.home / "door"
    cli.fine("mount", "far:", cli.mnt, FAR_TOKEN="right", FAR_DOOR=str(door))
    with pytest.raises(OSError, match="Permission denied"):
        (cli.mnt / "new").write_text("precious")
    said = cli.fine("status").out
    assert "failed: /new: nobody may write here today" in said
    (where,) = re.findall(r"its 8 B are kept in (.*)", said)
    assert Path(where).read_text() == "precious"
    door.touch()
    (cli.mnt / "new").write_text("precious")
    assert "failed: /new" not in cli.fine("status").out
    assert not Path(where).exists()
    cli.fine("unmount", cli.mnt)


def _calls(cli: Cli, hook: str) -> int:
    """Return how often the one mount called a hook."""
    (one,) = endpoints(cli.home / "run" / "fusekit")
    status = ask(one, "status")
    assert status is not None
    calls: dict[str, int] = status["calls"]
    return sum(number for name, number in calls.items() if name.endswith(hook))


def test_unmount_with_a_timeout_lists_what_is_still_being_sent(cli: Cli) -> None:
    cli.fine("mount", "far:", cli.mnt, "-o", "drain_timeout=60s", FAR_TOKEN="right")
    (pid,) = cli.processes()
    writer = subprocess.Popen(["sh", "-c", f"echo x > {cli.mnt}/stuck"], stderr=subprocess.DEVNULL)
    try:
        while not _calls(cli, "write"):
            assert writer.poll() is None
        done = cli("unmount", "--timeout", "100ms", cli.mnt)
    finally:
        os.kill(pid, signal.SIGKILL)  # it would wait for what never comes until a deadline
        writer.wait()
    assert done.status == 1
    assert done.err.splitlines() == [
        "fusekit: not sent: /stuck",
        f"fusekit: {cli.mnt}: not everything was sent in time; the rest stays in the journal",
    ]
    assert cli.mounted() == []


def kept(cli: Cli) -> list[str]:
    """Return the paths of what the journals below the home keep."""
    found = []
    for journal in cli.home.glob(".local/state/fusekit/*/journal.db"):
        with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as connection:
            found += [path for (path,) in connection.execute("SELECT path FROM generations")]
    return found


@contextlib.contextmanager
def writing(cli: Cli, name: str) -> Iterator[None]:
    """Let a program write a file, and wait until the backend has it."""
    writer = subprocess.Popen(["sh", "-c", f"echo x > {cli.mnt}/{name}"], stderr=subprocess.DEVNULL)
    try:
        while not _calls(cli, "write"):
            assert writer.poll() is None
        yield
    finally:
        writer.wait(END_TIMEOUT_S)


@pytest.mark.parametrize("name", ["stuck", "thread"])
def test_a_hook_that_never_returns_holds_unmount_up_no_longer_than_the_drain_timeout(cli: Cli, name: str) -> None:
    cli.fine("mount", "far:", cli.mnt, "-o", "drain_timeout=300ms", FAR_TOKEN="right")
    (pid,) = cli.processes()
    with writing(cli, name):
        done = cli("unmount", cli.mnt)
    assert done.status == 1
    assert f"fusekit: not sent: /{name}" in done.err
    assert "in the journal" in done.err
    assert wait_for_end(pid, END_TIMEOUT_S)
    assert cli.mounted() == []
    assert kept(cli) == [f"/{name}"]


@pytest.mark.parametrize("name", ["stuck", "thread"])
def test_a_signal_ends_a_mount_whose_hook_never_returns_with_status_1(cli: Cli, name: str) -> None:
    command = cli.command("mount", "--foreground", "far:", cli.mnt, "-o", "drain_timeout=300ms")
    process = subprocess.Popen(
        command, env={**cli.environment, "FAR_TOKEN": "right"}, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until_mounted(cli)
        with writing(cli, name):
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=END_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1, said
    assert "was not sent; it is kept" in said or "the journal keeps what was not sent" in said
    assert cli.mounted() == []
    assert kept(cli) == [f"/{name}"]


def test_after_a_plain_umount_as_well_nothing_waits_for_a_hook_that_never_returns(cli: Cli) -> None:
    cli.fine("mount", "far:", cli.mnt, "-o", "drain_timeout=300ms", FAR_TOKEN="right")
    (pid,) = cli.processes()
    (cli.mnt / "stuck").touch()  # sent when it is released, which nobody waits for
    while not _calls(cli, "write"):
        pass
    subprocess.run(["umount", cli.mnt], check=True)
    assert wait_for_end(pid, END_TIMEOUT_S)
    assert kept(cli) == ["/stuck"]


def test_unmount_says_so_if_the_process_dies_before_all_is_sent(cli: Cli) -> None:
    cli.fine("mount", "far:", cli.mnt, FAR_TOKEN="right")
    (pid,) = cli.processes()
    with writing(cli, "stuck"):
        leaving = subprocess.Popen(
            cli.command("unmount", cli.mnt), env=cli.environment, stderr=subprocess.PIPE, text=True
        )
        log = next(cli.home.glob(".local/state/fusekit/log/*.log"))
        while "asked to unmount" not in log.read_text() and leaving.poll() is None:
            pass
        os.kill(pid, signal.SIGKILL)
        _, said = leaving.communicate(timeout=END_TIMEOUT_S)
    assert leaving.returncode == 1
    assert "fusekit: not sent: /stuck" in said
    assert "ended before it said that all was sent" in said
    assert cli.mounted() == []


def test_names_from_elsewhere_move_no_terminal_and_stay_on_their_line(cli: Cli) -> None:
    cli.fine("mount", "far:", cli.mnt, FAR_TOKEN="right")
    with pytest.raises(OSError, match="Permission denied"):
        (cli.mnt / "a\n\x1b[2Jb").write_text("x")
    for done in (cli("status", cli.mnt), cli("unmount", cli.mnt)):
        assert "\x1b" not in done.out + done.err
        assert any("a??[2Jb" in line for line in (done.out + done.err).splitlines())


def refusing_port() -> int:
    """Return a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["memory:", "{home}/none"], {}, "the mount point {home}/none does not exist; run: mkdir -p {home}/none"),
        (["memory:", "{home}/src/a"], {}, "the mount point {home}/src/a is no directory"),
        (["memory:", "{home}/src"], {}, "the mount point {home}/src is not empty"),
        (["nosuch:/x", "{home}/mnt"], {}, "no plugin is installed for 'nosuch'"),
        (["broken:/x", "{home}/mnt"], {}, "ModuleNotFoundError: No module named 'no_such_module'"),
        (["memory:", "{home}/mnt", "-o", "uid=me"], {}, "option uid: 'me' is no whole number (from the command line)"),
        (["local:{home}/none", "{home}/mnt"], {}, "{home}/none is not a directory"),
        (["memory:", "{home}/mnt", "--cache-dir", "{home}/mnt/c"], {}, "the cache directory {home}/mnt/c is inside"),
        (["memory:", "{home}/mnt", "--state-dir", "{home}/mnt"], {}, "the state directory {home}/mnt is inside"),
        (["memory:", "{home}/mnt", "--state-dir", "{home}/src/a"], {}, "{home}/src/a"),
        (["far:", "{home}/mnt"], {}, "the token is wrong or missing; set FAR_TOKEN"),
        (["far:", "{home}/mnt"], {"FAR_TOKEN": "wrong"}, "the token is wrong or missing; set FAR_TOKEN"),
        (["far:", "{home}/mnt", "-o", "token=right"], {}, "option token of far is a secret"),
        (["far:", "{home}/mnt", "-o", "url=http://127.0.0.1:{port}"], {"FAR_TOKEN": "right"}, "127.0.0.1"),
        (["far:", "{home}/mnt", "-o", "url=http://nosuch.invalid"], {"FAR_TOKEN": "right"}, "nosuch.invalid"),
        (["memory:", "{home}/mnt", "--layer", "nosuch"], {}, "nosuch"),
        (["memory:", "{home}/mnt", "--log-file", "/proc/none/log"], {}, "cannot write the log /proc/none/log"),
    ],
)
def test_bad_input_is_one_line_and_status_1_with_nothing_mounted(
    cli: Cli, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    words = {"home": str(cli.home), "port": refusing_port()}
    done = cli("mount", *(argument.format(**words) for argument in arguments), **environment)
    assert done.status == 1
    assert done.line.startswith("fusekit: ")
    assert message.format(**words) in done.line
    assert cli.mounted() == []
    assert cli.processes() == []
    logs = cli.home.glob(".local/state/fusekit/log/*.log")
    assert not [line for log in logs for line in log.read_text().splitlines() if "attempt" in line], "tried again"


def test_mounted_twice_is_refused_and_the_first_one_lives_on(cli: Cli) -> None:
    (cli.home / "two").mkdir()
    cli.fine("mount", local(cli), cli.mnt)
    again = cli("mount", "memory:", cli.mnt)
    assert again.status == 1
    assert f"{cli.mnt} is already mounted ({local(cli)}); leave it with: fusekit unmount" in again.line
    beside = cli("mount", local(cli), cli.home / "two")
    assert beside.status == 1
    assert "another process" in beside.line or "in use" in beside.line or "already" in beside.line
    assert cli.mounted() == [str(cli.mnt)]
    assert (cli.mnt / "a").read_text() == "hello\n"


def test_debug_shows_the_traceback_of_the_background_process(cli: Cli) -> None:
    done = cli("mount", "--debug", "far:", cli.mnt)
    assert done.status == 1
    assert "fusekit_root" in done.err
    assert done.err.rstrip().endswith("the token is wrong or missing; set FAR_TOKEN")
