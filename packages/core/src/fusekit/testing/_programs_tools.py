"""Editors, copiers, archivers and git on a mount: a part of the program suite.

Outside the layers; see `fusekit.testing.programs`.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import stat
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

from fusekit.testing._programs_base import PROGRAM_TIMEOUT_S, Held, Place, ProgramBase, held, needs

TREE: Final[Held] = {
    "readme.txt": b"read me\n",
    "empty": b"",
    "run.sh": b"#!/bin/sh\necho ran\n",
    "sub": None,
    "sub/data.bin": bytes(range(256)) * 300,
    "sub/deeper": None,
    "sub/deeper/leaf": b"leaf",
    "void": None,
}
_OLD_S: Final = 1_500_000_000


def plant(directory: Path) -> None:
    """Make `TREE` below ``directory``, with modes and old times."""
    for name, content in TREE.items():
        path = directory / name
        if content is None:
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            assert isinstance(content, bytes)
            path.write_bytes(content)
    (directory / "run.sh").chmod(0o750)
    for name in reversed(TREE):
        os.utime(directory / name, ns=(_OLD_S * 10**9, _OLD_S * 10**9))


def facts(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Return mode, size of files and mtime in seconds of all that is in ``directory``."""
    found = {}
    for name, content in TREE.items():
        status = (directory / name).stat()
        size = 0 if content is None else status.st_size
        found[name] = (stat.S_IMODE(status.st_mode), size, int(status.st_mtime))
    return found


class Tools(ProgramBase):
    """Programs that work on whole files and trees."""

    # ---- vim

    @needs("vim")
    @pytest.mark.parametrize("backupcopy", ["yes", "no", "auto"])
    def test_vim_saves_with_backup_and_swap_file(self, place: Place, backupcopy: str) -> None:
        (place.path / "notes.txt").write_bytes(b"first\nsecond\n")
        swapped = place.outside / "swap"
        self._vim(
            place,
            f"set backup writebackup swapfile directory=. backupdir=. backupskip= backupcopy={backupcopy}",
            "edit notes.txt",
            "%s/second/changed/",
            "preserve",
            f"call writefile([filereadable(swapname('%')), fnamemodify(swapname('%'), ':t')], '{swapped}')",
            "wq",
        )
        assert swapped.read_text().split() == ["1", ".notes.txt.swp"], "the swap file was in the mount"
        place.check({"notes.txt": b"first\nchanged\n", "notes.txt~": b"first\nsecond\n"})

    @needs("vim")
    def test_vim_by_keystrokes_makes_and_then_edits_a_file(self, place: Place) -> None:
        self._type(place, ["vim", "-u", "NONE", "-i", "NONE", "-N", "a.txt"], "ihello\x1b:wq\r")
        place.check({"a.txt": b"hello\n"})
        self._type(place, ["vim", "-u", "NONE", "-i", "NONE", "-N", "a.txt"], "oworld\x1b:w\rxx:w\rZZ")
        place.check({"a.txt": b"hello\nwor\n"})

    @needs("vim")
    def test_vim_with_its_defaults_saves_many_times(self, place: Place) -> None:
        self._vim(place, "edit log", *(f"call append('$', 'line {number}') | write" for number in range(10)), "quit")
        wanted = "".join(f"line {number}\n" for number in range(10))
        place.check({"log": f"\n{wanted}".encode()})

    def _vim(self, place: Place, *commands: str) -> None:
        place.run("vim", "-u", "NONE", "-i", "NONE", "-N", "-es", input="".join(f"{one}\n" for one in commands))

    def _type(self, place: Place, command: list[str], keys: str) -> None:
        """Run a program on a terminal and type ``keys`` once it has drawn its screen."""
        ours, theirs = pty.openpty()
        child = subprocess.Popen(
            command, cwd=place.path, env=place.mounted.there.environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        deadline = time.monotonic() + PROGRAM_TIMEOUT_S
        typed = False
        try:
            while child.poll() is None and time.monotonic() < deadline:
                if not select.select([ours], [], [], 0.1)[0]:
                    continue
                with contextlib.suppress(OSError):  # EIO: the program has closed the terminal
                    os.read(ours, 65536)
                if not typed:
                    typed = True
                    os.write(ours, keys.encode())
            assert child.wait(0.1) == 0
        finally:
            child.kill()
            child.wait()
            os.close(ours)

    # ---- whole trees

    def test_cp_a_brings_a_tree_in_and_out(self, place: Place) -> None:
        plant(place.outside / "from")
        place.run("cp", "-a", str(place.outside / "from"), "into")
        assert facts(place.path / "into") == facts(place.outside / "from")
        place.check({"into": None, **{f"into/{name}": content for name, content in TREE.items()}})
        place.run("cp", "-a", "into", str(place.outside / "back"))
        assert held(place.outside / "back") == TREE
        assert facts(place.outside / "back") == facts(place.outside / "from")
        place.run("diff", "-r", "into", str(place.outside / "from"))

    @needs("rsync")
    def test_rsync_a_copies_once_and_then_nothing(self, place: Place) -> None:
        plant(place.outside / "from")
        source = f"{place.outside}/from/"
        first = place.run("rsync", "-a", "-i", source, "into/")
        assert "readme.txt" in first
        assert place.run("rsync", "-a", "-i", source, "into/") == ""
        place.check({"into": None, **{f"into/{name}": content for name, content in TREE.items()}})
        (place.outside / "from" / "readme.txt").write_bytes(b"read me again\n")
        changed = place.run("rsync", "-a", "-i", "--delete", source, "into/").splitlines()
        assert [line.split()[1] for line in changed] == ["readme.txt"]
        place.check(
            {"into": None, **{f"into/{name}": content for name, content in TREE.items()}}
            | {"into/readme.txt": b"read me again\n"}
        )
        assert place.run("rsync", "-a", "-i", "into/", f"{place.outside}/back/") != ""
        assert place.run("rsync", "-a", "-i", "into/", f"{place.outside}/back/") == ""

    @needs("tar")
    def test_tar_packs_and_unpacks(self, place: Place) -> None:
        plant(place.outside / "from")
        place.run("tar", "-C", str(place.outside), "-cf", "all.tar", "from")
        archive = (place.outside / "again.tar").resolve()
        place.run("tar", "-C", str(place.outside), "-cf", str(archive), "from")
        assert (place.path / "all.tar").read_bytes() == archive.read_bytes()
        place.run("tar", "-xpf", "all.tar")
        assert facts(place.path / "from") == facts(place.outside / "from")
        place.run("tar", "-xpf", "all.tar")  # over what is there
        place.run("tar", "--compare", "-f", "all.tar")
        (place.path / "all.tar").unlink()
        place.check({"from": None, **{f"from/{name}": content for name, content in TREE.items()}})
        packed = subprocess.run(["tar", "-cf", "-", "from"], cwd=place.path, capture_output=True, check=True).stdout
        place.run("tar", "-C", str(place.outside), "--transform", "s/^from/back/", "-xpf", "-", input=packed)
        assert held(place.outside / "back") == TREE

    def test_a_folder_moves_with_files_open_below(self, place: Place) -> None:
        plant(place.path / "old")
        code = """
            import os
            reading, writing = open('old/sub/data.bin', 'rb'), open('old/sub/deeper/leaf', 'ab')
            unsaved = open('old/new', 'wb')
            writing.write(b' and more'); writing.flush()
            unsaved.write(b'unsa'); unsaved.flush()
            os.rename('old', 'moved')
            assert not os.path.exists('old')
            assert len(reading.read()) == 76800
            writing.write(b' still'); writing.close()
            unsaved.write(b'ved'); unsaved.close()
            print(open('moved/new').read(), open('moved/sub/deeper/leaf').read())
        """
        assert place.python(code) == "unsaved leaf and more still\n"
        changed: Held = {"moved/sub/deeper/leaf": b"leaf and more still", "moved/new": b"unsaved"}
        place.check({"moved": None, **{f"moved/{name}": content for name, content in TREE.items()}} | changed)

    def test_mv_moves_folders_and_replaces_files(self, place: Place) -> None:
        plant(place.path / "a")
        place.sh("mkdir b; mv a b/; mv b/a/readme.txt b/a/empty; mv b/a/sub .; mv b/a/void sub/")
        place.sh("printf other > x; printf mine > y; mv -f x y; ! mv -n y sub/data.bin || cmp y sub/data.bin || :")
        expected: Held = {
            "b": None,
            "b/a": None,
            "b/a/empty": TREE["readme.txt"],
            "b/a/run.sh": TREE["run.sh"],
            "sub": None,
            "sub/data.bin": TREE["sub/data.bin"],
            "sub/deeper": None,
            "sub/deeper/leaf": TREE["sub/deeper/leaf"],
            "sub/void": None,
            "y": b"other",
        }
        place.check(expected)

    def test_find_du_and_rm_see_the_tree(self, place: Place) -> None:
        plant(place.path / "t")
        found = place.run("find", "t", "-mindepth", "1", "-printf", "%P\n").splitlines()
        assert sorted(found) == sorted(TREE)
        assert place.run("find", "t", "-type", "f", "-size", "+100").split() == ["t/sub/data.bin"]
        assert place.run("find", "t", "-type", "f", "-empty").split() == ["t/empty"]
        sizes = sum(len(content) for content in TREE.values() if isinstance(content, bytes))
        apparent = int(place.run("du", "--apparent-size", "-sb", "t").split()[0])
        folders = 1 + sum(content is None for content in TREE.values())
        own = sum(path.lstat().st_size for path in [place.path / "t", *(place.path / "t").rglob("*")] if path.is_dir())
        assert apparent == sizes + own, f"{folders} folders"
        assert int(place.run("du", "-s", "--block-size=1", "t").split()[0]) >= 76800
        place.run("find", "t", "-name", "*.txt", "-delete")
        assert not (place.path / "t" / "readme.txt").exists()
        place.run("rm", "-rf", "t")
        place.check({})

    def test_mkdir_p_and_rm_rf_work_on_deep_and_wide_trees(self, place: Place) -> None:
        place.sh("mkdir -p a/b/c/d/e/f/g; mkdir -p a/b/c/d; for n in $(seq 30); do : > a/b/c/f$n; done")
        assert len(os.listdir(place.path / "a" / "b" / "c")) == 31
        assert len(place.agree()) == 37
        place.sh("rm -rf a; ! ls a 2>/dev/null; mkdir a; touch a/again")
        place.check({"a": None, "a/again": b""})

    # ---- git

    @needs("git")
    def test_git_keeps_a_repository(self, place: Place) -> None:
        plant(place.outside / "from")
        place.sh(
            f"""
            export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.com GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.com
            git init -q -b main work
            cp -a {place.outside}/from/. work/
            cd work
            git add .
            git commit -qm 'the first'
            test -z "$(git status --porcelain)"
            echo changed > readme.txt
            test "$(git status --porcelain)" = ' M readme.txt'
            git checkout -q -b other
            git commit -qam 'the second'
            git checkout -q main
            test "$(cat readme.txt)" = 'read me'
            git checkout -q other
            git mv readme.txt moved.txt
            git rm -q empty
            git commit -qm 'the third'
            git fsck --strict
            git gc -q
            git fsck --strict
            test "$(git log --oneline | wc -l)" = 3
            cd ..
            git clone -q work clone
            git clone -q --no-local work far
            cd clone
            git checkout -q main
            test -z "$(git status --porcelain)"
            """
        )
        agreed = place.agree()
        files = {name: content for name, content in TREE.items() if isinstance(content, bytes)}
        assert {name: agreed[f"clone/{name}"] for name in files} == files
        assert {name for name in agreed if name.startswith("far/") and "/.git" not in name} == {
            f"far/{name}" for name in (TREE.keys() - {"readme.txt", "empty", "void"}) | {"moved.txt"}
        }
        assert not [name for name in agreed if name.endswith(".lock")]

    # ---- Python

    def test_python_imports_from_the_mount(self, place: Place) -> None:
        (place.path / "package").mkdir()
        (place.path / "package" / "__init__.py").write_text("from package.inner import VALUE\n")
        (place.path / "package" / "inner.py").write_text("VALUE = 41 + 1\n")
        for _ in range(2):
            assert place.python("import package; print(package.VALUE)") == "42\n"
        assert sorted(name.partition(".")[0] for name in os.listdir(place.path / "package" / "__pycache__")) == [
            "__init__",
            "inner",
        ]
        (place.path / "package" / "inner.py").write_text("VALUE = 'something longer'\n")
        assert place.python("import package; print(package.VALUE)") == "something longer\n"
        place.agree()
