"""What docs/SEMANTICS.md and docs/explanation/promises.md promise is tested: claims name tests, and tables are the code's."""

from __future__ import annotations

import ast
import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from fusekit_zip import ZipBackend

from fusekit.backends.http import HttpBackend
from fusekit.backends.http import Options as HttpOptions
from fusekit.backends.local import LocalBackend
from fusekit.backends.local import Options as LocalOptions
from fusekit.backends.memory import MemoryBackend
from fusekit.backends.memory import Options as MemoryOptions
from fusekit.fuse.errno import TABLE
from fusekit.plugins.manager import stack
from fusekit.testing.harness import PlainMount
from fusekit.types import Capabilities, Entry, Rename
from fusekit_databricks.backend import DatabricksBackend

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/SEMANTICS.md").read_text()
PROMISES = (ROOT / "docs/explanation/promises.md").read_text()
TESTS = re.compile(r"`tests: ([^`]*)`$")

# Where tests are: modules that pytest collects, and the parts of the suites that backends inherit.
COLLECTED = re.compile(r"(^|/)(test_\w+|_suite_\w+|_programs_\w+)\.py$")


@attrs.frozen
class Claim:
    """One thing that is promised, and the tests that are named for it."""

    text: str
    tests: tuple[str, ...]


def blocks(page: str) -> Iterator[str]:
    """Yield paragraphs, list items and tables of the sections, each as one text."""
    _, _, sections = page.partition("\n## ")
    for block in re.split(r"\n\s*\n", f"## {sections}".rstrip()):
        if block.startswith("- "):
            yield from re.split(r"\n(?=- )", block)
        elif not block.startswith("#"):
            yield block


def claims(page: str) -> Iterator[Claim]:
    """Yield what each block claims; the paragraph above a table may name the tests for all of its rows."""
    above = False
    for block in blocks(page):
        if block.startswith("|"):
            rows = [row.strip("|").rpartition("|") for row in block.splitlines()[2:]]
            if not above:
                yield from (claim(f"{before} {last.strip()}") for before, _, last in rows)
        elif not block.endswith(":"):
            found = claim(block)
            above = bool(found.tests)
            yield found


def claim(text: str) -> Claim:
    found = TESTS.search(text)
    return Claim(text[:80], tuple(found[1].split(", ")) if found else ())


def defined_in(path: Path) -> set[str]:
    """Return the names of the tests that a module defines, without running it."""
    tree = ast.parse(path.read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


def missing(named: str) -> str | None:
    """Say what is wrong with the name of a test, None if it is there."""
    path, _, name = named.partition("::")
    if not COLLECTED.search(path) or not (ROOT / path).is_file():
        return f"{path} is no module of tests"
    return None if name in defined_in(ROOT / path) else f"{path} has no {name}"


CLAIMS = list(claims(PAGE))
PROMISED = list(claims(PROMISES))
# Paragraphs of the second page that set a scene and promise nothing.
SCENES = {"The process of the mount can end at any", "Three machines look for a counterexampl"}


def test_every_claim_names_the_tests_that_show_it() -> None:
    assert len(CLAIMS) > 80
    assert [one.text for one in CLAIMS if not one.tests] == []


def test_every_promise_names_the_tests_that_hold_it() -> None:
    assert len(PROMISED) > 20
    assert {one.text[:39] for one in PROMISED if not one.tests} == SCENES


def test_every_test_that_is_named_is_there() -> None:
    named = {test for one in [*CLAIMS, *PROMISED] for test in one.tests}
    assert sorted(filter(None, map(missing, named))) == []


@pytest.mark.parametrize(
    ("page", "untested"),
    [
        ("intro\n\n## A\n\n- this holds. `tests: tests/test_semantics.py::test_x`\n- that too.\n", 1),
        ("intro\n\n## A\n\nAll of this holds.\n\nIn detail:\n", 1),
        ("intro\n\n## A\n\n| What | By |\n|---|---|\n| a | `tests: x::y` |\n| b | |\n", 1),
        ("intro\n\n## A\n\nA table. `tests: x::y`\n\n| What | When |\n|---|---|\n| a | b |\n", 0),
        ("intro\n\n## A\n\nA table.\n\n| What | When |\n|---|---|\n| a | b |\n", 2),
    ],
)
def test_a_claim_without_tests_is_found(page: str, untested: int) -> None:
    assert sum(not one.tests for one in claims(page)) == untested


@pytest.mark.parametrize(
    "named", ["tests/test_semantics.py::test_of_nothing", "tests/no_such.py::test_a", "tests/conftest.py::test_a", "x"]
)
def test_a_test_that_is_not_there_is_found(named: str) -> None:
    assert missing(named)


def table(heading: str) -> list[list[str]]:
    """Return the cells of the table in the section ``heading``, without its head."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_table_of_errors_is_the_adapters() -> None:
    told = {name: number for name, number, _ in table("Errors")}
    assert {name: getattr(errno, number) for name, number in told.items()} == {
        cls.__name__: number for cls, number in TABLE.items()
    }


def told_by(capabilities: Capabilities) -> list[str]:
    """Return the row of a backend that says this of itself, without its name."""
    none = "\u2013"

    def either(hook: str, text: str, otherwise: str = none) -> str:
        return text if capabilities.has(f"fusekit_{hook}") else otherwise

    words = {
        Rename.FILES: "files",
        Rename.DIRECTORIES: "directories",
        Rename.REPLACE: "replace",
        Rename.EXCHANGE: "exchange",
    }
    rename = ", ".join(word for flag, word in words.items() if flag in capabilities.rename)
    links = [word for hook, word in (("link", "hard"), ("symlink", "symbolic")) if capabilities.has(f"fusekit_{hook}")]
    return [
        either("rename", rename),
        either("write", "by the service" if capabilities.guarded else "by looking before"),
        ", ".join(links) or none,
        either("mknod", "yes"),
        either("setattr", "stored", either("write", "kept here")),
        either("setxattr", "stored"),
        either("statfs", "told"),
        none if capabilities.file_bytes_max is None else f"{capabilities.file_bytes_max} bytes",
    ]


def test_the_table_of_backends_is_what_they_say_of_themselves(tmp_path: Path) -> None:
    made: dict[str, Any] = {
        "local": LocalBackend(LocalOptions(tmp_path), PlainMount()),
        "memory": MemoryBackend(MemoryOptions(), PlainMount()),
        # These two say the same wherever they point, and pointing needs a service or a file.
        "databricks": DatabricksBackend.__new__(DatabricksBackend),
        "http": HttpBackend(HttpOptions("http://127.0.0.1/"), PlainMount(lambda *_: cast("Any", None))),
        "zip": ZipBackend.__new__(ZipBackend),
    }
    top = Entry.directory("")
    expected = {
        name: told_by(stack(backend, []).hooks.fusekit_capabilities(directory=top)) for name, backend in made.items()
    }
    assert {name: rest for name, *rest in table("What each backend can do")} == expected
