"""Objects become entries: names, versions, addresses, and collisions that nobody is hidden by."""

from __future__ import annotations

import pytest

from fusekit.api import Entry, Invalid, Kind
from fusekit_databricks import layout
from fusekit_databricks.layout import Address, Info


def notebook(name: str, language: str | None = "PYTHON") -> Info:
    return Info(f"/d/{name}", "NOTEBOOK", "1", language, 5)


def file(name: str) -> Info:
    return Info(f"/d/{name}", "FILE", "2", None, 5, 5, 3)


def names(*infos: Info) -> list[str]:
    return [entry.name for entry in layout.entries_of(infos)]


def test_a_plain_file_tells_everything() -> None:
    info = Info.parse(
        {"path": "/Workspace/d//f", "object_type": "FILE", "object_id": 7, "size": 3, "modified_at": 1_700_000_000_123}
    )
    assert info is not None
    entry = layout.entry_of(info)
    assert (entry.name, entry.kind, entry.ref, entry.id) == ("f", Kind.FILE, "/d/f", "7")
    assert (entry.size, entry.version) == (3, "1700000000123:3")
    assert entry.mtime_ns == 1_700_000_000_123_000_000


@pytest.mark.parametrize("kind", ["DIRECTORY", "REPO"])
def test_folders_of_all_sorts_are_directories(kind: str) -> None:
    entry = layout.entry_of(Info("/d/f", kind, "7"))
    assert (entry.kind, entry.name, entry.ref, entry.id, entry.version) == (Kind.DIRECTORY, "f", "/d/f", "7", None)


@pytest.mark.parametrize(
    ("language", "shown", "form"),
    [
        ("PYTHON", "n.py", "SOURCE"),
        ("SQL", "n.sql", "SOURCE"),
        ("SCALA", "n.scala", "SOURCE"),
        ("R", "n.R", "SOURCE"),
        ("RUST", "n.ipynb", "JUPYTER"),
        (None, "n.ipynb", "JUPYTER"),
    ],
)
def test_a_notebook_is_a_read_only_file_of_unknown_size(language: str | None, shown: str, form: str) -> None:
    (entry,) = layout.entries_of([notebook("n", language)])
    assert (entry.name, entry.kind, entry.ref) == (shown, Kind.FILE, f"{form}:/d/n")
    assert (entry.size, entry.mode, entry.version) == (None, 0o444, f"5:{form}")


@pytest.mark.parametrize("kind", ["DASHBOARD", "LIBRARY", "ALERT", "UNKNOWN"])
def test_other_types_are_read_only_files_under_their_own_name(kind: str) -> None:
    (entry,) = layout.entries_of([Info("/d/x.y", kind, "7", None, 5)])
    assert (entry.name, entry.kind, entry.ref, entry.size, entry.mode) == (
        "x.y", Kind.FILE, "AUTO:/d/x.y", None, 0o444,
    )  # fmt: skip


def test_a_notebook_makes_way_for_a_file_visibly() -> None:
    assert names(file("a.py"), notebook("a")) == ["a.py", "a.ipynb"]
    assert names(notebook("a"), file("a.py"), file("a.ipynb")) == ["a.py", "a.ipynb", "a (notebook).py"]
    assert names(file("a.py"), file("a.ipynb"), file("a (notebook).py"), notebook("a"))[-1] == "a (notebook 2).py"


def test_notebooks_whose_names_meet_each_get_one() -> None:
    found = names(notebook("a"), notebook("a.py", "RUST"), notebook("a.py.ipynb", None))
    assert sorted(found) == sorted(set(found))


@pytest.mark.parametrize(
    "fields",
    [{}, {"path": 7}, {"path": "relative"}, {"path": None, "object_type": "FILE"}],
)
def test_an_object_without_a_path_is_none(fields: dict[str, object]) -> None:
    assert Info.parse(fields) is None


@pytest.mark.parametrize("nonsense", [None, -1, "x", True, 1.5, [], {}])
def test_numbers_that_are_none_are_not_known(nonsense: object) -> None:
    fields = {"path": "/d/f", "object_type": "FILE", "size": nonsense, "modified_at": nonsense, "object_id": nonsense}
    info = Info.parse(fields)
    assert info is not None
    entry = layout.entry_of(info)
    assert (entry.size, entry.version, entry.id, entry.mtime_ns) == (None, None, None, None)


def test_numbers_may_come_as_text() -> None:
    info = Info.parse({"path": "/d/f", "object_type": "FILE", "size": "3", "modified_at": "5", "object_id": "9" * 16})
    assert info is not None
    assert (info.size, info.version, info.id) == (3, "5:3", "9" * 16)


@pytest.mark.parametrize("address", [Address("/d/a:b"), Address("/SOURCE:/x"), Address("/d/n\nm", "JUPYTER")])
def test_an_address_comes_back_from_its_ref(address: Address) -> None:
    assert Address.of(address.ref) == address


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "latin-\udce9"])
def test_names_that_no_object_can_have_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        layout.child(Entry.directory("", "/d"), name)


def test_a_child_of_the_root_has_one_slash() -> None:
    assert layout.child(Entry.directory("", "/"), "x") == "/x"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/d/a.py", ("/d/a", ".py")),
        ("/d/a.R", ("/d/a", ".R")),
        ("/d/a.r", ("/d/a", ".r")),
        ("/d/a.b.ipynb", ("/d/a.b", ".ipynb")),
        ("/d/.py", None),
        ("/d.py/a", None),
        ("/d/a.txt", None),
    ],
)
def test_names_that_a_notebook_could_have(path: str, found: tuple[str, str] | None) -> None:
    assert layout.notebook_stem(path) == found


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"# Databricks notebook source\n1", True),
        (b"-- Databricks notebook source", True),
        (b"// Databricks notebook source\r\n", True),
        (b"\xef\xbb\xbf# Databricks notebook source\n", True),
        (b"\n# Databricks notebook source", False),
        (b"print(1)", False),
        (b"", False),
    ],
)
def test_source_of_notebooks_is_known_by_its_first_line(data: bytes, found: bool) -> None:
    assert layout.is_notebook_source(memoryview(data)) is found
