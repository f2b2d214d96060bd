"""Commands without a mount: their output, their one-line errors and their exit status."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import attrs
import pytest

from fusekit import __version__
from fusekit.cli import main, output
from fusekit.cli.copying import Local, copy
from fusekit.cli.output import name_text, reason, size_text, span_text
from fusekit.errors import ConfigError, NotSupported
from fusekit.testing.cli_mount import Done
from fusekit.testing.running import RunningEmulator

COMMANDS = ("mount", "unmount", "status", "info", "backends", "ls", "stat", "cat", "cp", "rm", "emulate")


@attrs.frozen
class Fusekit:
    """Runs commands in this process."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str | Path) -> Done:
        status = main.run([str(argument) for argument in arguments])
        captured = self.capsys.readouterr()
        return Done(status, captured.out, captured.err)


@pytest.fixture
def fusekit(shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Fusekit]:
    monkeypatch.setattr(output._Choices, "debug", False)
    before = signal.getsignal(signal.SIGTERM)
    yield Fusekit(capsys)
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A small tree to be reached as ``local:``."""
    folder = tmp_path / "files"
    (folder / "d" / "e").mkdir(parents=True)
    (folder / "a.txt").write_text("hello\n")
    (folder / "d" / "e" / "f").write_text("deep\n")
    (folder / "link").symlink_to("a.txt")
    return folder


def test_help_of_every_command_has_examples(fusekit: Fusekit) -> None:
    done = fusekit("--help")
    assert done.status == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.out
        shown = fusekit(command, "--help")
        assert shown.status == 0
        assert f"\n    fusekit {command}" in shown.out
        assert "--debug" in shown.out


def test_version(fusekit: Fusekit) -> None:
    assert fusekit("--version").out == f"fusekit {__version__}\n"


def test_help_and_errors_of_usage_import_nothing_heavy() -> None:
    code = (
        "import sys; from fusekit.cli.main import run; run(['mount', '--help']); run(['backend']);"
        "print([name for name in ('trio', 'httpx', 'pyfuse3', 'h11', 'sqlite3') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("[]\n")


@pytest.mark.parametrize(
    "arguments", [["nosuch"], ["ls"], ["ls", "--nosuch", "local:/"], ["cp", "x"], ["unmount", "--timeout", "x", "/"]]
)
def test_wrong_usage_ends_with_2(fusekit: Fusekit, arguments: list[str]) -> None:
    assert fusekit(*arguments).status == 2


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "fusekit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fusekit {__version__}\n"


def test_backends_lists_what_is_installed_and_why_something_cannot_be_used(fusekit: Fusekit) -> None:
    done = fusekit("backends", "--json")
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert rows["shop"]["kind"] == "backend"
    assert rows["shop"]["from"] == "shop 1.2"
    assert rows["shade"]["kind"] == "layer"
    assert rows["broken"]["kind"] == "unusable"
    assert "RuntimeError: no compass on board" in rows["broken"]["error"]
    assert "no compass on board" in fusekit("backends").out
    assert fusekit("backends", "nosuch").line.startswith("fusekit: no plugin is installed for 'nosuch'")


def test_backends_shows_options_with_variables_and_secrets_as_files(fusekit: Fusekit) -> None:
    shown = fusekit("backends", "--options", "shop").out
    assert "  port: a whole number, default 443\n      its port\n      environment: FUSEKIT_SHOP_PORT\n" in shown
    assert "  token_file: text\n      who asks\n      environment: FUSEKIT_SHOP_TOKEN SHOP_TOKEN\n" in shown
    (row,) = json.loads(fusekit("backends", "--json", "shop").out)
    assert [one["name"] for one in row["options"]] == ["host", "path", "port", "dry", "token"]


def test_info_shows_capabilities_and_origins_and_no_secret(fusekit: Fusekit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "hunter2")
    done = fusekit("info", "shop:/x", "-o", "port=81,ttl=7s")
    assert done.status == 0
    assert "can: list, read\n" in done.out
    assert "hunter2" not in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert ["shop", "port", "81", "flag"] in rows
    assert ["shop", "token", "set", "environment", "SHOP_TOKEN"] in rows
    assert ["fusekit", "ttl", "7s", "flag"] in rows
    facts = json.loads(fusekit("info", "--json", "shop:/x").out)
    assert {"fusekit_list", "fusekit_read"} <= set(facts["hooks"])
    assert facts["capabilities"]["ranges"] is True


def test_ls_lists_a_directory_or_a_file_plain_long_and_as_json(fusekit: Fusekit, files: Path) -> None:
    assert fusekit("ls", f"local:{files}").out == "a.txt\nd\nlink\n"
    assert fusekit("ls", f"local:{files}/a.txt").out == "a.txt\n"
    header, first, *_ = fusekit("ls", "-l", f"local:{files}").out.splitlines()
    assert header.split() == ["MODE", "UID", "GID", "SIZE", "MODIFIED", "NAME"]
    assert first.startswith("-rw-r--r--")
    assert first.endswith("a.txt")
    entries = json.loads(fusekit("ls", "--json", f"local:{files}").out)
    assert [(one["name"], one["kind"], one["size"]) for one in entries[::2]] == [
        ("a.txt", "file", 6),
        ("link", "symlink", 5),
    ]
    both = json.loads(fusekit("ls", "--json", f"local:{files}", f"local:{files}/d").out)
    assert [one["name"] for one in both[f"local:{files}/d"]] == ["e"]


def test_stat_and_cat_address_one_file(fusekit: Fusekit, files: Path) -> None:
    (found,) = json.loads(fusekit("stat", "--json", f"local:{files}/link").out)
    assert (found["kind"], found["target"]) == ("symlink", "a.txt")
    assert "    size: 6\n" in fusekit("stat", f"local:{files}/a.txt").out
    assert fusekit("cat", f"local:{files}/a.txt", f"local:{files}/d/e/f").out == "hello\ndeep\n"


def test_relative_paths_and_profiles_are_understood(
    fusekit: Fusekit, files: Path, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    assert fusekit("cat", "local:a.txt").out == "hello\n"
    (shop / "config" / "fusekit").mkdir()
    (shop / "config" / "fusekit" / "config.toml").write_text(f'[profiles.work]\nsource = "local:{files}"\n')
    assert fusekit("ls", "work").out == "a.txt\nd\nlink\n"
    assert fusekit("ls", "work:d/e").out == "f\n"
    assert fusekit("cat", "work:d/e/f").out == "deep\n"
    assert fusekit("cp", "a.txt", "work:d").status == 0
    assert (files / "d" / "a.txt").read_text() == "hello\n"
    assert "is a directory" in fusekit("rm", "-r", "work:").line


def test_one_failure_is_told_and_the_others_are_done(fusekit: Fusekit, files: Path) -> None:
    done = fusekit("cat", f"local:{files}/none", f"local:{files}/a.txt")
    assert (done.status, done.out) == (1, "hello\n")
    assert done.line == f"fusekit: local:{files}/none: No such file or directory"


def test_cp_goes_both_ways_and_between_sources(fusekit: Fusekit, files: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(os.urandom(3_000_001))
    assert fusekit("cp", tmp_path / "in", f"local:{files}/d/new").status == 0
    assert (files / "d" / "new").read_bytes() == (tmp_path / "in").read_bytes()
    assert fusekit("cp", f"local:{files}/d/new", tmp_path / "out").status == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert fusekit("cp", f"local:{files}/a.txt", f"local:{files}/d/e/f", f"local:{files}/d").status == 0
    assert (files / "d" / "f").read_text() == "deep\n"
    assert fusekit("cp", "shop:/a.txt", tmp_path / "from-shop").status == 0
    assert (tmp_path / "from-shop").read_bytes() == b"hello"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")], "no early names are left"


def test_half_a_file_never_appears_and_what_was_there_stays(fusekit: Fusekit, files: Path) -> None:
    for target in (f"local:{files}/d/", files / "d"):
        done = fusekit("cp", "shop:/cut", target)
        assert done.status == 1
        assert "the rest is not for you" in done.line
        assert os.listdir(files / "d") == ["e"]
    for target in (f"local:{files}/a.txt", files / "a.txt"):
        assert fusekit("cp", "shop:/cut", target).status == 1
        assert (files / "a.txt").read_text() == "hello\n"


def test_cp_r_copies_a_tree_and_says_what_it_leaves_out(fusekit: Fusekit, files: Path, tmp_path: Path) -> None:
    os.mkfifo(files / "pipe")
    done = fusekit("cp", "-r", f"local:{files}", tmp_path / "copy")
    assert done.status == 1
    assert "pipe is left out: it is a fifo" in done.line
    assert (tmp_path / "copy" / "d" / "e" / "f").read_text() == "deep\n"
    assert fusekit("cp", "-r", tmp_path / "copy", f"local:{files}").status == 0
    assert (files / "copy" / "d" / "e" / "f").read_text() == "deep\n"


def test_cp_keeps_times_modes_and_links_in_both_directions(fusekit: Fusekit, files: Path, tmp_path: Path) -> None:
    (files / "d" / "e" / "f").chmod(0o751)
    (files / "d" / "e").chmod(0o500)
    for name in ("d/e/f", "d/e", "d", "a.txt"):
        os.utime(files / name, ns=(3_000_000_007, 1_000_000_003 + len(name)))
    try:
        assert fusekit("cp", "-r", f"local:{files}", tmp_path / "out").status == 0
        assert fusekit("cp", "-r", tmp_path / "out", f"local:{tmp_path}/back").status == 0
        for copy in (tmp_path / "out", tmp_path / "back"):
            for name in ("d/e/f", "d/e", "d", "a.txt"):
                there, here = (copy / name).stat(), (files / name).stat()
                assert (there.st_mtime_ns, there.st_mode) == (here.st_mtime_ns, here.st_mode), name
            assert os.readlink(copy / "link") == "a.txt"
    finally:
        for folder in (files, tmp_path / "out", tmp_path / "back"):
            if (folder / "d" / "e").exists():
                (folder / "d" / "e").chmod(0o700)


def test_cp_makes_what_a_service_keeps_no_mode_of_like_any_new_file(
    fusekit: Fusekit, files: Path, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        assert fusekit("cp", "shop:/a.txt", tmp_path / "new").status == 0
        (files / "a.txt").chmod(0o640)
        assert fusekit("cp", "shop:/a.txt", files / "a.txt").status == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    assert stat.S_IMODE((files / "a.txt").stat().st_mode) == 0o640


def test_cp_puts_a_link_in_the_place_of_a_file_and_not_of_a_directory(fusekit: Fusekit, files: Path) -> None:
    (files / "there").mkdir()
    (files / "there" / "link").write_text("a file")
    for target in (files / "there", f"local:{files}/there"):
        for _ in range(2):
            assert fusekit("cp", f"local:{files}/link", target).status == 0
            assert os.readlink(files / "there" / "link") == "a.txt"
        (files / "there" / "link").unlink()
        (files / "there" / "link").mkdir()
        done = fusekit("cp", f"local:{files}/link", target)
        assert (done.status, "a symbolic link cannot take its place" in done.line) == (1, True)
        (files / "there" / "link").rmdir()
        (files / "there" / "link").write_text("a file")
    assert sorted(os.listdir(files / "there")) == ["link"], "no early names are left"


def test_cp_writes_through_a_link_that_is_named_and_through_no_other(fusekit: Fusekit, files: Path) -> None:
    (files / "d" / "victim").write_text("stays")
    (files / "d" / "a.txt").symlink_to("victim")
    assert fusekit("cp", f"local:{files}/a.txt", files / "d").status == 0
    assert (files / "d" / "victim").read_text() == "stays"
    assert (files / "d" / "a.txt").read_text() == "hello\n"
    (files / "named").symlink_to("d/victim")
    assert fusekit("cp", f"local:{files}/a.txt", files / "named").status == 0
    assert (files / "named").is_symlink()
    assert (files / "d" / "victim").read_text() == "hello\n"


async def test_a_link_is_left_out_where_the_target_takes_none(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Linkless(Local):
        async def symlink(self, path: str, target: str) -> None:
            raise NotSupported("no links here")

    target = Linkless(str(tmp_path / "copy"))
    assert not await copy(Local(str(files)), str(files), target, str(tmp_path / "copy"), recursive=True)
    assert sorted(os.listdir(tmp_path / "copy")) == ["a.txt", "d"]
    assert "link is left out: it is a symbolic link, and the target takes none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cp", "local:{files}/d", "{files}/x"], "is a directory; to copy it"),
        (["cp", "{files}/none", "local:{files}/x"], "{files}/none does not exist"),
        (["cp", "local:{files}/a.txt", "{files}/a.txt", "{files}/none"], "{files}/none is no directory; make it first"),
        (["cp", "{files}/a.txt", "local:{files}/none/"], "local:{files}/none/"),
        (["cp", "-r", "{files}/d", "local:{files}/a.txt"], "is no directory"),
        (["rm", "local:{files}/d"], "is a directory; to remove it"),
        (["rm", "local:/"], "the whole of the source"),
        (["cat", "local:{files}/d"], "local:{files}/d: "),
        (["ls", "local:{files}/none"], "local:{files}/none"),
        (["ls", "{files}"], "is no SOURCE"),
        (["ls", "broken:/x"], "no compass on board"),
        (["ls", "shop:/", "-o", "port=abc"], "option port of shop: 'abc' is no whole number (from -o)"),
        (["status", "{files}"], "is not mounted by fusekit"),
        (["unmount", "{files}"], "is not mounted"),
        (["unmount", "/proc"], "is a mount of proc, not of fusekit"),
        (["mount", "nosuch:/x", "{files}/d/e"], "no plugin is installed for 'nosuch'"),
        (["mount", "broken:/x", "{files}/d/e"], "no compass on board"),
        (["mount", "shop:", "{files}/none"], "run: mkdir -p"),
        (["mount", "shop:", "{files}"], "is not empty"),
        (["mount", "shop:", "{files}/a.txt"], "is no directory"),
        (["mount", "shop:", "{files}/d/e", "--read-only", "--write", "sync"], "contradict each other"),
        (["mount", "shop:", "{files}/d/e", "--log-level", "inof"], "'inof' is no log level; did you mean info?"),
        (["mount", "shop:", "{files}/d/e", "--umask", "8"], "'8' is no octal mode"),
        (["emulate", "local"], "has no emulator for 'local'"),
        (["emulate", "shop", "--port", "x"], "option port of emulator-shop: 'x' is no whole number (from -o)"),
        (["emulate", "shop", "-o", "prt=1"], "emulator-shop has no option 'prt'; did you mean port?"),
    ],
)
def test_bad_input_is_one_line_and_status_1(fusekit: Fusekit, files: Path, arguments: list[str], message: str) -> None:
    done = fusekit(*(argument.format(files=files) for argument in arguments))
    assert done.status == 1
    assert done.out == ""
    assert done.line.startswith("fusekit: ")
    assert message.format(files=files) in done.line


def test_debug_adds_the_traceback_before_or_after_the_command(fusekit: Fusekit) -> None:
    assert "Traceback" not in fusekit("ls", "shop:", "-o", "port=abc").err
    for arguments in (("--debug", "ls", "shop:", "-o", "port=abc"), ("ls", "--debug", "shop:", "-o", "port=abc")):
        output._Choices.debug = False
        done = fusekit(*arguments)
        assert "Traceback" in done.err
        assert done.err.rstrip().endswith("(from -o)")


def test_rm_removes_trees(fusekit: Fusekit, files: Path) -> None:
    assert fusekit("rm", f"local:{files}/a.txt", f"local:{files}/link").status == 0
    assert fusekit("rm", "-r", f"local:{files}/d").status == 0
    assert os.listdir(files) == []


def test_status_without_mounts(fusekit: Fusekit) -> None:
    done = fusekit("status")
    assert (done.status, done.err) == (0, "")


def test_a_reader_that_has_seen_enough_is_no_error(files: Path, shop: Path) -> None:
    (files / "big").write_bytes(bytes(5_000_000))
    command = f"{sys.executable} -m fusekit cat local:{files}/big | head -c 1 | wc -c"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("1", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_emulate_prints_what_to_export_and_runs_until_a_signal(fusekit: Fusekit, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "fusekit", "emulate", "shop"]
    emulator = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert emulator.stdout is not None
        name, _, url = emulator.stdout.readline().strip().partition("=")
        assert name == "export SHOP_HOST"
        assert emulator.stdout.readline() == """export SHOP_TOKEN='it'"'"'s made up'\n"""
        with pytest.raises(HTTPError) as answer:
            urlopen(f"{url}/nothing")
        assert answer.value.code == 404
        taken = fusekit("emulate", "shop", "--port", url.rpartition(":")[2])
        assert taken.status == 1
        assert taken.line == "fusekit: the emulator cannot listen: Address already in use; choose another --port"
        emulator.send_signal(number)
        emulator.communicate()
    finally:
        emulator.kill()
        emulator.communicate()
    assert emulator.returncode == 0


def test_emulate_gives_signal_handlers_back(fusekit: Fusekit, monkeypatch: pytest.MonkeyPatch) -> None:
    def environment(self: RunningEmulator) -> dict[str, str]:
        signal.raise_signal(signal.SIGTERM)
        return {}

    monkeypatch.setattr(RunningEmulator, "environment", environment)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    assert fusekit("emulate", "shop").status == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_command_on_a_source_gives_signal_handlers_back(fusekit: Fusekit, files: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    fusekit("ls", f"local:{files}")
    fusekit("ls", "local:/nosuch")
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_moves_no_terminal_and_stays_on_its_line(fusekit: Fusekit, files: Path) -> None:
    assert "\x1b" not in fusekit("cat", f"local:{files}/a\x1b[2J\nb").line


def test_reason_takes_what_was_raised_on_purpose_out_of_groups() -> None:
    inner = ExceptionGroup("x", [ValueError("y"), ConfigError("say\nthis")])
    assert reason(ExceptionGroup("z", [inner])) == "say this"
    assert reason(ValueError("y")) == "internal error: ValueError: y (--debug shows where)"
    assert reason(FileNotFoundError(2, "No such file", "a")) == "a: No such file"


def test_numbers_for_people() -> None:
    assert [size_text(number) for number in (0, 1023, 1536, 5 << 30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
    assert [span_text(number) for number in (0, 59, 7260, 90000)] == ["0s", "59s", "2h 1min", "1d 1h"]


def test_a_terminal_gets_no_control_characters_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_text("a\x1b[31m") == "a\x1b[31m"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert name_text("a\x1b[31mé") == "a?[31mé"
