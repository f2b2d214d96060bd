"""Names and links on a mount: a part of the program suite.

Outside the layers; see `fusekit.testing.programs`.
"""

from __future__ import annotations

import os
from typing import Final

from fusekit.testing._programs_base import Held, Place, ProgramBase

NAMES: Final = (
    "two words",
    " leading and trailing ",
    "%41",
    "100%",
    "a%2Fb",
    "#hash",
    "question?",
    "a+b&c=d;e",
    "-dash",
    "--help",
    "back\\slash",
    "quo'te\"s",
    "[brackets]{braces}*",
    "~tilde",
    "$HOME",
    "colon:semi;comma,",
    "Grüße",
    "nai\u0308ve (decomposed)",
    "日本語",
    "\U0001f600",
    "...",
    ".hidden",
    "trailing.",
    "CON",
    "Case",
    "case",
    "x" * 250,
    "ü" * 125,
    "tab\there",
    "line\nbreak",
)


class Names(ProgramBase):
    """Names that something on the way could mangle, and links."""

    def test_unusual_names_come_through(self, place: Place) -> None:
        names = [name for name in NAMES if name not in self.refused_names]
        expected: Held = {}
        for number, name in enumerate(names):
            data = f"content {number}\n"
            place.run("sh", "-c", 'cat > "$1"', "sh", f"./{name}", input=data)
            expected[name] = data.encode()
        place.check(expected)
        assert sorted(place.run("find", ".", "-mindepth", "1", "-printf", "%P\\0").split("\0")[:-1]) == sorted(names)
        for name in names:
            place.run("mv", "--", name, "moved")
            place.run("mkdir", "--", name)
            place.run("mv", "--", "moved", f"./{name}/{name}")
        place.check(dict.fromkeys(names) | {f"{name}/{name}": expected[name] for name in names})
        place.run("rm", "-rf", "--", *names)
        place.check({})

    def test_names_that_cannot_be_are_refused_at_once(self, place: Place) -> None:
        place.sh("echo kept > kept")
        long = "n" * 256
        for command in (["mkdir", long], ["mv", "kept", "ü" * 128], ["cp", "kept", long], ["touch", long]):
            assert "File name too long" in place.run(*command, status=1)
        for name in self.refused_names:
            assert "Invalid argument" in place.run("mkdir", "--", name, status=1)
            place.run("mv", "--", "kept", name, status=1)
        place.check({"kept": b"kept\n"})

    def test_symbolic_links(self, place: Place) -> None:
        (place.path / "d").mkdir()
        (place.path / "d" / "f").write_bytes(b"target")
        if not self.symlinks:
            assert "Operation not permitted" in place.run("ln", "-s", "d/f", "link", status=1)
            place.check({"d": None, "d/f": b"target"})
            return
        place.sh("ln -s d/f link; ln -s d folder; ln -s nowhere dangling; cat link; ls folder/f; ln -sfn d/f dangling")
        assert (place.path / "link").read_bytes() == b"target"
        place.sh("echo through > link; cp -a link copied; mv folder renamed")
        place.check({"d": None, "d/f": b"through\n", "link": "d/f", "renamed": "d", "dangling": "d/f", "copied": "d/f"})

    def test_hard_links(self, place: Place) -> None:
        (place.path / "f").write_bytes(b"shared")
        if not self.hard_links:
            assert "Operation not permitted" in place.run("ln", "f", "second", status=1)
            place.check({"f": b"shared"})
            return
        place.sh("ln f second; mkdir d; ln f d/third; echo more >> second")
        assert os.stat(place.path / "f").st_nlink == 3
        assert len({os.stat(place.path / name).st_ino for name in ("f", "second", "d/third")}) == 1
        place.check({"f": b"sharedmore\n", "second": b"sharedmore\n", "d": None, "d/third": b"sharedmore\n"})
        place.run("rm", "f")
        assert os.stat(place.path / "second").st_nlink == 2
        place.check({"second": b"sharedmore\n", "d": None, "d/third": b"sharedmore\n"})
