"""The hooks against an emulated workspace: what they cost in requests, and what they make of changes and trouble."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio

from fusekit.api import (
    BackendError,
    Corrupt,
    Denied,
    Entry,
    Exists,
    Invalid,
    IsDirectory,
    Kind,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotSupported,
    ReadOnly,
    Rename,
    Stale,
    Throttled,
    TooLarge,
    Unavailable,
    Want,
)
from fusekit.testing.connected import asked, connected
from fusekit.testing.controls import Controls
from fusekit.testing.faults import What
from fusekit.testing.harness import ME, Place, Upload, listed, looked_up, made, moved, opened, read, written
from fusekit_databricks.backend import DatabricksBackend
from fusekit_databricks.options import Options

HOME = "/Users/me@example.com"
HEADER = "# Databricks notebook source\n"


def put(controls: Controls, **objects: dict[str, Any] | str) -> None:
    """Make objects in the home folder behind the backend's back."""
    facts = {name: {"text": value} if isinstance(value, str) else value for name, value in objects.items()}
    controls.merge_state({"objects": {f"{HOME}/{name}": value for name, value in facts.items()}})


def contents(controls: Controls) -> dict[str, str]:
    """Return type by path of all that is below the home folder."""
    return {
        path.removeprefix(f"{HOME}/"): facts["type"]
        for path, facts in controls.state()["objects"].items()
        if path.startswith(f"{HOME}/")
    }


def notebook(text: str = HEADER, language: str = "PYTHON") -> dict[str, Any]:
    return {"type": "NOTEBOOK", "text": text, "language": language}


async def remove(place: Place, entry: Entry) -> None:
    await place.hooks.fusekit_remove(directory=place.directory, entry=entry, caller=ME)


# --- what it costs ---


async def test_mounting_asks_once(options: Options, controls: Controls) -> None:
    asked(controls)
    async with connected() as mount, opened(DatabricksBackend(options, mount)):
        assert asked(controls) == {"object-info": 1}


async def test_a_listing_is_one_request_whatever_is_in_it(place: Place, controls: Controls) -> None:
    put(controls, **{f"file{number}": "x" for number in range(300)}, n=notebook(), d={"type": "DIRECTORY"})
    found = await listed(place.hooks, place.directory)
    assert len(found) == 302
    assert asked(controls) == {"list-files": 1}


async def test_reading_files_just_listed_is_one_request_each(place: Place, controls: Controls) -> None:
    put(controls, **{f"file{number}": f"content {number}" for number in range(50)})
    found = await listed(place.hooks, place.directory)
    asked(controls)
    for number in range(50):
        assert await read(place.hooks, found[f"file{number}"]) == f"content {number}".encode()
    assert asked(controls) == {"cloud-get": 50}


async def test_a_stat_is_one_request_and_its_file_is_read_with_one_more(place: Place, controls: Controls) -> None:
    put(controls, f="abc")
    entry = await looked_up(place.hooks, place.directory, "f")
    assert asked(controls) == {"object-info": 1}
    assert await read(place.hooks, entry, 1, 2) == b"b"
    assert asked(controls) == {"cloud-get": 1}


async def test_a_missing_name_is_one_request_unless_a_notebook_may_have_it(place: Place, controls: Controls) -> None:
    with pytest.raises(NotFound):
        await looked_up(place.hooks, place.directory, "missing.txt")
    assert asked(controls) == {"object-info": 1}
    with pytest.raises(NotFound):
        await looked_up(place.hooks, place.directory, "missing.py")
    assert asked(controls) == {"object-info": 2}


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 10_485_760], ids=["empty", "small", "largest"])
async def test_a_new_file_is_two_requests_and_its_bytes_go_once(place: Place, controls: Controls, data: bytes) -> None:
    entry = await written(place.hooks, place.directory, "new", data)
    sent = controls.counters().bytes_in()
    assert asked(controls) == {"import-file": 1, "object-info": 1}
    assert (entry.size, sent) == (len(data), len(data))
    assert await read(place.hooks, entry) == data
    assert asked(controls).keys() <= {"cloud-get"}


async def test_replacing_removing_and_moving_cost_what_is_said(place: Place, controls: Controls) -> None:
    old = await written(place.hooks, place.directory, "one", b"1")
    asked(controls)
    one = await written(place.hooks, place.directory, "one", b"22", replacing=old)
    assert asked(controls) == {"import-file": 1, "object-info": 1}
    two = await moved(place.hooks, one, place.directory, place.directory, "two")
    assert asked(controls) == {"rename": 1, "object-info": 2}
    three = await written(place.hooks, place.directory, "three", b"3")
    asked(controls)
    two = await moved(place.hooks, three, place.directory, place.directory, "two", replacing=two)
    assert asked(controls) == {"rename": 1, "object-info": 1}
    await remove(place, two)
    assert asked(controls) == {"delete": 1}
    folder = await made(place.hooks, place.directory, "folder")
    assert asked(controls) == {"mkdirs": 1, "object-info": 3}
    await moved(place.hooks, folder, place.directory, place.directory, "moved")
    assert asked(controls) == {"rename": 1, "object-info": 1}


async def test_an_empty_range_asks_nothing(place: Place, controls: Controls) -> None:
    entry = await written(place.hooks, place.directory, "f", b"abc")
    asked(controls)
    assert await read(place.hooks, entry, 3, None) == b""
    assert await read(place.hooks, entry, 1, 1) == b""
    assert asked(controls) == {}


# --- where the bytes come from ---


async def test_expired_urls_are_renewed_once_for_all_readers(place: Place, controls: Controls) -> None:
    put(controls, f="0123456789")
    entry = (await listed(place.hooks, place.directory))["f"]
    controls.expire("urls")
    asked(controls)
    got: dict[int, bytes] = {}

    async def one(start: int) -> None:
        got[start] = await read(place.hooks, entry, start, start + 1)

    async with trio.open_nursery() as nursery:
        for start in range(8):
            nursery.start_soon(one, start)
    assert got == {start: b"%d" % start for start in range(8)}
    counts = asked(controls)
    assert counts["object-info"] == 1
    assert counts["cloud-get"] <= 16


@pytest.mark.parametrize("cloud", ["AWS", "AZURE", "GCP"])
async def test_each_clouds_word_for_expired_is_understood(place: Place, controls: Controls, cloud: str) -> None:
    controls.set_knobs(cloud=cloud)
    put(controls, f="abc")
    entry = (await listed(place.hooks, place.directory))["f"]
    controls.expire("urls")
    assert await read(place.hooks, entry) == b"abc"


async def test_a_url_that_is_known_to_be_over_is_not_tried(place: Place, controls: Controls) -> None:
    controls.set_knobs(url_lifetime_s=1.0)
    put(controls, f="abc")
    entry = (await listed(place.hooks, place.directory))["f"]
    asked(controls)
    assert await read(place.hooks, entry) == b"abc"
    assert asked(controls) == {"object-info": 1, "cloud-get": 1}


@pytest.mark.parametrize("wrong_s", [-86_400.0, 86_400.0])
async def test_clocks_that_disagree_cost_nothing(place: Place, controls: Controls, wrong_s: float) -> None:
    put(controls, f="abc")
    controls.freeze(time.time() + wrong_s)
    entry = (await listed(place.hooks, place.directory))["f"]
    asked(controls)
    assert await read(place.hooks, entry) == b"abc"
    assert asked(controls) == {"cloud-get": 1}


async def test_without_signed_urls_files_are_exported(place: Place, controls: Controls) -> None:
    controls.set_knobs(signed_urls=False)
    put(controls, f="0123456789")
    entry = (await listed(place.hooks, place.directory))["f"]
    asked(controls)
    assert await read(place.hooks, entry, 2, 5) == b"234"
    assert asked(controls) == {"object-info": 1, "export": 1}


async def test_storage_that_refuses_even_fresh_urls_is_passed_by(place: Place, controls: Controls) -> None:
    put(controls, f="abc")
    entry = (await listed(place.hooks, place.directory))["f"]
    controls.fault(What.STATUS, "cloud-get", status=403, count=None)
    assert await read(place.hooks, entry) == b"abc"


async def test_a_large_file_is_not_exported(place: Place, controls: Controls) -> None:
    controls.merge_state({"objects": {f"{HOME}/big": {"text": "x" * 10_485_761}}})
    entry = (await listed(place.hooks, place.directory))["big"]
    assert await read(place.hooks, entry, 10_485_755, None) == b"x" * 6
    controls.fault(What.STATUS, "cloud-get", status=403, count=None)
    asked(controls)
    with pytest.raises(Denied):
        await read(place.hooks, entry, 0, 10)
    assert "export" not in asked(controls)


# --- versions ---


async def test_what_somebody_else_replaced_is_stale(place: Place, controls: Controls) -> None:
    controls.set_knobs(keep_replaced=False)
    put(controls, f="first")
    entry = (await listed(place.hooks, place.directory))["f"]
    put(controls, f="other")
    with pytest.raises(Stale):
        await read(place.hooks, entry)


async def test_a_url_may_serve_the_version_that_it_was_made_for(place: Place, options: Options) -> None:
    entry = await written(place.hooks, place.directory, "f", b"first")
    async with connected() as mount, opened(DatabricksBackend(options, mount)) as other:
        await written(other.hooks, other.directory, "f", b"other", replacing=entry)
    assert await read(place.hooks, entry) == b"first"


async def test_a_url_is_not_used_for_another_version(place: Place, controls: Controls) -> None:
    put(controls, f="first")
    old = (await listed(place.hooks, place.directory))["f"]
    put(controls, f="other")
    new = (await listed(place.hooks, place.directory))["f"]
    assert await read(place.hooks, new) == b"other"
    with pytest.raises(Stale):
        await read(place.hooks, old)


async def test_another_type_under_the_same_name_is_stale(place: Place, controls: Controls) -> None:
    put(controls, f="first")
    entry = (await listed(place.hooks, place.directory))["f"]
    await remove(place, entry)
    await made(place.hooks, place.directory, "f")
    with pytest.raises(Stale):
        await read(place.hooks, entry)


async def test_a_notebook_that_changed_is_stale(place: Place, controls: Controls) -> None:
    put(controls, n=notebook())
    entry = (await listed(place.hooks, place.directory))["n.py"]
    assert await read(place.hooks, entry) == HEADER.encode()
    put(controls, n=notebook(f"{HEADER}print(1)\n"))
    with pytest.raises(Stale):
        await read(place.hooks, entry)


@attrs.define
class Storage:
    """Stands for the HTTP of a backend: answers downloads from here, everything else from the real service."""

    real: Any
    headers: dict[str, str]
    data: bytes
    expected: list[Any] = attrs.field(factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    async def fetch(self, url: str, start: int, stop: int | None, sink: Any, **rest: Any) -> Any:
        from fusekit.api import Answer

        self.expected.append(rest["expect"])
        await sink.write(self.data[start:stop], at=start)
        return Answer(206, self.headers, b"")


async def stored(options: Options, headers: dict[str, str], act: Callable[[Place, Storage], Awaitable[None]]) -> None:
    """Run ``act`` with a backend whose cloud storage answers with ``headers``."""
    async with connected() as mount:
        backend = DatabricksBackend(options, mount)
        storage = Storage(backend._api._http, headers, b"abc")
        backend._api._http = storage
        async with opened(backend) as place:
            await act(place, storage)


async def test_a_later_last_modified_is_doubted_once_and_then_known(options: Options, controls: Controls) -> None:
    put(controls, f="abc")

    async def act(place: Place, storage: Storage) -> None:
        entry = (await listed(place.hooks, place.directory))["f"]
        asked(controls)
        for _ in range(3):
            assert await read(place.hooks, entry) == b"abc"
        assert asked(controls) == {"object-info": 1}
        put(controls, f="new")
        storage.headers["last-modified"] = "Fri, 31 Dec 2100 00:00:01 GMT"
        with pytest.raises(Stale):
            await read(place.hooks, entry)

    await stored(options, {"last-modified": "Fri, 31 Dec 2100 00:00:00 GMT"}, act)


async def test_an_earlier_last_modified_is_no_reason_to_ask(options: Options, controls: Controls) -> None:
    put(controls, f="abc")

    async def act(place: Place, storage: Storage) -> None:
        entry = (await listed(place.hooks, place.directory))["f"]
        asked(controls)
        assert await read(place.hooks, entry) == b"abc"
        assert asked(controls) == {}

    await stored(options, {"last-modified": "Fri, 01 Jan 2021 00:00:00 GMT"}, act)


async def test_from_the_second_range_on_the_etag_must_be_the_same(options: Options, controls: Controls) -> None:
    put(controls, f="abc")

    async def act(place: Place, storage: Storage) -> None:
        entry = (await listed(place.hooks, place.directory))["f"]
        await read(place.hooks, entry, 0, 1)
        await read(place.hooks, entry, 1, 2)
        assert [(expect.size, expect.etag) for expect in storage.expected] == [(3, None), (3, '"e1"')]

    await stored(options, {"etag": '"e1"'}, act)


# --- notebooks and other types ---


async def test_notebooks_are_shown_and_read(place: Place, controls: Controls) -> None:
    put(controls, a=notebook(f"{HEADER}print(1)\n"), s=notebook("-- Databricks notebook source\n", "SQL"))
    put(controls, **{"a.py": "plain"})
    found = await listed(place.hooks, place.directory)
    assert set(found) == {"a.py", "a.ipynb", "s.sql"}
    assert await read(place.hooks, found["a.py"]) == b"plain"
    assert b'"nbformat"' in await read(place.hooks, found["a.ipynb"])
    assert await read(place.hooks, found["s.sql"]) == b"-- Databricks notebook source\n"
    for name, entry in found.items():
        again = await looked_up(place.hooks, place.directory, name)
        assert again == entry
        assert await looked_up(place.hooks, place.directory, name, known=entry) == entry


async def test_a_notebook_has_one_name(place: Place, controls: Controls) -> None:
    put(controls, a=notebook())
    for name in ("a", "a.sql", "a.ipynb", "a.py.py", "a (notebook).py"):
        with pytest.raises(NotFound):
            await looked_up(place.hooks, place.directory, name)
    assert (await looked_up(place.hooks, place.directory, "a.py")).ref == f"SOURCE:{HOME}/a"


async def test_a_notebook_that_had_to_make_way_twice_is_found(place: Place, controls: Controls) -> None:
    put(controls, a=notebook(), **{"a.py": "1", "a.ipynb": "2"})
    found = await listed(place.hooks, place.directory)
    assert set(found) == {"a.py", "a.ipynb", "a (notebook).py"}
    assert await looked_up(place.hooks, place.directory, "a (notebook).py") == found["a (notebook).py"]


async def test_other_types_do_no_harm(place: Place, controls: Controls) -> None:
    put(
        controls,
        **{"x.lvdash.json": {"type": "DASHBOARD", "text": "{}"}, "lib.jar": {"type": "LIBRARY", "text": "jar"}},
    )
    put(controls, repo={"type": "REPO"})
    found = await listed(place.hooks, place.directory)
    assert {name: entry.kind for name, entry in found.items()} == {
        "x.lvdash.json": Kind.FILE,
        "lib.jar": Kind.FILE,
        "repo": Kind.DIRECTORY,
    }
    assert await read(place.hooks, found["x.lvdash.json"]) == b"{}"
    assert await listed(place.hooks, found["repo"]) == {}
    for name, entry in found.items():
        assert await looked_up(place.hooks, place.directory, name) == entry


async def test_what_is_no_plain_file_is_not_written(place: Place, controls: Controls) -> None:
    put(controls, a=notebook(), f="x")
    found = await listed(place.hooks, place.directory)
    asked(controls)
    with pytest.raises(ReadOnly, match="can only be read here"):
        await place.hooks.fusekit_access(entry=found["a.py"], want=Want.WRITE | Want.READ, caller=ME)
    with pytest.raises(ReadOnly):
        await written(place.hooks, place.directory, "a.py", b"x", replacing=found["a.py"])
    with pytest.raises(ReadOnly):
        await moved(place.hooks, found["f"], place.directory, place.directory, "a.py", replacing=found["a.py"])
    await place.hooks.fusekit_access(entry=found["a.py"], want=Want.READ, caller=ME)
    await place.hooks.fusekit_access(entry=found["f"], want=Want.WRITE, caller=ME)
    assert asked(controls) == {}


async def test_a_notebook_is_moved_and_removed_under_its_own_name(place: Place, controls: Controls) -> None:
    put(controls, a=notebook(), f="x")
    entry = (await listed(place.hooks, place.directory))["a.py"]
    new = await moved(place.hooks, entry, place.directory, place.directory, "b.py")
    assert (new.name, new.id, contents(controls)) == ("b.py", entry.id, {"b": "NOTEBOOK", "f": "FILE"})
    with pytest.raises(Invalid, match=r"must keep ending in \.py"):
        await moved(place.hooks, new, place.directory, place.directory, "b.sql")
    await remove(place, new)
    assert contents(controls) == {"f": "FILE"}


async def test_source_with_a_notebooks_header_stays_the_plain_file_that_was_written(
    place: Place, controls: Controls
) -> None:
    data = f"{HEADER}print(1)".encode()
    entry = await written(place.hooks, place.directory, "x.py", data)
    assert asked(controls) == {"import": 1, "object-info": 1}
    assert (entry.name, entry.size, contents(controls)) == ("x.py", len(data), {"x.py": "FILE"})
    assert await read(place.hooks, entry) == data
    with pytest.raises(Exists):
        await written(place.hooks, place.directory, "x.py", data)
    entry = await written(place.hooks, place.directory, "x.py", data + b"2", replacing=entry)
    assert await read(place.hooks, entry) == data + b"2"
    assert contents(controls) == {"x.py": "FILE"}


async def test_a_file_that_the_service_made_a_notebook_of_is_returned_as_that(place: Place, controls: Controls) -> None:
    controls.set_knobs(auto_jupyter=True)
    data = b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    entry = await written(place.hooks, place.directory, "x.ipynb", data)
    assert contents(controls) == {"x": "NOTEBOOK"}
    assert (entry.name, entry.size, entry.ref) == ("x.ipynb", None, f"JUPYTER:{HOME}/x")
    assert b'"nbformat"' in await read(place.hooks, entry)


# --- writing, naming, moving ---


async def test_a_file_over_the_limit_is_refused_before_a_byte_is_sent(place: Place, controls: Controls) -> None:
    for sized in (True, False):
        upload = Upload(bytes(10_485_761), sized=sized)
        with pytest.raises(TooLarge, match="at most 10485760 bytes"):
            await written(place.hooks, place.directory, "huge", upload)
    assert asked(controls) == {}
    assert place.capabilities.file_bytes_max == 10_485_760


async def test_all_parts_are_sent_as_one_and_acknowledged_after(place: Place, controls: Controls) -> None:
    upload = Upload(b"0123456789", sized=False, step=3)
    entry = await written(place.hooks, place.directory, "f", upload)
    assert asked(controls) == {"import-file": 1, "object-info": 1}
    assert await read(place.hooks, entry) == b"0123456789"
    assert all(part.is_done for part in upload.parts)


async def test_parts_are_not_acknowledged_when_the_import_failed(place: Place, controls: Controls) -> None:
    controls.fault(What.STATUS, "import-file", status=503)
    upload = Upload(b"x")
    with pytest.raises(Unavailable):
        await written(place.hooks, place.directory, "f", upload)
    assert not any(part.is_done for part in upload.parts)


async def test_names_are_never_taken_for_something_else(place: Place, controls: Controls) -> None:
    for name in ("100%.txt", "%2F", "a#b", "a?b=c", "a+b c", "ü&%41"):
        entry = await written(place.hooks, place.directory, name, name.encode())
        renamed = await moved(place.hooks, entry, place.directory, place.directory, f"{name}.new")
        assert await read(place.hooks, renamed) == name.encode()
        folder = await made(place.hooks, place.directory, name)
        assert await listed(place.hooks, folder) == {}
        await remove(place, folder)
        await remove(place, renamed)
    assert contents(controls) == {}


async def test_a_name_that_is_no_text_is_invalid(place: Place, controls: Controls) -> None:
    for call in (
        written(place.hooks, place.directory, "latin-\udce9", b"x"),
        made(place.hooks, place.directory, "latin-\udce9"),
        looked_up(place.hooks, place.directory, "latin-\udce9"),
    ):
        with pytest.raises(Invalid):
            await call
    assert asked(controls) == {}


async def test_mkdir_makes_no_folder_above(place: Place, controls: Controls) -> None:
    gone = attrs.evolve(place.directory, name="gone", ref=f"{HOME}/gone")
    with pytest.raises(NotFound):
        await made(place.hooks, gone, "folder")
    assert contents(controls) == {}


async def test_mkdir_in_a_file_is_not_a_directory(place: Place) -> None:
    file = await written(place.hooks, place.directory, "f", b"x")
    with pytest.raises((NotDirectory, NotFound)):
        await made(place.hooks, file, "folder")


async def test_a_folder_is_never_removed_with_what_is_in_it(place: Place, controls: Controls) -> None:
    folder = await made(place.hooks, place.directory, "folder")
    await written(place.hooks, folder, "f", b"x")
    with pytest.raises(NotEmpty):
        await remove(place, folder)
    assert contents(controls) == {"folder": "DIRECTORY", "folder/f": "FILE"}


async def test_rename_says_what_it_cannot_do(place: Place, controls: Controls) -> None:
    file = await written(place.hooks, place.directory, "f", b"x")
    folder = await made(place.hooks, place.directory, "d")
    here = place.directory
    asked(controls)
    with pytest.raises(NotSupported):
        await moved(place.hooks, file, here, here, "d", replacing=folder, exchange=True)
    with pytest.raises(IsDirectory):
        await moved(place.hooks, file, here, here, "d", replacing=folder)
    with pytest.raises(NotDirectory):
        await moved(place.hooks, folder, here, here, "f", replacing=file)
    assert asked(controls) == {}
    assert Rename.EXCHANGE not in place.capabilities.rename


async def test_files_below_a_moved_folder_are_read_at_their_new_place(place: Place, controls: Controls) -> None:
    folder = await made(place.hooks, place.directory, "old")
    await written(place.hooks, folder, "f", b"content")
    new = await moved(place.hooks, folder, place.directory, place.directory, "new")
    assert new.id == folder.id
    entry = (await listed(place.hooks, new))["f"]
    assert entry.ref == f"{HOME}/new/f"
    assert await read(place.hooks, entry) == b"content"


# --- the root ---


async def root_of(options: Options) -> Entry:
    async with connected() as mount, opened(DatabricksBackend(options, mount)) as place:
        return place.directory


async def test_the_root_may_be_any_folder(options: Options) -> None:
    for path, ref in (("/", "/"), ("/Workspace/Users", "/Users"), ("Shared/", "/Shared")):
        async with connected() as mount, opened(DatabricksBackend(attrs.evolve(options, path=path), mount)) as place:
            assert (place.directory.name, place.directory.kind, place.directory.ref) == ("", Kind.DIRECTORY, ref)
            for name, entry in (await listed(place.hooks, place.directory)).items():
                assert entry.ref == f"{ref.rstrip('/')}/{name}"


async def test_a_root_that_is_no_folder_says_so(options: Options, controls: Controls) -> None:
    put(controls, f="x", n=notebook())
    with pytest.raises(NotDirectory, match=r"/f in http://127.* is no folder but a file$"):
        await root_of(attrs.evolve(options, path=f"{HOME}/f"))
    with pytest.raises(NotDirectory, match=r"but a notebook$"):
        await root_of(attrs.evolve(options, path=f"{HOME}/n"))
    with pytest.raises(NotFound, match=r"^http://127.* has no folder /Users/nobody, or not for this user"):
        await root_of(attrs.evolve(options, path="/Users/nobody"))


async def test_a_wrong_token_says_what_to_do(options: Options, controls: Controls) -> None:
    asked(controls)
    with pytest.raises(
        Denied, match=r"^http://127.* refuses the token of DATABRICKS_TOKEN or token_file: .*Access tokens$"
    ) as caught:
        await root_of(attrs.evolve(options, token="dapi-wrong"))
    assert "dapi-wrong" not in str(caught.value)
    assert asked(controls) == {"object-info": 1}


async def test_a_token_that_may_not_see_the_folder_says_so(options: Options, controls: Controls) -> None:
    controls.fault(What.STATUS, "object-info", status=403)
    with pytest.raises(Denied, match="does not let this token see /Users/me"):
        await root_of(options)


async def test_a_refused_connection_says_so(options: Options) -> None:
    with pytest.raises(
        Unavailable, match=r"^cannot connect to 127\.0\.0\.1:1: connection refused; is DATABRICKS_HOST right\?$"
    ):
        await root_of(attrs.evolve(options, host="http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("what", "fields"),
    [(What.HTML, {"status": 200}), (What.HTML, {"status": 404}), (What.NOT_JSON, {})],
    ids=["page", "404 page", "no json"],
)
async def test_a_host_that_is_no_workspace_says_so_at_once(
    options: Options, controls: Controls, what: What, fields: dict[str, Any]
) -> None:
    controls.fault(what, "object-info", **fields)
    with pytest.raises(Invalid, match=r"is no Databricks workspace .*is DATABRICKS_HOST right\?$") as caught:
        await root_of(options)
    assert "<" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_workspace_without_the_api_says_so(options: Options, controls: Controls) -> None:
    controls.set_knobs(workspace_files=False)
    with pytest.raises(NotSupported, match="has no API for workspace files"):
        await root_of(options)


# --- trouble ---


@pytest.mark.parametrize(
    ("what", "fields", "cls"),
    [
        (What.STATUS, {"status": 429, "retry_after": "7"}, Throttled),
        (What.STATUS, {"status": 503}, Unavailable),
        (What.STATUS, {"status": 500}, Unavailable),
        (What.STATUS, {"status": 403}, Denied),
        (What.RESET, {}, Unavailable),
        (What.GARBAGE, {}, Unavailable),
        (What.TRUNCATED, {}, Unavailable),
        (What.HTML, {"status": 200}, Unavailable),
        (What.HTML, {"status": 404}, Unavailable),
        (What.HTML, {"status": 502}, Unavailable),
        (What.NOT_JSON, {}, Unavailable),
    ],
    ids=lambda value: getattr(value, "value", None) or str(value),
)
async def test_trouble_is_never_a_missing_name_or_an_empty_folder(
    place: Place, controls: Controls, what: What, fields: dict[str, Any], cls: type[BackendError]
) -> None:
    put(controls, f="x")
    controls.fault(what, "list-files", **fields)
    controls.fault(what, "object-info", **fields)
    with pytest.raises(cls) as caught:
        await listed(place.hooks, place.directory)
    assert "<" not in str(caught.value)
    with pytest.raises(cls) as caught:
        await looked_up(place.hooks, place.directory, "f")
    assert caught.value.retry_after_s == (7.0 if "retry_after" in fields else None)
    assert (await looked_up(place.hooks, place.directory, "f")).size == 1


@pytest.mark.parametrize(
    ("what", "fields", "cls"),
    [
        (What.TRUNCATED, {}, (Corrupt,)),
        (What.SHORT, {}, (Corrupt, Stale)),
        (What.OVERLONG, {}, (Corrupt, Stale)),
        (What.WRONG_RANGE, {}, (Corrupt,)),
        (What.RESET, {"at_byte": 100}, (Unavailable,)),
        (What.STATUS, {"status": 503}, (Unavailable,)),
        (What.STATUS, {"status": 500}, (Unavailable,)),
    ],
    ids=lambda value: getattr(value, "value", None) or str(value),
)
async def test_a_body_that_is_not_what_was_asked_for_is_an_error(
    place: Place, controls: Controls, what: What, fields: dict[str, Any], cls: tuple[type[BackendError], ...]
) -> None:
    data = bytes(range(250)) * 40
    entry = await written(place.hooks, place.directory, "f", data)
    controls.fault(what, "cloud-get", **fields)
    with pytest.raises(cls):
        await read(place.hooks, entry, 1000, 5000)
    assert await read(place.hooks, entry, 1000, 5000) == data[1000:5000]


async def test_bytes_behind_the_end_are_never_data(place: Place, controls: Controls) -> None:
    data = bytes(range(250)) * 40
    entry = await written(place.hooks, place.directory, "f", data)
    controls.fault(What.EXTRA, "cloud-get", count=20)
    for start in range(20):
        # They are noticed where they came along with the body; where they came later, the body was right.
        with contextlib.suppress(Corrupt):
            assert await read(place.hooks, entry, start, 5000) == data[start:5000]
    assert await read(place.hooks, entry) == data


async def test_storage_that_ignores_ranges_is_understood(place: Place, controls: Controls) -> None:
    entry = await written(place.hooks, place.directory, "f", b"0123456789")
    controls.fault(What.IGNORED_RANGE, "cloud-get")
    assert await read(place.hooks, entry, 3, 5) == b"34"


async def test_a_listing_that_says_nonsense_does_no_harm(options: Options, controls: Controls) -> None:
    from fusekit.api import Answer

    nonsense: list[Any] = [
        None,
        {},
        {"object_info": {"object_type": "FILE"}},
        {"object_info": {"path": f"{HOME}/elsewhere/f", "object_type": "FILE"}},
        {"object_info": {"path": f"{HOME}/bare"}},
        {"object_info": {"path": f"{HOME}/f", "object_type": "FILE", "size": -1}, "signed_url": {"url": 7}},
        {
            "object_info": {"path": f"{HOME}/f", "object_type": "FILE", "size": 3},
            "signed_url": {"url": "", "headers": 1},
        },
    ]

    @attrs.define
    class Listing:
        real: Any
        body: bytes

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        async def request(self, method: str, url: str, **rest: Any) -> Answer:
            if url.endswith("/list-files"):
                return Answer(200, {}, self.body)
            found: Answer = await self.real.request(method, url, **rest)
            return found

    import json

    async with connected() as mount:
        backend = DatabricksBackend(options, mount)
        listing = Listing(backend._api._http, json.dumps({"objects": nonsense}).encode())
        backend._api._http = listing
        async with opened(backend) as place:
            found = await listed(place.hooks, place.directory)
            assert {name: entry.size for name, entry in found.items()} == {"bare": None, "f": 3}
            for body in (b"[]", b'"x"', b'{"objects": {"a": 1}}', b"7"):
                listing.body = body
                with pytest.raises(Unavailable):
                    await listed(place.hooks, place.directory)
            for body in (b"{}", b"null", b"", b'{"objects": null}'):
                listing.body = body
                assert await listed(place.hooks, place.directory) == {}


async def test_a_reader_may_not_write(options: Options, controls: Controls) -> None:
    controls.merge_state({"users": {"reader": {"token": "dapi-reader", "grants": {HOME: "CAN_READ"}}}})
    put(controls, f="x")
    async with connected() as mount:
        backend = DatabricksBackend(attrs.evolve(options, token="dapi-reader"), mount)
        async with opened(backend) as place:
            entry = (await listed(place.hooks, place.directory))["f"]
            assert await read(place.hooks, entry) == b"x"
            with pytest.raises(Denied, match="CAN_EDIT"):
                await written(place.hooks, place.directory, "f", b"y", replacing=entry)
            with pytest.raises(Denied):
                await written(place.hooks, place.directory, "new", b"y")
            with pytest.raises(Denied):
                await remove(place, entry)
            with pytest.raises(Denied):
                await made(place.hooks, place.directory, "folder")
