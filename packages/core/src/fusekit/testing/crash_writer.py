"""A program that changes files until their filesystem dies under it, and says exactly what it was promised.

Outside the layers, standard library only: `fusekit.testing.crash` runs the file itself (``python -I``), several at a time, in a
mount that is about to be killed. It is told in JSON on its command line where to write and by which seed. Each operation
is two lines of JSON on standard output: what will be tried, before the call, and how the call ended, after it. So what
was acknowledged is known outside the mount, to the operation; `fusekit.testing.promises` judges by these lines.

What is tried names its ``effects``: the content (its hash, None: no such name) that each name has if it succeeds. All
contents are different, so that a hash tells which operation made it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

DIRECTORIES: Final = ("", "d/", "e/")
NAMES: Final = ("a", "b", "c")

# Mostly small, because that is what a journal is about; some empty, some of many write requests.
SIZES: Final = (0, 1, 100, 2000, 2048, 4096, 5000, 70_000, 300_000, 1_500_000)
SIZE_WEIGHTS: Final = (4, 6, 12, 16, 12, 8, 8, 6, 3, 1)

# What a mount that was killed answers; after anything else the program goes on.
DEAD: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV})


class Died(Exception):
    """The filesystem is gone."""


def digest(content: bytes) -> str:
    """Return what stands for ``content`` in all that is written down."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


class Writer:
    """One program in a directory of its own. ``known`` has the content of each name; no entry: there is none.

    ``unsure`` are names on which an operation failed: their content is one of two, so the next operation on one of
    them has to replace or remove it.
    """

    def __init__(self, root: Path, seed: str, out: int) -> None:
        self._root = root
        self._random = random.Random(seed)
        self._out = out
        self._number = 0
        self._known: dict[str, bytes] = {}
        self._unsure: set[str] = set()
        self._directories: set[str] = set()
        self._open: tuple[int, str, bytes] | None = None

    def run(self, operations: int) -> None:
        """Do so many random operations; raises `Died` as soon as the filesystem has."""
        calls = (
            (self._replace, 30), (self._append, 10), (self._patch, 8), (self._truncate, 6), (self._rename, 12),
            (self._unlink, 8), (self._mkdir, 6), (self._move_directory, 4), (self._rmdir, 2), (self._go_on, 14),
        )  # fmt: skip
        choices, weights = zip(*calls, strict=True)
        while self._number < operations:
            self._random.choices(choices, weights)[0]()
        if self._open is not None:  # the end of the program closes it as well, and says so to nobody
            descriptor, name, content = self._open
            self._close(descriptor, name, content)

    # ---- operations ----------------------------------------------------------------------------------------------

    def _replace(self) -> None:
        """Write a whole new content, sometimes with an fsync in the middle, or through two descriptors."""
        name = self._name()
        descriptor = self._opened(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        if descriptor is None:
            return
        content = b""
        for piece in self._pieces(self._content()):
            content += self._written(descriptor, piece)
            if self._random.random() < 0.1 and not self._sync(descriptor, name, content):
                break
        if self._random.random() < 0.1:
            second = os.dup(descriptor)
            self._close(second, name, content)
        self._close(descriptor, name, content)

    def _append(self) -> None:
        if (name := self._sure_name()) is None:
            return
        descriptor = self._opened(name, os.O_WRONLY | os.O_APPEND)
        if descriptor is not None:
            more = self._written(descriptor, self._content() or b"x")
            self._close(descriptor, name, self._known[name] + more)

    def _patch(self) -> None:
        if (name := self._sure_name()) is None:
            return
        descriptor = self._opened(name, os.O_RDWR)
        if descriptor is not None:
            old = self._known[name]
            at = self._random.randrange(len(old) + 1)
            more = self._written(descriptor, self._content() or b"x", at)
            self._close(descriptor, name, old[:at] + more + old[at + len(more) :])

    def _truncate(self) -> None:
        if (name := self._sure_name()) is None:
            return
        # Never to nothing, so that a content tells where it is from: each begins with its own number.
        size = self._random.randrange(64, 4096)
        content = self._known[name][:size].ljust(size, b"\0")
        self._done("truncate", {name: content}, lambda: os.truncate(self._root / name, size))

    def _rename(self) -> None:
        source, target = self._sure_name(), self._name()
        if source is None or source == target:
            return
        content = self._known[source]
        self._done(
            "rename", {target: content, source: None}, lambda: os.rename(self._root / source, self._root / target),
            moved={target: source},
        )  # fmt: skip

    def _unlink(self) -> None:
        names = sorted({*self._known, *self._unsure} - {self._held})
        if names:
            name = self._random.choice(names)
            self._done("unlink", {name: None}, lambda: os.unlink(self._root / name))

    def _mkdir(self) -> None:
        missing = [one for one in DIRECTORIES if one and one not in self._directories]
        if missing:
            directory = self._random.choice(missing)
            if self._done("mkdir", {}, lambda: os.mkdir(self._root / directory)):
                self._directories.add(directory)

    def _rmdir(self) -> None:
        empty = [one for one in sorted(self._directories) if not self._below(one)]
        if empty:
            directory = self._random.choice(empty)
            if self._done("rmdir", {}, lambda: os.rmdir(self._root / directory)):
                self._directories.discard(directory)

    def _move_directory(self) -> None:
        if len(self._directories) != 1 or self._open is not None:
            return
        (source,) = self._directories
        (target,) = {one for one in DIRECTORIES if one} - {source}
        names = self._below(source)
        if any(name in self._unsure for name in names):
            return
        moved = {target + name.removeprefix(source): name for name in names}
        effects: dict[str, bytes | None] = {new: self._known[old] for new, old in moved.items()}
        effects |= dict.fromkeys(names)
        if self._done("rename", effects, lambda: os.rename(self._root / source, self._root / target), moved=moved):
            self._directories = {target}
        else:
            self._directories = set()  # whichever it is: nobody goes there any more

    def _go_on(self) -> None:
        """Open a file and leave it open, or write more to the one that is, sync it, or close it."""
        if self._open is None:
            name = "long"
            descriptor = self._opened(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if descriptor is not None:
                self._open = descriptor, name, b""
            return
        descriptor, name, content = self._open
        match self._random.choice(("write", "write", "sync", "close")):
            case "write":
                self._open = descriptor, name, content + self._written(descriptor, self._content(), len(content))
            case "sync":
                self._sync(descriptor, name, content)
            case _:
                self._open = None
                self._close(descriptor, name, content)

    # ---- calls, told before and after ------------------------------------------------------------------------------

    def _opened(self, name: str, flags: int) -> int | None:
        # Opening promises nothing, and a file that was emptied by it is still the old one for all others.
        try:
            return os.open(self._root / name, flags, 0o644)
        except OSError as error:
            self._check(error)
            self._unsure.add(name)
            self._known.pop(name, None)
            return None

    def _written(self, descriptor: int, content: bytes, at: int | None = None) -> bytes:
        """Write ``content`` and return how much of it is in the file, which is all of it unless a write failed."""
        done = b""
        for piece in self._pieces(content):
            try:
                count = os.write(descriptor, piece) if at is None else os.pwrite(descriptor, piece, at + len(done))
            except OSError as error:
                self._check(error)
                break
            done += piece[:count]
        return done

    def _sync(self, descriptor: int, name: str, content: bytes) -> bool:
        return self._done("fsync", {name: content}, lambda: os.fsync(descriptor))

    def _close(self, descriptor: int, name: str, content: bytes) -> None:
        self._done("close", {name: content}, lambda: os.close(descriptor))

    def _done(
        self,
        call: str,
        effects: Mapping[str, bytes | None],
        do: Callable[[], None],
        *,
        moved: Mapping[str, str] | None = None,
    ) -> bool:
        """Say what is tried, try it, say how it ended, and remember what is known now."""
        self._number += 1
        told = {name: None if content is None else digest(content) for name, content in effects.items()}
        empty = [name for name, content in effects.items() if content == b""]
        self._say(number=self._number, call=call, effects=told, moved=dict(moved or {}), empty=empty)
        try:
            do()
        except OSError as error:
            self._say(number=self._number, error=errno.errorcode.get(error.errno or 0, "?"))
            self._check(error)
            for name in effects:
                self._known.pop(name, None)
                self._unsure.add(name)
            return False
        self._say(number=self._number, error=None)
        for name, content in effects.items():
            self._unsure.discard(name)
            self._known.pop(name, None)
            if content is not None:
                self._known[name] = content
        return True

    def _say(self, **facts: Any) -> None:
        os.write(self._out, json.dumps(facts).encode() + b"\n")

    def _check(self, error: OSError) -> None:
        if error.errno in DEAD:
            raise Died

    # ---- what is drawn -----------------------------------------------------------------------------------------------

    def _name(self) -> str:
        directory = self._random.choice(("", *sorted(self._directories)))
        return directory + self._random.choice(NAMES)

    def _sure_name(self) -> str | None:
        """Return a name with a content, not the one that is open: what is appended to that is not known."""
        names = sorted(self._known.keys() - {self._held})
        return self._random.choice(names) if names else None

    @property
    def _held(self) -> str:
        return self._open[1] if self._open is not None else ""

    def _below(self, directory: str) -> list[str]:
        return sorted(name for name in {*self._known, *self._unsure} if name.startswith(directory))

    def _content(self) -> bytes:
        """Return bytes that no other operation of any writer has."""
        size = self._random.choices(SIZES, SIZE_WEIGHTS)[0]
        head = f"{self._root.name}/{self._number}:{self._random.getrandbits(64):016x};".encode()
        return head + self._random.randbytes(max(0, size - len(head))) if size else b""

    def _pieces(self, content: bytes) -> list[bytes]:
        size = max(1, self._random.choice((len(content), len(content), len(content) // 3, 131_072)))
        return [content[at : at + size] for at in range(0, len(content), size)]


def main() -> None:
    """Run as the command line says, and end with status 0 however the filesystem ended."""
    wanted = json.loads(sys.argv[1])
    root = Path(wanted["root"])
    writer = Writer(root, wanted["seed"], sys.stdout.fileno())
    try:
        writer.run(wanted["operations"])
    except Died:
        pass
    except OSError as error:
        if error.errno not in DEAD:
            raise


if __name__ == "__main__":
    main()
