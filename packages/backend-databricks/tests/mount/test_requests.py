"""How many requests programs cost on a mount of an emulated workspace, counted by the emulator.

Names and attributes are believed for an hour here, so that nothing depends on how long the programs take.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest

from fusekit.testing.cli_mount import CliMount, cli_mount
from fusekit.testing.controls import Controls
from fusekit.testing.programs import needs
from fusekit_databricks.emulator import DatabricksEmulator

pytestmark = pytest.mark.fuse

FOLDERS: Final = 20
FILES: Final = 50
SMALL: Final = 20
OWN: Final = ("echo", "cat", "copy", "move", "remove", "edit", "repository", "again")
IDENTITY: Final = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.com",
}


@attrs.frozen
class Counted:
    """A mount of ``/Shared``, which holds the folder ``tree`` and the folders `OWN`; ``small`` are files beside it."""

    there: CliMount
    controls: Controls
    small: Path

    def cost(self, script: str, at_least: int = 0) -> dict[str, int]:
        """Run a script in the mount and return the requests by route that it took, ``at_least`` so many."""
        self.controls.reset()
        subprocess.run(
            ["sh", "-euc", script],
            cwd=self.there.path,
            env={**self.there.environment, **IDENTITY},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )
        if at_least:  # what is sent at release is sent when the program has ended already
            self.controls.wait_for_requests(at_least=at_least)
        return self.controls.counters().by_route()


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    directory = tmp_path_factory.mktemp("counted")
    small = directory / "small"
    small.mkdir()
    for number in range(SMALL):
        (small / f"s{number:02}").write_text(f"small {number}\n")
    with DatabricksEmulator.spawn() as running:
        objects = {
            f"/Shared/{name}/f{number:02}": {"text": f"{name} {number}\n"} for name in OWN for number in range(50)
        }
        for folder in range(FOLDERS):
            objects |= {f"/Shared/tree/d{folder:02}/f{number:02}": {"text": "x"} for number in range(FILES)}
        running.controls.merge_state({"objects": objects})
        with cli_mount("databricks:/Shared", directory, "--ttl", "1h", environment=running.environment()) as there:
            yield Counted(there, running.controls, small)


@pytest.fixture
def listed(counted: Counted) -> Callable[[str], Counted]:
    """List one of the folders and return the mount."""

    def ready(name: str) -> Counted:
        counted.cost(f"ls -l {name}")
        return counted

    return ready


def test_ls_lr_costs_one_listing_a_folder_and_then_nothing(counted: Counted) -> None:
    assert counted.cost("ls -d tree") in ({}, {"object-info": 1})  # the name itself, where nothing else has asked yet
    assert counted.cost("ls -lR tree") == {"list-files": 1 + FOLDERS}
    assert counted.cost("ls -lR tree") == {}
    assert counted.cost("find tree -type f -size +100k; du -s tree") == {}


def test_a_new_file_costs_one_upload_and_one_question(listed: Callable[[str], Counted]) -> None:
    counted = listed("echo")
    assert counted.cost("echo x > echo/new") == {"import-file": 1, "object-info": 1}
    assert counted.cost("ls -l echo; test -s echo/new") == {}
    assert counted.cost("cat echo/new") == {"object-info": 1}, "whether it changed; its bytes are here"


def test_an_existing_file_is_asked_for_before_it_is_replaced(listed: Callable[[str], Counted]) -> None:
    counted = listed("again")
    for script in ("echo y > again/f00", "echo z >> again/f00"):
        cost = counted.cost(script)
        assert cost["import-file"] == 1
        assert cost["object-info"] <= 3, "at open, just before the upload, after it"
        assert cost.keys() <= {"import-file", "object-info", "cloud-get"}


def test_cat_of_listed_files_costs_one_read_each(listed: Callable[[str], Counted]) -> None:
    counted = listed("cat")
    assert counted.cost("cat cat/*") == {"cloud-get": 50}
    again = counted.cost("cat cat/*")
    assert again.keys() <= {"object-info"}, "no byte is read twice"
    assert again.get("object-info", 0) <= 50, "whether it changed, once an open"


def test_cp_costs_two_requests_a_file(listed: Callable[[str], Counted]) -> None:
    counted = listed("copy")
    assert counted.cost(f"cp {counted.small}/* copy/") == {"import-file": SMALL, "object-info": SMALL}
    assert counted.cost("ls -l copy; du -s copy") == {}


@needs("rsync")
def test_a_second_rsync_costs_nothing(listed: Callable[[str], Counted]) -> None:
    counted = listed("copy")
    first = counted.cost(f"rsync -a {counted.small}/ copy/rsynced/")
    assert first["import-file"] == SMALL
    assert "list-files" not in first
    assert counted.cost(f"rsync -a {counted.small}/ copy/rsynced/") == {}


def test_moves_cost_the_move_and_what_it_must_know(listed: Callable[[str], Counted]) -> None:
    counted = listed("move")
    new = counted.cost("mv move/f00 move/moved")
    assert new == {"rename": 1, "object-info": 2}, "whether the name is free, and what is there afterwards"
    assert counted.cost("mv move/f01 move/f02") == {"rename": 1, "object-info": 1}
    folder = counted.cost("mv move away")
    assert folder == {"rename": 1, "object-info": 1}
    assert counted.cost("ls -lR away") == {}, "a folder brings its listing along"
    listing = "import os; print([os.listxattr(e) for e in os.scandir('away')])"
    assert counted.cost(f'{sys.executable} -c "{listing}"') == {}, "nobody is asked for what there is not"


def test_removing_costs_one_request_a_name(listed: Callable[[str], Counted]) -> None:
    counted = listed("remove")
    assert counted.cost("rm remove/f00") == {"delete": 1}
    assert counted.cost("rm -rf remove") == {"delete": 50}, "49 files and their folder"
    assert counted.cost("test ! -e remove; ls") in ({}, {"list-files": 1})


def test_making_a_folder_asks_for_it_and_the_one_above(listed: Callable[[str], Counted]) -> None:
    counted = listed("echo")
    assert counted.cost("mkdir echo/made") == {"mkdirs": 1, "object-info": 3}
    assert counted.cost("ls -la echo/made; test ! -e echo/made/x") == {}
    assert counted.cost("touch echo/made/x", at_least=2) == {"import-file": 1, "object-info": 1}


@needs("vim")
def test_a_save_by_vim_lists_nothing_and_sends_each_file_once(listed: Callable[[str], Counted]) -> None:
    counted = listed("edit")
    cost = counted.cost("vim -u NONE -i NONE -N -es -c 'edit edit/f00' -c 'call setline(1, 1)' -c wq")
    assert "list-files" not in cost
    assert cost["import-file"] <= 5
    assert sum(cost.values()) <= 20


@needs("git")
def test_git_status_reads_nothing_that_did_not_change(listed: Callable[[str], Counted]) -> None:
    counted = listed("repository")
    counted.cost(f"cd repository; git init -q .; cp {counted.small}/* .; git add .; git commit -qm first; git status")
    for _ in range(2):
        cost = counted.cost("cd repository; git status --porcelain")
        assert cost.keys() <= {"object-info", "import-file", "delete"}, "the index lock, and whether files changed"
        assert cost.get("import-file", 0) <= 1
        assert sum(cost.values()) <= 25
