"""What programs see when the workspace, or something on the way to it, answers wrongly; and that nothing wrong is kept.

Names and attributes are believed for an hour here: what had been taken for true once would still be shown at the end.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from fusekit.errors import MountError
from fusekit.testing.cli_mount import CliMount, cli_mount
from fusekit.testing.replies import Reply
from fusekit.testing.running import RunningEmulator
from fusekit_databricks.emulator import DatabricksEmulator, files_api
from fusekit_databricks.emulator.files_api import FilesApi
from fusekit_databricks.emulator.tree import Node

pytestmark = pytest.mark.fuse

OK: Final = "ok"
FAULTS: Final[Mapping[str, dict[str, Any]]] = {
    "throttled": {"what": "status", "status": 429},
    "throttled-with-a-time": {"what": "status", "status": 429, "retry_after": "1"},
    "broken": {"what": "status", "status": 500},
    "unavailable": {"what": "status", "status": 503},
    "unauthenticated": {"what": "status", "status": 401},
    "forbidden": {"what": "status", "status": 403},
    "invalid": {"what": "status", "status": 400},
    "page-200": {"what": "html", "status": 200},
    "page-403": {"what": "html", "status": 403},
    "page-404": {"what": "html", "status": 404},
    "page-500": {"what": "html", "status": 500},
    "not-json": {"what": "not-json"},
    "garbage": {"what": "garbage"},
    "reset": {"what": "reset"},
    "reset-within": {"what": "reset", "at_byte": 20},
    "truncated": {"what": "truncated"},
    "short": {"what": "short"},
    "overlong": {"what": "overlong"},
    "extra": {"what": "extra"},
}
REFUSED: Final = {
    "unauthenticated": errno.EACCES,
    "forbidden": errno.EACCES,
    "invalid": errno.EINVAL,
    "page-403": errno.EACCES,
}
"""Not asked again: the same answer would come."""


@attrs.frozen
class Broken:
    """A mount of ``/Shared`` and the emulator behind it, in which things break."""

    there: CliMount
    running: RunningEmulator

    def arm(self, what: str, route: str, folder: str = "", count: int | None = 1) -> None:
        """Let requests of a route fail, of one folder or all."""
        self.running.controls.fault(**FAULTS[what], route=route, contains=folder, count=count)

    def repair(self) -> None:
        """Let everything be answered again, also what is held."""
        self.running.controls.clear_faults()
        self.running.controls.release()

    def folder(self, what: str) -> Path:
        return self.there.path / name(what)

    def behind(self, path: str) -> bytes | None:
        """Return the content of a file at the service."""
        found = self.running.controls.state()["objects"].get(f"/Shared/{path}")
        return None if found is None else base64.b64decode(found["content"])


def name(what: str) -> str:
    """Return the folder of one fault: no such name is part of another."""
    return f"<{what}>"


def text(what: str) -> str:
    return f"the content for {what}\n" * 500


@contextmanager
def broken(directory: Path, faults: Iterable[str], *options: str) -> Iterator[Broken]:
    """Mount a workspace with a folder for each fault, which holds the file ``f``; the top is listed, they are not."""
    with DatabricksEmulator.start() as running:
        running.controls.merge_state({"objects": {f"/Shared/{name(what)}/f": {"text": text(what)} for what in faults}})
        settings = running.environment()
        with cli_mount("databricks:/Shared", directory, "--ttl", "1h", *options, environment=settings) as there:
            os.listdir(there.path)
            running.controls.reset()
            yield Broken(there, running)
            assert there.unforeseen() == []


def outcome(act: Callable[[], object]) -> object:
    """Return OK where ``act`` returns True, otherwise what it returned or the number of the error."""
    try:
        done = act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return OK if done is True else done


def together(acts: Mapping[str, Callable[[], object]]) -> dict[str, object]:
    """Do all at the same time, because many wait for their next attempt, and return the outcome of each."""
    found: dict[str, object] = {}

    def note(what: str, act: Callable[[], object]) -> None:
        found[what] = outcome(act)

    threads = [threading.Thread(target=note, args=one) for one in acts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def expected(faults: Iterable[str], others: Mapping[str, int]) -> dict[str, object]:
    """Return the outcome of each fault: the error in ``others``, or OK."""
    return {what: errno.errorcode[others[what]] if what in others else OK for what in faults}


def lists(folder: Path) -> bool:
    return os.listdir(folder) == ["f"]


def reads(folder: Path, what: str) -> bool:
    # By the calls themselves: what Python makes of an error must not hide it.
    fd = os.open(folder / "f", os.O_RDONLY)
    got = b""
    try:
        while data := os.read(fd, 1 << 20):
            got += data
    finally:
        os.close(fd)
        assert text(what).encode().startswith(got), "bytes that came before an error are right as well"
    return got == text(what).encode()


def all_is_well(mount: Broken, faults: Iterable[str]) -> None:
    """See that every folder and file is shown and read as it is."""
    mount.repair()
    for what in faults:
        assert os.listdir(mount.folder(what)) == ["f"]
        assert (mount.folder(what) / "f").stat().st_size == len(text(what))
        assert (mount.folder(what) / "f").read_text() == text(what)


# ---- listings and attributes ---------------------------------------------------------------------------------------


def test_a_listing_that_fails_once_is_asked_again(tmp_path: Path) -> None:
    with broken(tmp_path, FAULTS) as mount:
        for what in FAULTS:
            mount.arm(what, "list-files", name(what))
        found = together({what: partial(lists, mount.folder(what)) for what in FAULTS})
        assert found == expected(FAULTS, REFUSED)
        all_is_well(mount, FAULTS)


def test_a_listing_that_keeps_failing_is_an_error(tmp_path: Path) -> None:
    faults = [what for what in FAULTS if what not in {"throttled-with-a-time", "reset-within"}]
    failing = dict.fromkeys(faults, errno.EIO) | REFUSED | {"throttled": errno.EBUSY}
    del failing["extra"]  # bytes after the announced end belong to nobody
    with broken(tmp_path, faults) as mount:
        for what in faults:
            mount.arm(what, "list-files", name(what), count=None)
        found = together({what: partial(lists, mount.folder(what)) for what in faults})
        assert found == expected(faults, failing)
        all_is_well(mount, faults)


def test_a_folder_that_is_gone_is_no_empty_folder(tmp_path: Path) -> None:
    with broken(tmp_path, ["gone"]) as mount:
        mount.running.controls.replace_state({"objects": {"/Shared/other": {"text": "x"}}})
        assert outcome(lambda: lists(mount.folder("gone"))) in {"ESTALE", "ENOENT"}


def test_attributes_that_fail_once_are_asked_again(tmp_path: Path) -> None:
    with broken(tmp_path, FAULTS) as mount:
        for what in FAULTS:
            mount.arm(what, "object-info", f"{name(what)}/f")

        def stats(what: str) -> bool:
            return (mount.folder(what) / "f").stat().st_size == len(text(what))

        found = together({what: partial(stats, what) for what in FAULTS})
        assert found == expected(FAULTS, REFUSED)
        all_is_well(mount, FAULTS)


def test_an_error_is_not_taken_for_a_missing_name(tmp_path: Path) -> None:
    faults = ["page-404", "forbidden", "unauthenticated", "invalid"]
    with broken(tmp_path, faults) as mount:
        for what in faults:
            mount.arm(what, "object-info", f"{name(what)}/f", count=None)
        found = {what: outcome((mount.folder(what) / "f").stat) for what in faults}
        assert found == expected(faults, REFUSED | {"page-404": errno.EIO})
        all_is_well(mount, faults)


# ---- content -------------------------------------------------------------------------------------------------------


def test_a_read_that_fails_once_brings_the_right_bytes_all_the_same(tmp_path: Path) -> None:
    with broken(tmp_path, FAULTS) as mount:
        for what in FAULTS:
            os.listdir(mount.folder(what))
            mount.arm(what, "cloud-get")
            assert outcome(partial(reads, mount.folder(what), what)) == OK, what
            assert mount.running.controls.faults()[0].fired == 1, what
            mount.repair()
        all_is_well(mount, FAULTS)


def test_a_read_that_keeps_failing_is_an_error_and_no_bytes(tmp_path: Path) -> None:
    failing = {
        "throttled": errno.EBUSY,
        "truncated": errno.EIO,
        # A whole answer of another size is another file.
        "short": errno.ESTALE,
        "overlong": errno.ESTALE,
        "page-200": errno.ESTALE,
    }
    with broken(tmp_path, failing) as mount:
        for what in failing:
            os.listdir(mount.folder(what))
            mount.arm(what, "cloud-get", count=None)
            found = outcome(partial(reads, mount.folder(what), what))
            assert found == errno.errorcode[failing[what]], what
            mount.repair()
        all_is_well(mount, failing)


def test_ranges_that_are_not_what_was_asked_for_never_end_up_as_bytes(tmp_path: Path) -> None:
    data = os.urandom(5 << 20)
    at = 3 << 20
    ranged = {
        "wrong-range": {"what": "wrong-range"},
        "ignored-range": {"what": "ignored-range"},
        **{what: FAULTS[what] for what in ("truncated", "short", "overlong", "extra", "reset-within", "page-200")},
    }
    (tmp_path / "data").write_bytes(data)

    def is_at(fd: int, at: int) -> bool:
        return os.pread(fd, 1000, at) == data[at : at + 1000]

    with broken(tmp_path, ["d"]) as mount:
        controls, above = mount.running.controls, f"/Shared/{name('d')}"
        controls.merge_state({"objects": {f"{above}/{what}": {"file": str(tmp_path / "data")} for what in ranged}})
        for what, fault in ranged.items():
            controls.fault(**fault, route="cloud-get")
            with open(mount.folder("d") / what, "rb", buffering=0) as file:
                got = outcome(partial(is_at, file.fileno(), at))
                assert got in {OK, "EIO"}, what
                assert controls.faults()[0].fired == 1, what
                mount.repair()
                assert os.pread(file.fileno(), 1000, at) == data[at : at + 1000], what
            assert (mount.folder("d") / what).read_bytes() == data, what


def test_urls_that_have_expired_are_renewed(tmp_path: Path) -> None:
    with broken(tmp_path, ["first", "second"]) as mount:
        for what in ("first", "second"):
            os.listdir(mount.folder(what))
        mount.running.controls.expire("urls")
        assert reads(mount.folder("first"), "first")
        assert mount.running.controls.counters().requests("cloud-get", 403) == 1
        mount.running.controls.freeze()
        mount.running.controls.advance(3600)
        assert reads(mount.folder("second"), "second")


def test_without_cloud_storage_files_are_read_from_the_workspace(tmp_path: Path) -> None:
    with broken(tmp_path, ["forbidden"]) as mount:
        os.listdir(mount.folder("forbidden"))
        mount.arm("forbidden", "cloud-get", count=None)
        assert reads(mount.folder("forbidden"), "forbidden")
        assert mount.running.controls.counters().requests("export") == 1


def test_a_token_that_ends_and_is_given_back_ends_no_mount(tmp_path: Path) -> None:
    with broken(tmp_path, ["one", "two"]) as mount:
        controls = mount.running.controls
        assert lists(mount.folder("one"))
        token = mount.running.environment()["DATABRICKS_TOKEN"]
        controls.expire("tokens")
        assert outcome(lambda: lists(mount.folder("two"))) == "EACCES"
        assert outcome(lambda: (mount.folder("two") / "f").stat()) == "EACCES"
        assert outcome(lambda: os.mkdir(mount.folder("one") / "d")) == "EACCES"
        controls.merge_state({"users": {"me@example.com": {"tokens": [token]}}})
        all_is_well(mount, ["one", "two"])
        os.mkdir(mount.folder("one") / "d")


# ---- changes -------------------------------------------------------------------------------------------------------


def test_an_upload_that_fails_once_is_repeated(tmp_path: Path) -> None:
    faults = [what for what in FAULTS if what not in REFUSED]
    with broken(tmp_path, faults) as mount:
        for what in faults:
            os.listdir(mount.folder(what))
            mount.arm(what, "import-file", name(what))

        def writes(what: str) -> bool:
            fd = os.open(mount.folder(what) / "new", os.O_WRONLY | os.O_CREAT)
            os.write(fd, text(what).encode())
            os.close(fd)
            return True

        found = together({what: partial(writes, what) for what in faults})
        assert found == dict.fromkeys(faults, OK)
        mount.repair()
        for what in faults:
            assert mount.behind(f"{name(what)}/new") == text(what).encode()
            assert (mount.folder(what) / "new").read_text() == text(what)


def test_an_upload_whose_answer_was_lost_is_not_made_twice(tmp_path: Path) -> None:
    with broken(tmp_path, ["lost"]) as mount:
        os.listdir(mount.folder("lost"))
        mount.running.controls.fault("reset", "import-file", done=True)
        (mount.folder("lost") / "new").write_bytes(b"sent")
        assert mount.running.controls.counters().requests("import-file") == 1
        assert mount.behind(f"{name('lost')}/new") == b"sent"


def test_an_upload_that_is_refused_is_told_at_close_and_at_unmount(tmp_path: Path) -> None:
    with broken(tmp_path, REFUSED) as mount:
        for what, number in REFUSED.items():
            os.listdir(mount.folder(what))
            mount.arm(what, "import-file", name(what))
            with pytest.raises(OSError) as failed:
                (mount.folder(what) / "new").write_bytes(b"unsent")
            assert failed.value.errno == number, what
            assert mount.behind(f"{name(what)}/new") is None
            assert os.listdir(mount.folder(what)) == ["f"]
            mount.repair()
            (mount.folder(what) / "another").write_bytes(b"sent")
            assert mount.behind(f"{name(what)}/another") == b"sent"
        assert f"in the journal: {len(REFUSED)}" in mount.there.fusekit("status").stdout
        with pytest.raises(MountError, match=f"{len(REFUSED)} files were not sent"):
            mount.there.unmount()
        kept = [path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()]
        assert kept.count(b"unsent") == len(REFUSED)
        assert os.listdir(mount.there.path) == []


def test_a_name_that_the_workspace_does_not_take_is_told_before_a_byte_is_accepted(tmp_path: Path) -> None:
    with broken(tmp_path, ["d"]) as mount:
        os.listdir(mount.folder("d"))
        with pytest.raises(OSError) as failed:
            os.open(mount.folder("d") / "tab\there", os.O_WRONLY | os.O_CREAT)
        assert failed.value.errno == errno.EINVAL
        assert os.listdir(mount.folder("d")) == ["f"]
        mount.there.unmount()


@pytest.mark.parametrize("what", ["page-200", "reset", "unavailable"])
def test_changes_of_names_whose_answer_is_nonsense_are_looked_after(tmp_path: Path, what: str) -> None:
    with broken(tmp_path, ["d"]) as mount:
        folder = mount.folder("d")
        os.listdir(folder)
        for route, act in (
            ("mkdirs", lambda: os.mkdir(folder / "made")),
            ("rename", lambda: os.rename(folder / "f", folder / "g")),
            ("delete", lambda: os.unlink(folder / "f")),
        ):
            mount.arm(what, route)
            assert outcome(act) == "EIO", route
            assert mount.running.controls.faults()[0].fired == 1
            mount.repair()
            assert os.listdir(folder) == ["f"]
            assert (folder / "f").read_text() == text("d")
        for route, act in (
            ("mkdirs", lambda: os.mkdir(folder / "made")),
            ("rename", lambda: os.rename(folder / "f", folder / "g")),
            ("delete", lambda: os.unlink(folder / "g")),
        ):
            mount.running.controls.fault(**FAULTS[what], route=route, done=True)
            assert outcome(act) is None, f"{route} was done, only its answer was lost"
        assert os.listdir(folder) == ["made"]


# ---- silence -------------------------------------------------------------------------------------------------------


def test_silence_ends_in_a_time_out_and_not_in_a_hang(tmp_path: Path) -> None:
    deadlines = ("-o", "metadata_timeout=1s,idle_timeout=1s")
    with broken(tmp_path, ["list", "stat", "read", "write", "body"], *deadlines) as mount:
        controls = mount.running.controls
        for what in ("read", "write", "body"):
            # Each in a program of its own: one that opens several folders is taken for a walk, and has the others listed.
            subprocess.run(["ls", mount.folder(what)], check=True, stdout=subprocess.DEVNULL)
        for what, route in (("list", "list-files"), ("stat", "object-info"), ("write", "import-file")):
            controls.fault("stall", route, contains=name(what), count=None)
        controls.fault("stall", "cloud-get", count=1)
        controls.fault("stall", "cloud-get", count=1, at_byte=20)
        acts: dict[str, Callable[[], object]] = {
            "list": lambda: os.listdir(mount.folder("list")),
            "stat": lambda: (mount.folder("stat") / "f").stat(),
            "read": lambda: reads(mount.folder("read"), "read"),
            "body": lambda: reads(mount.folder("body"), "body"),
        }
        found = together(acts)
        assert found == {"list": "ETIMEDOUT", "stat": "ETIMEDOUT", "read": OK, "body": OK}
        all_is_well(mount, ["list", "stat", "read", "write", "body"])


# ---- names that cannot be ------------------------------------------------------------------------------------------

BAD_NAMES: Final = ("..", ".", "nul\0byte", "n" * 256, "lone \ud800 surrogate", "", "ü" * 128)


def foreign_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the emulator name ``bad-N`` as one of `BAD_NAMES`, and ``second`` as ``twice``."""
    original = FilesApi._described

    def described(self: FilesApi, node: Node) -> dict[str, Any]:
        found = original(self, node)
        above, _, last = node.path.rpartition("/")
        if last.startswith("bad-"):
            found["object_info"]["path"] = f"{above}/{BAD_NAMES[int(last[4:])]}"
        if last == "second":
            found["object_info"]["path"] = f"{above}/twice"
        return found

    def reply(value: object) -> Reply:
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())  # \\ud800 stays an escape

    monkeypatch.setattr(FilesApi, "_described", described)
    monkeypatch.setattr(files_api, "json_reply", reply)


def test_names_that_no_file_can_have_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign_names(monkeypatch)
    with broken(tmp_path, ["d"]) as mount:
        objects = {f"/Shared/{name('d')}/bad-{number}": {"text": "x"} for number in range(len(BAD_NAMES))}
        mount.running.controls.merge_state({"objects": objects})
        assert os.listdir(mount.folder("d")) == ["f"]
        all_is_well(mount, ["d"])
        info = json.loads(mount.there.fusekit("info", "--json", str(mount.there.path)).stdout)
        assert info["skipped_names"] == len(BAD_NAMES) - 1, "all but the empty one, which is the folder itself"


def test_a_name_that_is_listed_twice_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign_names(monkeypatch)
    with broken(tmp_path, ["d"]) as mount:
        objects = {f"/Shared/{name('d')}/{one}": {"text": one} for one in ("twice", "second")}
        mount.running.controls.merge_state({"objects": objects})
        assert sorted(os.listdir(mount.folder("d"))) == ["f", "twice"]
        assert (mount.folder("d") / "twice").read_text() in {"twice", "second"}


STRANGE: Final[Mapping[str, dict[str, object]]] = {
    "negative": {"size": -1},
    "many": {"size": "many"},
    "yesterday": {"modified_at": "yesterday"},
    "untyped": {"object_type": None},
    "listed": {"object_id": [1]},
    "pathless": {"path": 7},
    "relative": {"path": "f"},
}


def test_nonsense_about_one_object_spoils_no_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FilesApi._described

    def described(self: FilesApi, node: Node) -> dict[str, Any]:
        found = original(self, node)
        found["object_info"] |= STRANGE.get(node.path.rpartition("/")[2], {})
        return found

    monkeypatch.setattr(FilesApi, "_described", described)
    with broken(tmp_path, ["d"]) as mount:
        mount.running.controls.merge_state(
            {"objects": {f"/Shared/{name('d')}/{one}": {"text": one} for one in STRANGE}}
        )
        assert set(os.listdir(mount.folder("d"))) == {"f", *STRANGE} - {"pathless", "relative"}
        assert (mount.folder("d") / "f").read_text() == text("d")
        assert (mount.folder("d") / "negative").read_text() == "negative"
        assert (mount.folder("d") / "yesterday").read_text() == "yesterday"
