"""The contract of the emulated workspace, checked with the vendor's own client, unmodified."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.clock import Clock
from databricks.sdk.config import Config
from databricks.sdk.errors import (
    BadRequest,
    InternalError,
    NotFound,
    PermissionDenied,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    Unauthenticated,
)
from databricks.sdk.errors.base import DatabricksError
from databricks.sdk.service.iam import AccessControlRequest, PermissionLevel
from databricks.sdk.service.workspace import ExportFormat, ImportFormat, Language, ObjectType

from fusekit.testing.controls import ControlError
from fusekit.testing.running import RunningEmulator
from fusekit_databricks.emulator import DatabricksEmulator

HEADER = b"# Databricks notebook source\n"
MEGABYTE = 1 << 20


class SkippingClock(Clock):
    """Sleeps by noting how long, so that retries cost no time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


Client = Callable[..., WorkspaceClient]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's own sign-in and proxies out of the client."""
    for name in [name for name in os.environ if name.startswith("DATABRICKS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def workspace() -> Iterator[RunningEmulator]:
    with DatabricksEmulator.start() as running:
        yield running


@pytest.fixture
def emulator(workspace: RunningEmulator) -> Iterator[RunningEmulator]:
    """The workspace as it is when new, and a look at its handlers' health afterwards."""
    controls = workspace.controls
    knobs, state = controls.knobs(), controls.state()
    controls.reset()
    yield workspace
    assert controls.counters().failures == 0
    controls.clear_faults()
    controls.set_knobs(**knobs)
    controls.follow_clock()
    controls.replace_state(state)


@pytest.fixture
def client(emulator: RunningEmulator) -> Client:
    def make(**changes: Any) -> WorkspaceClient:
        environment = emulator.environment()
        settings = {"host": environment["DATABRICKS_HOST"], "token": environment["DATABRICKS_TOKEN"], **changes}
        settings = {name: value for name, value in settings.items() if value is not None}
        return WorkspaceClient(config=Config(clock=SkippingClock(), retry_timeout_seconds=60, **settings))

    return make


@pytest.fixture
def w(client: Client) -> WorkspaceClient:
    return client()


@pytest.fixture
def p(w: WorkspaceClient) -> str:
    path = "/Users/me@example.com/place"
    w.workspace.mkdirs(path)
    return path


def put(w: WorkspaceClient, path: str, data: bytes, **options: Any) -> None:
    w.workspace.upload(path, data, format=ImportFormat.AUTO, **options)


def read(w: WorkspaceClient, path: str, format: ExportFormat = ExportFormat.AUTO) -> bytes:
    with w.workspace.download(path, format=format) as stream:
        return stream.read()


def names(w: WorkspaceClient, path: str) -> list[str]:
    return [str(one.path).rpartition("/")[2] for one in w.workspace.list(path)]


def info(w: WorkspaceClient, path: str) -> dict[str, Any]:
    found = w.api_client.do("GET", "/api/2.0/workspace-files/object-info", query={"path": path})
    assert isinstance(found, dict)
    inner: dict[str, Any] = found["wsfs_object_info"]
    return inner


def listed(w: WorkspaceClient, path: str) -> list[dict[str, Any]]:
    found = w.api_client.do("GET", "/api/2.0/workspace-files/list-files", query={"path": path})
    assert isinstance(found, dict)
    objects: list[dict[str, Any]] = found.get("objects", [])
    return objects


def import_file(w: WorkspaceClient, path: str, data: bytes, *, overwrite: bool = True, plain: bool = False) -> None:
    quoted = urllib.parse.quote(path.lstrip("/"), safe="/" if plain else "")
    flag = "true" if overwrite else "false"
    w.api_client.do("POST", f"/api/2.0/workspace-files/import-file/{quoted}?overwrite={flag}", data=data)


def rename(w: WorkspaceClient, source: str, target: str) -> None:
    body = {"source_path": source, "destination_path": target}
    w.api_client.do("POST", "/api/2.0/workspace/rename", body=body)


def cloud(
    signed: dict[str, Any], method: str = "GET", data: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Use a signed URL as a program without any idea of Databricks would."""
    request = urllib.request.Request(
        signed["url"],
        data=data,
        method=method,
        headers={**signed["headers"], **{name.replace("_", "-"): value for name, value in headers.items()}},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


# --- signing in


@pytest.mark.parametrize("published", [True, False])
def test_construction_asks_once_for_host_metadata_and_lives_without(
    emulator: RunningEmulator, client: Client, published: bool
) -> None:
    emulator.controls.set_knobs(host_metadata=published)
    made = client()
    [asked] = emulator.controls.requests()
    assert (asked.route, asked.status) == ("host-metadata", 200 if published else 404)
    assert made.current_user.me().user_name == "me@example.com"
    assert emulator.controls.counters().by_route() == {"host-metadata": 1, "me": 1}


def test_me_is_the_user_of_the_token(emulator: RunningEmulator, client: Client, w: WorkspaceClient) -> None:
    emulator.controls.merge_state({"users": {"ann@example.com": {"token": "ann"}}})
    assert w.current_user.me().user_name == "me@example.com"
    assert client(token="ann").current_user.me().user_name == "ann@example.com"
    assert w.get_workspace_id() == 1_234_567_890_123_456


def test_unknown_and_expired_tokens_are_unauthenticated(
    emulator: RunningEmulator, client: Client, w: WorkspaceClient
) -> None:
    with pytest.raises(Unauthenticated):
        client(token="nobody's").current_user.me()
    emulator.controls.expire("tokens")
    with pytest.raises(Unauthenticated):
        w.current_user.me()
    emulator.controls.merge_state({"users": {"me@example.com": {"token": emulator.environment()["DATABRICKS_TOKEN"]}}})
    w.current_user.me()


def test_machine_signs_in_with_oauth_once_and_again_when_its_token_ends(
    emulator: RunningEmulator, client: Client
) -> None:
    emulator.controls.merge_state({"users": {"robot": {"client_secret": "of the robot", "admin": True}}})
    w = client(token=None, client_id="robot", client_secret="of the robot")
    for _ in range(3):
        assert w.current_user.me().user_name == "robot"
    assert emulator.controls.counters().by_route() == {
        "host-metadata": 1,
        "oauth-discovery": 1,
        "oauth-token": 1,
        "me": 3,
    }
    emulator.controls.advance(3601)
    with pytest.raises(Unauthenticated):
        w.current_user.me()  # the client trusts its own clock, which did not move
    assert client(token=None, client_id="robot", client_secret="of the robot").current_user.me().user_name == "robot"
    with pytest.raises(ValueError, match="invalid_client"):
        client(token=None, client_id="robot", client_secret="wrong").current_user.me()


def test_printed_variables_are_enough_for_either_way_to_sign_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for auth in ("token", "oauth"):
        with DatabricksEmulator.start(auth=auth) as running, monkeypatch.context() as exported:
            for name, value in running.environment().items():
                exported.setenv(name, value)
            assert WorkspaceClient().current_user.me().active


# --- folders


def test_mkdirs_makes_parents_and_is_content_with_what_is_there(w: WorkspaceClient, p: str) -> None:
    for _ in range(2):
        w.workspace.mkdirs(f"{p}/q/r")
    assert w.workspace.get_status(f"{p}/q").object_type is ObjectType.DIRECTORY
    assert w.workspace.get_status(f"{p}/q/r").object_type is ObjectType.DIRECTORY


def test_mkdirs_below_or_over_a_file_is_refused(w: WorkspaceClient, p: str) -> None:
    put(w, f"{p}/f", b"")
    for path in (f"{p}/f", f"{p}/f/sub"):
        with pytest.raises(ResourceAlreadyExists):
            w.workspace.mkdirs(path)


def test_list_yields_every_child_once_and_a_file_itself(w: WorkspaceClient, p: str) -> None:
    w.workspace.mkdirs(f"{p}/empty")
    for name in ("b", "a", "c.py"):
        put(w, f"{p}/{name}", b"1")
    assert names(w, p) == ["a", "b", "c.py", "empty"]
    assert [one.path for one in w.workspace.list(f"{p}/a")] == [f"{p}/a"]
    assert names(w, f"{p}/empty") == []
    with pytest.raises(ResourceDoesNotExist, match=r"Path \(/nowhere\) doesn't exist"):
        list(w.workspace.list("/nowhere"))


def test_empty_listing_has_no_objects_at_all(w: WorkspaceClient, p: str) -> None:
    assert w.api_client.do("GET", "/api/2.0/workspace/list", query={"path": p}) == {}
    assert w.api_client.do("GET", "/api/2.0/workspace-files/list-files", query={"path": p}) == {}


def test_recursive_list_visits_folders_breadth_first(emulator: RunningEmulator, w: WorkspaceClient, p: str) -> None:
    for folder in ("a/deep", "b"):
        w.workspace.mkdirs(f"{p}/{folder}")
    for name in ("z", "a/1", "b/2", "a/deep/3"):
        put(w, f"{p}/{name}", b"")
    emulator.controls.reset()
    found = [str(one.path).removeprefix(f"{p}/") for one in w.workspace.list(p, recursive=True)]
    assert found == ["z", "a/1", "b/2", "a/deep/3"]
    assert emulator.controls.counters().by_route() == {"list": 4}


def test_listing_of_notebooks_can_be_limited_to_changed_ones(
    emulator: RunningEmulator, w: WorkspaceClient, p: str
) -> None:
    emulator.controls.freeze(2000.0)
    put(w, f"{p}/old.py", HEADER)
    put(w, f"{p}/file", b"")
    emulator.controls.advance(1)
    put(w, f"{p}/new.py", HEADER)
    found = [str(one.path).rpartition("/")[2] for one in w.workspace.list(p, notebooks_modified_after=2_000_500)]
    assert found == ["file", "new"]


def test_workspace_prefix_names_the_same_objects(w: WorkspaceClient, p: str) -> None:
    put(w, f"/Workspace{p}//f", b"x")
    one, other = w.workspace.get_status(f"/Workspace{p}/f/"), w.workspace.get_status(f"{p}/f")
    assert one.object_id == other.object_id
    assert one.path == other.path == f"{p}/f"


def test_delete_of_a_folder_with_content_must_be_recursive(w: WorkspaceClient, p: str) -> None:
    put(w, f"{p}/f", b"")
    with pytest.raises(BadRequest, match="is not empty") as caught:
        w.workspace.delete(p)
    assert caught.value.error_code == "DIRECTORY_NOT_EMPTY"
    w.workspace.delete(p, recursive=True)
    for path in (p, f"{p}/f"):
        with pytest.raises(ResourceDoesNotExist):
            w.workspace.delete(path)


@pytest.mark.parametrize("path", ["/", "/Users", "/Shared", "/Users/me@example.com"])
def test_folders_of_the_workspace_itself_stay(w: WorkspaceClient, path: str) -> None:
    with pytest.raises(BadRequest):
        w.workspace.delete(path, recursive=True)
    if path != "/":
        with pytest.raises(BadRequest):
            rename(w, path, "/Shared/moved")
    assert w.workspace.get_status(path).object_type is ObjectType.DIRECTORY


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/a/./b", "/Users/me@example.com/" + "x" * 256, "/a\nb"])
def test_paths_that_cannot_be_are_invalid(w: WorkspaceClient, path: str) -> None:
    with pytest.raises(BadRequest) as caught:
        w.workspace.mkdirs(path)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


# --- files


def test_uploaded_file_has_size_and_time(emulator: RunningEmulator, w: WorkspaceClient, p: str) -> None:
    put(w, f"{p}/f.txt", b"data")
    status = w.workspace.get_status(f"{p}/f.txt")
    assert (status.object_type, status.size) == (ObjectType.FILE, 4)
    assert status.modified_at is not None
    assert abs(status.modified_at - emulator.controls.now() * 1000) < 5000
    assert status.resource_id == str(status.object_id)


def test_overwriting_must_be_asked_for_and_keeps_the_id(emulator: RunningEmulator, w: WorkspaceClient, p: str) -> None:
    put(w, f"{p}/f.txt", b"data")
    before = w.workspace.get_status(f"{p}/f.txt")
    emulator.controls.advance(0.002)
    with pytest.raises(ResourceAlreadyExists):
        put(w, f"{p}/f.txt", b"more data")
    put(w, f"{p}/f.txt", b"more data", overwrite=True)
    after = w.workspace.get_status(f"{p}/f.txt")
    assert after.object_id == before.object_id
    assert after.created_at == before.created_at
    assert (after.modified_at or 0) > (before.modified_at or 0)
    assert after.size == 9


def test_overwriting_with_another_type_is_refused(w: WorkspaceClient, p: str) -> None:
    put(w, f"{p}/n.py", HEADER)
    put(w, f"{p}/f", b"")
    with pytest.raises(DatabricksError, match="type mismatch"):
        put(w, f"{p}/n", b"a file", overwrite=True)
    with pytest.raises(DatabricksError, match="type mismatch"):
        w.workspace.upload(f"{p}/f", HEADER, format=ImportFormat.SOURCE, language=Language.PYTHON, overwrite=True)
    with pytest.raises(DatabricksError, match="type mismatch"):
        put(w, p, b"", overwrite=True)


def test_service_bug_with_overwriting_files_can_be_switched_on(
    emulator: RunningEmulator, w: WorkspaceClient, p: str
) -> None:
    emulator.controls.set_knobs(overwrite_bug=True)
    put(w, f"{p}/f", b"1")
    with pytest.raises(ResourceAlreadyExists, match="Node named 'f' already exists"):
        put(w, f"{p}/f", b"2", overwrite=True)
    import_file(w, f"{p}/f", b"3")
    assert read(w, f"{p}/f") == b"3"


def test_upload_under_a_missing_folder_is_not_found(w: WorkspaceClient, p: str) -> None:
    for send in (put, import_file):
        with pytest.raises(NotFound, match=r"The parent folder \(.*/missing\) does not exist"):
            send(w, f"{p}/missing/f", b"")
    assert names(w, p) == []


def test_import_has_a_limit(w: WorkspaceClient, p: str) -> None:
    put(w, f"{p}/largest", bytes(10 * MEGABYTE))
    for send in (
        lambda: put(w, f"{p}/f", bytes(10 * MEGABYTE + 1)),
        lambda: w.workspace.import_(
            f"{p}/f", content=base64.b64encode(bytes(10 * MEGABYTE + 1)).decode(), format=ImportFormat.AUTO
        ),
    ):
        with pytest.raises(DatabricksError) as caught:
            send()
        assert caught.value.error_code == "MAX_NOTEBOOK_SIZE_EXCEEDED"
    assert names(w, p) == ["largest"]


def test_export_has_the_same_limit(w: WorkspaceClient, p: str) -> None:
    import_file(w, f"{p}/f", bytes(10 * MEGABYTE + 1))
    with pytest.raises(DatabricksError) as caught:
        w.workspace.export(f"{p}/f", format=ExportFormat.AUTO)
    assert caught.value.error_code == "MAX_NOTEBOOK_SIZE_EXCEEDED"


def test_content_comes_back_byte_for_byte(w: WorkspaceClient, p: str) -> None:
    awkward = bytes(range(256)) + b"\r\n--boundary\r\n\r\n" + os.urandom(1000) + b"\r\n"
    put(w, f"{p}/form", awkward)
    w.workspace.import_(f"{p}/json", content=base64.b64encode(awkward).decode(), format=ImportFormat.RAW)
    for name in ("form", "json"):
        for form in (ExportFormat.AUTO, ExportFormat.SOURCE, ExportFormat.RAW):
            assert read(w, f"{p}/{name}", form) == awkward
            exported = w.workspace.export(f"{p}/{name}", format=form).content
            assert base64.b64decode(exported or "") == awkward


def test_source_without_a_language_is_taken_as_an_archive(w: WorkspaceClient, p: str) -> None:
    with pytest.raises(DatabricksError, match="zip archive") as caught:
        w.workspace.upload(f"{p}/z", b"x")
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_export_of_a_folder_is_an_archive_and_no_error(w: WorkspaceClient, p: str) -> None:
    put(w, f"{p}/f", b"1")
    assert read(w, p, ExportFormat.SOURCE).startswith(b"PK")


def test_every_sort_of_name_round_trips(w: WorkspaceClient, p: str) -> None:
    awkward = [
        "a b",
        "%41",
        "#x",
        "a?b",
        "a+b",
        "a&b=c",
        "ünï-日本",
        "n" * 250,
        ".hidden",
        "a\\b",
        "'\"",
        "%2F",
        "a;b",
        "~",
    ]
    for name in awkward:
        put(w, f"{p}/{name}", name.encode())
    assert sorted(names(w, p)) == sorted(awkward)
    for plain in (False, True):
        for name in awkward:
            import_file(w, f"{p}/{name}", name.encode() * 2, plain=plain)
    assert sorted(names(w, p)) == sorted(awkward)
    for name in awkward:
        assert w.workspace.get_status(f"{p}/{name}").size == 2 * len(name.encode())
        assert cloud(info(w, f"{p}/{name}")["signed_url"])[2] == name.encode() * 2
        rename(w, f"{p}/{name}", f"{p}/x")
        rename(w, f"{p}/x", f"{p}/{name}")
        w.workspace.delete(f"{p}/{name}")
    assert names(w, p) == []


def test_two_overwrites_at_once_leave_one_complete_version(w: WorkspaceClient, p: str) -> None:
    versions = [bytes([number]) * (2 * MEGABYTE) for number in range(2)]
    for _ in range(3):
        threads = [threading.Thread(target=import_file, args=(w, f"{p}/f", data)) for data in versions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert cloud(info(w, f"{p}/f")["signed_url"])[2] in versions


# --- notebooks


def test_source_with_a_language_is_a_notebook(w: WorkspaceClient, p: str) -> None:
    w.workspace.upload(f"{p}/n", HEADER + b"print(1)", format=ImportFormat.SOURCE, language=Language.PYTHON)
    status = w.workspace.get_status(f"{p}/n")
    assert (status.object_type, status.language, status.path) == (ObjectType.NOTEBOOK, Language.PYTHON, f"{p}/n")
    assert status.size is None
    assert status.modified_at is not None


@pytest.mark.parametrize(
    ("suffix", "header", "language"),
    [
        (".py", "# Databricks notebook source", Language.PYTHON),
        (".sql", "-- Databricks notebook source", Language.SQL),
        (".scala", "// Databricks notebook source", Language.SCALA),
        (".r", "# Databricks notebook source", Language.R),
        (".R", "# Databricks notebook source", Language.R),
    ],
)
def test_source_file_with_a_header_becomes_a_notebook_without_suffix(
    w: WorkspaceClient, p: str, suffix: str, header: str, language: Language
) -> None:
    for number, send in enumerate((put, import_file)):
        send(w, f"{p}/m{number}{suffix}", f"{header}\n1".encode())
        status = w.workspace.get_status(f"{p}/m{number}")
        assert (status.object_type, status.language) == (ObjectType.NOTEBOOK, language)
        with pytest.raises(ResourceDoesNotExist):
            w.workspace.get_status(f"{p}/m{number}{suffix}")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("plain.py", b"print(1)\n"),
        ("empty.py", b""),
        ("wrong.sql", HEADER),
        ("nearly.py", b"# Databricks notebook sources\n"),
        ("late.py", b"\n" + HEADER),
        ("header.txt", HEADER),
        (".py", HEADER),
        ("book.ipynb", b'{"cells": [], "nbformat": 4}'),
    ],
)
def test_everything_else_stays_a_file_unchanged(w: WorkspaceClient, p: str, name: str, data: bytes) -> None:
    put(w, f"{p}/{name}", data)
    status = w.workspace.get_status(f"{p}/{name}")
    assert (status.object_type, status.size) == (ObjectType.FILE, len(data))
    assert read(w, f"{p}/{name}") == data


def test_jupyter_files_become_notebooks_where_the_workspace_does_that(
    emulator: RunningEmulator, w: WorkspaceClient, p: str
) -> None:
    emulator.controls.set_knobs(auto_jupyter=True)
    data = b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 0}'
    put(w, f"{p}/book.ipynb", data)
    put(w, f"{p}/other.ipynb", b"")
    assert names(w, p) == ["book", "other.ipynb"]
    assert read(w, f"{p}/book") == data


def test_exported_source_starts_with_the_header_and_ends_with_a_newline(
    emulator: RunningEmulator, w: WorkspaceClient, p: str
) -> None:
    w.workspace.upload(f"{p}/n", b"print(1)", format=ImportFormat.SOURCE, language=Language.PYTHON)
    exported = base64.b64decode(w.workspace.export(f"{p}/n", format=ExportFormat.SOURCE).content or "")
    assert exported == HEADER + b"print(1)\n"
    emulator.controls.set_knobs(normalise_notebooks=False)
    assert read(w, f"{p}/n", ExportFormat.SOURCE) == b"print(1)"


def test_export_says_what_sort_of_file_it_is(w: WorkspaceClient, p: str) -> None:
    put(w, f"{p}/n.sql", b"-- Databricks notebook source\nSELECT 1")
    wanted = {
        ExportFormat.SOURCE: "sql",
        ExportFormat.JUPYTER: "ipynb",
        ExportFormat.HTML: "html",
        ExportFormat.DBC: "dbc",
    }
    assert {form: w.workspace.export(f"{p}/n", format=form).file_type for form in wanted} == wanted


def test_notebook_as_jupyter_has_its_cells(w: WorkspaceClient, p: str) -> None:
    source = (
        HEADER + b"a = 1\n\n# COMMAND ----------\n\n# MAGIC %md\n# MAGIC ## Title\n\n# COMMAND ----------\n\nb = 2\n"
    )
    w.workspace.upload(f"{p}/n", source, format=ImportFormat.SOURCE, language=Language.PYTHON)
    book = json.loads(read(w, f"{p}/n", ExportFormat.JUPYTER))
    assert book["nbformat"] == 4
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in book["cells"]] == [
        ("code", "a = 1"),
        ("markdown", "## Title"),
        ("code", "b = 2"),
    ]
    assert all(cell["outputs"] == [] for cell in book["cells"] if cell["cell_type"] == "code")


def test_jupyter_notebook_keeps_its_form_and_can_be_seen_as_source(w: WorkspaceClient, p: str) -> None:
    cells = [
        {"cell_type": "code", "source": ["a = 1\n", "b = 2"], "outputs": [], "metadata": {}, "execution_count": 1},
        {"cell_type": "markdown", "source": "# T", "metadata": {}},
    ]
    data = json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 2}).encode()
    w.workspace.upload(f"{p}/n", data, format=ImportFormat.JUPYTER)
    assert read(w, f"{p}/n", ExportFormat.JUPYTER) == read(w, f"{p}/n") == data
    expected = HEADER + b"a = 1\nb = 2\n\n# COMMAND ----------\n\n# MAGIC %md\n# MAGIC # T\n"
    assert read(w, f"{p}/n", ExportFormat.SOURCE) == expected
    query = {"path": f"{p}/n", "return_export_info": "true"}
    status = w.api_client.do("GET", "/api/2.0/workspace/get-status", query=query)
    assert isinstance(status, dict)
    assert (status["repos_export_format"], status["language"]) == ("JUPYTER", "PYTHON")
    with pytest.raises(DatabricksError, match="no Jupyter notebook"):
        w.workspace.upload(f"{p}/bad", b"{}", format=ImportFormat.JUPYTER)


# --- undocumented calls


@pytest.mark.parametrize("plain", [False, True], ids=["one segment", "slashes"])
def test_import_file_stores_binary_in_either_spelling(w: WorkspaceClient, p: str, plain: bool) -> None:
    import_file(w, f"{p}/b", b"\x00\x01", plain=plain)
    assert read(w, f"{p}/b") == b"\x00\x01"
    with pytest.raises(DatabricksError, match="File already exists at") as caught:
        import_file(w, f"{p}/b", b"", overwrite=False, plain=plain)
    assert isinstance(caught.value, ResourceAlreadyExists)
    assert w.workspace.get_status(f"{p}/b").size == 2


def test_import_file_refusals_have_their_statuses(emulator: RunningEmulator, w: WorkspaceClient, p: str) -> None:
    put(w, f"{p}/n.py", HEADER)
    put(w, f"{p}/f", b"")
    emulator.controls.reset()
    for path, overwrite in ((f"{p}/f", False), (f"{p}/n", True), (f"{p}/n.py", False), (f"{p}/x/f", True)):
        with pytest.raises(DatabricksError):
            import_file(w, path, HEADER, overwrite=overwrite)
    assert [one.status for one in emulator.controls.requests("import-file")] == [409, 400, 400, 404]


def test_import_file_over_a_notebook_with_its_suffix_changes_the_notebook(w: WorkspaceClient, p: str) -> None:
    import_file(w, f"{p}/n.py", HEADER + b"1\n")
    before = w.workspace.get_status(f"{p}/n").object_id
    import_file(w, f"{p}/n.py", HEADER + b"2\n")
    assert read(w, f"{p}/n") == HEADER + b"2\n"
    assert w.workspace.get_status(f"{p}/n").object_id == before


def test_import_file_has_the_limit_of_files(emulator: RunningEmulator, w: WorkspaceClient, p: str) -> None:
    emulator.controls.set_knobs(file_bytes_max=1000)
    import_file(w, f"{p}/f", bytes(1000))
    with pytest.raises(BadRequest):
        import_file(w, f"{p}/f", bytes(1001))
    assert w.workspace.get_status(f"{p}/f").size == 1000


def test_signed_url_gives_bytes_and_ranges_to_who_has_nothing_else(w: WorkspaceClient, p: str) -> None:
    import_file(w, f"{p}/f", b"0123456789")
    signed = info(w, f"{p}/f")["signed_url"]
    status, headers, body = cloud(signed)
    assert (status, body, headers["Accept-Ranges"]) == (200, b"0123456789", "bytes")
    assert headers["Content-Length"] == "10"
    assert headers["Last-Modified"]
    assert headers["ETag"]
    status, headers, body = cloud(signed, Range="bytes=1-1")
    assert (status, body, headers["Content-Range"]) == (206, b"1", "bytes 1-1/10")
    status, headers, body = cloud(signed, Range="bytes=10-")
    assert (status, headers["Content-Range"]) == (416, "bytes */10")
    assert b"<Code>InvalidRange</Code>" in body


def test_signed_url_refuses_databricks_credentials_and_changes(
    emulator: RunningEmulator, w: WorkspaceClient, p: str
) -> None:
    import_file(w, f"{p}/f", b"x")
    signed = info(w, f"{p}/f")["signed_url"]
    status, _, body = cloud(signed, Authorization=f"Bearer {emulator.environment()['DATABRICKS_TOKEN']}")
    assert (status, b"<Error>" in body) == (400, True)
    assert cloud({**signed, "url": signed["url"][:-1] + "!"})[0] == 403
    assert cloud(signed, "PUT", b"y")[0] == 403
    assert read(w, f"{p}/f") == b"x"


def test_signature_is_in_no_log(emulator: RunningEmulator, w: WorkspaceClient, p: str) -> None:
    import_file(w, f"{p}/f", b"x")
    cloud(info(w, f"{p}/f")["signed_url"])
    [logged] = emulator.controls.requests("cloud-get")
    assert logged.query == {}
    assert "signature" not in logged.path


@pytest.mark.parametrize(
    ("kind", "url_type", "status", "reason"),
    [
        ("AWS", "AwsPresignedUrl", 403, b"<Message>Request has expired</Message>"),
        ("AZURE", "AzureSasUri", 403, b"Signature not valid in the specified time frame"),
        ("GCP", "GcsSignedUrl", 400, b"<Code>ExpiredToken</Code>"),
    ],
)
def test_signed_url_ends_in_xml(
    emulator: RunningEmulator, w: WorkspaceClient, p: str, kind: str, url_type: str, status: int, reason: bytes
) -> None:
    emulator.controls.set_knobs(cloud=kind)
    emulator.controls.freeze(2_000_000_000)
    import_file(w, f"{p}/f", b"x")
    signed = info(w, f"{p}/f")["signed_url"]
    assert signed["url_type"] == url_type
    assert signed["expiry_time_millis"] == 2_000_000_900_000
    emulator.controls.advance(899.9)
    assert cloud(signed)[0] == 200
    emulator.controls.advance(0.1)
    late = cloud(signed)
    assert (late[0], late[1]["Content-Type"], reason in late[2]) == (status, "application/xml", True)
    fresh = info(w, f"{p}/f")["signed_url"]
    emulator.controls.expire("urls")
    assert cloud(fresh)[0] == status


def test_head_of_a_url_for_get_is_refused_by_aws_alone(emulator: RunningEmulator, w: WorkspaceClient, p: str) -> None:
    import_file(w, f"{p}/f", b"12345")
    found = {}
    for kind in ("AWS", "AZURE", "GCP"):
        emulator.controls.set_knobs(cloud=kind)
        status, headers, body = cloud(info(w, f"{p}/f")["signed_url"], "HEAD")
        found[kind] = status
        assert body == b""
        if status == 200:
            assert headers["Content-Length"] == "5"
    assert found == {"AWS": 403, "AZURE": 200, "GCP": 200}


def test_url_of_replaced_content_gives_the_old_bytes_or_nothing(
    emulator: RunningEmulator, w: WorkspaceClient, p: str
) -> None:
    for keep, expected in ((True, (200, b"old")), (False, (404, None))):
        emulator.controls.set_knobs(keep_replaced=keep)
        import_file(w, f"{p}/f{keep}", b"old")
        signed = info(w, f"{p}/f{keep}")["signed_url"]
        import_file(w, f"{p}/f{keep}", b"new")
        status, _, body = cloud(signed)
        assert (status, body if keep else None) == expected
        assert cloud(info(w, f"{p}/f{keep}")["signed_url"])[2] == b"new"


def test_only_files_have_signed_urls_and_both_listings_agree(
    emulator: RunningEmulator, w: WorkspaceClient, p: str
) -> None:
    put(w, f"{p}/n.py", HEADER)
    put(w, f"{p}/f", b"1")
    w.workspace.mkdirs(f"{p}/d")
    found = listed(w, p)
    assert [("signed_url" in one, one["object_info"]["object_type"]) for one in found] == [
        (False, "DIRECTORY"),
        (True, "FILE"),
        (False, "NOTEBOOK"),
    ]
    assert [one["object_info"] for one in found] == w.api_client.do(
        "GET", "/api/2.0/workspace/list", query={"path": p}
    )["objects"]
    for one in found:
        assert info(w, one["object_info"]["path"])["object_info"] == one["object_info"]
        assert ("signed_url" in info(w, one["object_info"]["path"])) is ("signed_url" in one)
    emulator.controls.set_knobs(signed_urls=False)
    assert not any("signed_url" in one for one in listed(w, p))


@pytest.mark.parametrize("kind", ["AWS", "AZURE", "GCP"])
def test_new_files_gives_a_url_to_put_to(emulator: RunningEmulator, w: WorkspaceClient, p: str, kind: str) -> None:
    emulator.controls.set_knobs(cloud=kind)
    data = os.urandom(6 * MEGABYTE)
    body = {"path": f"{p}/big", "content": base64.b64encode(data).decode()}
    answer = w.api_client.do("POST", "/api/2.0/workspace-files/new-files", body=body)
    assert isinstance(answer, dict)
    [signed] = answer["signed_urls"]
    assert names(w, p) == []  # nothing is there before the bytes are
    if signed["headers"]:
        assert cloud({**signed, "headers": {}}, "PUT", data)[0] == 400
    assert cloud(signed, "PUT", data)[0] == (201 if kind == "AZURE" else 200)
    assert w.workspace.get_status(f"{p}/big").size == len(data)
    assert cloud(info(w, f"{p}/big")["signed_url"])[2] == data
    put(w, f"{p}/n.py", HEADER)
    with pytest.raises(ResourceAlreadyExists):
        w.api_client.do("POST", "/api/2.0/workspace-files/new-files", body={"path": f"{p}/n"})


def test_without_new_files_import_file_still_works(emulator: RunningEmulator, w: WorkspaceClient, p: str) -> None:
    emulator.controls.set_knobs(new_files=False)
    with pytest.raises(PermissionDenied):
        w.api_client.do("POST", "/api/2.0/workspace-files/new-files", body={"path": f"{p}/f"})
    import_file(w, f"{p}/f", bytes(6 * MEGABYTE))
    assert w.workspace.get_status(f"{p}/f").size == 6 * MEGABYTE


def test_rename_takes_files_folders_and_notebooks_along_with_their_ids(w: WorkspaceClient, p: str) -> None:
    w.workspace.mkdirs(f"{p}/d/e")
    put(w, f"{p}/d/e/f", b"1")
    put(w, f"{p}/n.py", HEADER)
    ids = [w.workspace.get_status(f"{p}/{name}").object_id for name in ("d", "d/e", "d/e/f", "n")]
    rename(w, f"{p}/d", f"{p}/moved")
    rename(w, f"{p}/n", f"{p}/moved/n2")
    rename(w, f"{p}/moved/e/f", f"{p}/moved/e/g")
    after = ("moved", "moved/e", "moved/e/g", "moved/n2")
    assert [w.workspace.get_status(f"{p}/{name}").object_id for name in after] == ids
    assert names(w, p) == ["moved"]
    assert read(w, f"{p}/moved/e/g") == b"1"


def test_rename_replaces_a_file_and_nothing_else(w: WorkspaceClient, p: str) -> None:
    for name, data in (("a", b"A"), ("b", b"B"), ("n.py", HEADER), ("m.py", HEADER)):
        put(w, f"{p}/{name}", data)
    w.workspace.mkdirs(f"{p}/d")
    w.workspace.mkdirs(f"{p}/e")
    moved = w.workspace.get_status(f"{p}/a").object_id
    rename(w, f"{p}/a", f"{p}/b")
    assert read(w, f"{p}/b") == b"A"
    assert w.workspace.get_status(f"{p}/b").object_id == moved
    for source, target in (("b", "n"), ("n", "b"), ("n", "m"), ("b", "d"), ("d", "e"), ("d", "b")):
        with pytest.raises(ResourceAlreadyExists):
            rename(w, f"{p}/{source}", f"{p}/{target}")
    rename(w, f"{p}/b", f"{p}/b")
    assert names(w, p) == ["b", "d", "e", "m", "n"]


def test_rename_that_cannot_be(w: WorkspaceClient, p: str) -> None:
    w.workspace.mkdirs(f"{p}/d")
    with pytest.raises(NotFound):
        rename(w, f"{p}/missing", f"{p}/x")
    with pytest.raises(NotFound, match="parent folder"):
        rename(w, f"{p}/d", f"{p}/x/y")
    with pytest.raises(BadRequest):
        rename(w, f"{p}/d", f"{p}/d/e")


@pytest.mark.parametrize("knob", ["rename", "workspace_files"])
def test_undocumented_calls_can_be_missing(emulator: RunningEmulator, w: WorkspaceClient, p: str, knob: str) -> None:
    emulator.controls.set_knobs(**{knob: False})
    with pytest.raises(NotFound) as caught:
        rename(w, p, f"{p}2") if knob == "rename" else info(w, p)
    assert caught.value.error_code == "ENDPOINT_NOT_FOUND"


# --- trouble


@pytest.mark.parametrize(
    ("status", "retry_after", "sleeps"), [(429, "1", 1), (429, "7", 7), (503, None, 1), (503, "soon", 1)]
)
def test_throttled_calls_are_retried_when_they_were_told_to(
    emulator: RunningEmulator, w: WorkspaceClient, status: int, retry_after: str | None, sleeps: int
) -> None:
    emulator.controls.fault("status", "me", status=status, retry_after=retry_after)
    assert w.current_user.me().active
    assert emulator.controls.counters().requests("me") == 2
    clock = w.config.clock
    assert isinstance(clock, SkippingClock)
    [slept] = clock.slept
    assert sleeps <= slept < sleeps + 1


def test_other_errors_are_raised_at_once(emulator: RunningEmulator, w: WorkspaceClient) -> None:
    emulator.controls.fault("status", "me", status=500)
    with pytest.raises(InternalError):
        w.current_user.me()
    assert emulator.controls.counters().requests("me") == 1


@pytest.mark.parametrize("what", ["reset", "garbage"])
def test_broken_connections_are_retried(emulator: RunningEmulator, w: WorkspaceClient, what: str) -> None:
    emulator.controls.fault(what, "me")
    assert w.current_user.me().active
    assert emulator.controls.counters().requests("me") == 2


def test_faults_of_the_storage_are_worded_as_the_cloud_does(
    emulator: RunningEmulator, w: WorkspaceClient, p: str
) -> None:
    import_file(w, f"{p}/f", b"x")
    emulator.controls.fault("status", "cloud-*", status=503)
    status, headers, body = cloud(info(w, f"{p}/f")["signed_url"])
    assert (status, headers["Content-Type"]) == (503, "application/xml")
    assert b"<Code>ServiceUnavailable</Code>" in body


def test_unknown_call_is_no_endpoint(w: WorkspaceClient) -> None:
    with pytest.raises(NotFound, match=r"No API found for 'GET /api/2\.0/nothing'"):
        w.api_client.do("GET", "/api/2.0/nothing")


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'{"path": 7}'])
def test_malformed_calls_are_bad_requests(w: WorkspaceClient, body: bytes) -> None:
    for path in ("workspace/mkdirs", "workspace/delete", "workspace/rename", "workspace-files/new-files"):
        with pytest.raises(BadRequest):
            w.api_client.do("POST", f"/api/2.0/{path}", data=body)


def test_listings_can_lag_behind(emulator: RunningEmulator, w: WorkspaceClient, p: str) -> None:
    controls = emulator.controls
    controls.freeze()
    controls.set_knobs(list_lag_ms=1000)
    controls.advance(2)
    put(w, f"{p}/new", b"1")
    assert (names(w, p), listed(w, p)) == ([], [])
    assert w.workspace.get_status(f"{p}/new").size == 1
    controls.advance(0.999)
    assert names(w, p) == []
    controls.advance(0.001)
    assert names(w, p) == ["new"]
    import_file(w, f"{p}/new", b"longer")
    rename(w, f"{p}/new", f"{p}/other")
    assert [(one["object_info"]["path"], one["object_info"]["size"]) for one in listed(w, p)] == [(f"{p}/new", 1)]
    controls.advance(1)
    assert names(w, p) == ["other"]
    w.workspace.delete(f"{p}/other")
    assert names(w, p) == ["other"]


def test_metadata_can_lag_behind(emulator: RunningEmulator, w: WorkspaceClient, p: str) -> None:
    controls = emulator.controls
    controls.freeze()
    controls.set_knobs(stat_lag_ms=1000)
    put(w, f"{p}/f", b"1")
    with pytest.raises(NotFound):
        info(w, f"{p}/f")
    assert names(w, p) == ["f"]
    controls.advance(1)
    import_file(w, f"{p}/f", b"22")
    assert w.workspace.get_status(f"{p}/f").size == 1
    controls.advance(1)
    assert w.workspace.get_status(f"{p}/f").size == 2


def test_listing_over_the_limit_is_refused(emulator: RunningEmulator, w: WorkspaceClient, p: str) -> None:
    emulator.controls.set_knobs(list_max=2)
    for name in "ab":
        put(w, f"{p}/{name}", b"")
    assert names(w, p) == ["a", "b"]
    put(w, f"{p}/c", b"")
    for ask in (names, listed):
        with pytest.raises(DatabricksError) as caught:
            ask(w, p)
        assert caught.value.error_code == "MAX_LIST_SIZE_EXCEEDED"


def test_answers_in_chunks_are_the_same_answers(emulator: RunningEmulator, w: WorkspaceClient, p: str) -> None:
    for name in "abc":
        put(w, f"{p}/{name}", bytes(20_000))
    emulator.controls.set_knobs(chunked=True)
    assert names(w, p) == ["a", "b", "c"]
    assert read(w, f"{p}/a") == bytes(20_000)


# --- users


def test_reader_may_look_and_stranger_may_not_even_know(
    emulator: RunningEmulator, client: Client, w: WorkspaceClient, p: str
) -> None:
    put(w, f"{p}/f", b"1")
    emulator.controls.merge_state(
        {
            "users": {
                "reader@example.com": {"token": "reader", "grants": {p: "CAN_READ"}},
                "editor@example.com": {"token": "editor", "grants": {p: "CAN_EDIT"}},
                "stranger@example.com": {"token": "stranger"},
            }
        }
    )
    reader, editor, stranger = (client(token=name) for name in ("reader", "editor", "stranger"))
    assert reader.workspace.get_status(f"{p}/f").size == 1
    assert read(reader, f"{p}/f") == b"1"
    changes: list[Callable[[WorkspaceClient], object]] = [
        lambda c: put(c, f"{p}/f", b"2", overwrite=True),
        lambda c: put(c, f"{p}/g", b"2"),
        lambda c: import_file(c, f"{p}/f", b"2"),
        lambda c: c.workspace.mkdirs(f"{p}/d"),
        lambda c: rename(c, f"{p}/f", f"{p}/h"),
        lambda c: c.workspace.delete(f"{p}/h" if c is editor else f"{p}/f"),
    ]
    for change in changes:
        with pytest.raises(PermissionDenied):
            change(reader)
    for change in changes[:2]:
        with pytest.raises(NotFound):
            change(stranger)
    for look in (names, listed, info):
        with pytest.raises(NotFound):
            look(stranger, p)
    assert read(w, f"{p}/f") == b"1"
    for change in changes:
        change(editor)
    assert names(w, p) == ["d", "g"]


def test_users_see_their_own_home_and_what_is_shared(emulator: RunningEmulator, client: Client) -> None:
    emulator.controls.merge_state({"users": {"ann@example.com": {"token": "ann"}}})
    ann = client(token="ann")
    assert names(ann, "/") == ["Repos", "Shared", "Users"]
    assert names(ann, "/Users") == ["ann@example.com"]
    put(ann, "/Users/ann@example.com/f", b"")
    put(ann, "/Shared/f", b"")
    with pytest.raises(PermissionDenied):
        put(ann, "/f", b"")
    with pytest.raises(NotFound):
        names(ann, "/Users/me@example.com")


def test_permissions_are_shown_and_granted(
    emulator: RunningEmulator, client: Client, w: WorkspaceClient, p: str
) -> None:
    emulator.controls.merge_state({"users": {"ann@example.com": {"token": "ann"}}})
    put(w, f"{p}/f", b"1")
    folder, file = (str(w.workspace.get_status(path).object_id) for path in (p, f"{p}/f"))
    grant = AccessControlRequest(user_name="ann@example.com", permission_level=PermissionLevel.CAN_READ)
    w.permissions.update("directories", folder, access_control_list=[grant])
    assert read(client(token="ann"), f"{p}/f") == b"1"
    shown = {
        one.user_name: one.all_permissions[0]
        for one in w.permissions.get("files", file).access_control_list or []
        if one.all_permissions
    }
    assert shown["ann@example.com"].permission_level is PermissionLevel.CAN_READ
    assert shown["ann@example.com"].inherited_from_object == [f"/directories/{folder}"]
    assert shown["me@example.com"].permission_level is PermissionLevel.CAN_MANAGE
    w.permissions.set("directories", folder, access_control_list=[])
    with pytest.raises(NotFound):
        read(client(token="ann"), f"{p}/f")
    with pytest.raises(NotFound):
        w.permissions.get("notebooks", file)


# --- Git folders


def test_git_folders_are_made_switched_listed_and_removed(w: WorkspaceClient) -> None:
    with pytest.raises(NotFound):
        w.workspace.get_status("/Repos/me@example.com")
    made = w.repos.create("https://git.example.com/team/tools.git", "gitHub")
    assert made.path == "/Repos/me@example.com/tools"
    assert w.workspace.get_status(made.path).object_type is ObjectType.REPO
    put(w, f"{made.path}/f", b"1")
    assert made.id is not None
    w.repos.update(made.id, branch="feature")
    found = w.repos.get(made.id)
    assert (found.branch, found.head_commit_id != made.head_commit_id) == ("feature", True)
    query = {"path": f"{made.path}/f", "return_git_info": "true"}
    status = w.api_client.do("GET", "/api/2.0/workspace/get-status", query=query)
    assert isinstance(status, dict)
    assert status["git_info"]["branch"] == "feature"
    w.repos.delete(made.id)
    assert list(w.repos.list()) == []
    with pytest.raises(NotFound):
        w.workspace.get_status(made.path)


def test_git_folders_are_listed_in_pages(emulator: RunningEmulator, w: WorkspaceClient) -> None:
    for number in range(45):
        w.repos.create("https://git.example.com/x", "gitHub", path=f"/Repos/me@example.com/r{number:02}")
    emulator.controls.reset()
    assert len(list(w.repos.list(path_prefix="/Repos/me@example.com"))) == 45
    assert emulator.controls.counters().requests("repos-list") == 3


def test_git_folder_elsewhere_looks_like_a_folder(w: WorkspaceClient, p: str) -> None:
    w.repos.create("https://git.example.com/x", "gitHub", path=f"{p}/code")
    [found] = listed(w, p)
    assert found["object_info"]["object_type"] == "DIRECTORY"
    assert found["object_info"]["directory_info"] == {"is_git_folder": True}


@pytest.mark.parametrize("path", ["/Repos/f", "/Repos/me@example.com/f"])
def test_plain_things_cannot_be_made_among_git_folders(w: WorkspaceClient, path: str) -> None:
    w.repos.create("https://git.example.com/x", "gitHub")
    with pytest.raises(DatabricksError, match="Only Git folders"):
        put(w, path, b"")
    with pytest.raises(BadRequest, match="Only Git folders"):
        w.workspace.mkdirs(path)


def test_undocumented_calls_for_git_folders(w: WorkspaceClient) -> None:
    made = w.repos.create("https://git.example.com/x", "gitHub")
    project = w.api_client.do("GET", f"/api/2.0/projects/{made.id}")
    assert isinstance(project, dict)
    assert (project["git_state"], project["path"]) == ("CLEAN", made.path)
    branches = w.api_client.do("GET", f"/api/2.0/repos/{made.id}/branch-metadata")
    assert branches == {"branches": [{"name": "main", "commit_id": made.head_commit_id}]}
    with pytest.raises(Unauthenticated) as caught:
        w.api_client.do("POST", f"/api/2.0/projects/{made.id}/fetch-and-checkout", body={"branch": "x"})
    details = caught.value.get_error_details()
    assert details.error_info is not None
    assert details.error_info.reason == "GIT_CREDENTIAL_MISSING"


# --- running it


def test_client_works_over_tls_against_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with DatabricksEmulator.spawn(tls=True, user="tls@example.com") as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        w = WorkspaceClient()
        put(w, "/Users/tls@example.com/f", b"1")
        assert read(w, "/Users/tls@example.com/f") == b"1"
        assert running.controls.counters().failures == 0


def test_module_prints_what_to_export() -> None:
    command = [sys.executable, "-m", "fusekit_databricks.emulator", "--user", "you@example.com", "--auth", "oauth"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()  # it listens
        process.terminate()
        printed, _ = process.communicate(timeout=20)
    names_ = [line.removeprefix("export ").partition("=")[0] for line in printed.splitlines()]
    assert names_ == ["DATABRICKS_HOST", "DATABRICKS_CLIENT_ID", "DATABRICKS_CLIENT_SECRET"]


@pytest.mark.parametrize("arguments", [["--port", "many"], ["--auth", "magic"], ["--what"]])
def test_module_refuses_what_makes_no_sense(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "fusekit_databricks.emulator", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# --- state


def test_state_is_put_there_without_a_call_and_taken_along(emulator: RunningEmulator, w: WorkspaceClient) -> None:
    emulator.controls.merge_state(
        {
            "objects": {
                "/Shared/a/b/text": {"text": "grüße", "modified_at": 12345},
                "/Workspace/Shared/bytes": {"content": base64.b64encode(b"\xff\x00").decode(), "object_id": 77},
                "/Shared/nb": {"type": "NOTEBOOK", "language": "SQL", "text": "SELECT 1"},
                "/Shared/lib": {"type": "LIBRARY"},
                "/Shared/empty": {"type": "DIRECTORY"},
            }
        }
    )
    assert read(w, "/Shared/a/b/text") == "grüße".encode()
    assert w.workspace.get_status("/Shared/a/b/text").modified_at == 12345
    assert w.workspace.get_status("/Shared/bytes").object_id == 77
    assert w.workspace.get_status("/Shared/nb").language is Language.SQL
    assert names(w, "/Shared") == ["a", "bytes", "empty", "lib", "nb"]
    taken = emulator.controls.state()
    before = w.api_client.do("GET", "/api/2.0/workspace/list", query={"path": "/Shared"})
    w.workspace.delete("/Shared/a", recursive=True)
    emulator.controls.replace_state(taken)
    assert w.api_client.do("GET", "/api/2.0/workspace/list", query={"path": "/Shared"}) == before


@pytest.mark.parametrize(
    "state",
    [
        {"things": {}},
        {"objects": {"relative": {}}},
        {"objects": {"/Shared/f": {"type": "PIPE"}}},
        {"objects": {"/Shared/f": {"color": "red"}}},
        {"objects": {"/Shared/f": {"text": ""}, "/Shared/f/g": {"text": ""}}},
        {"objects": {"/Shared": {"text": "in the way"}}},
        {"objects": {"/Shared/n": {"type": "NOTEBOOK", "language": "COBOL"}}},
        {"users": {"x": {"grants": {"/": "CAN_FLY"}}}},
    ],
)
def test_state_that_makes_no_sense_changes_nothing(emulator: RunningEmulator, state: dict[str, Any]) -> None:
    before = emulator.controls.state()
    with pytest.raises(ControlError):
        emulator.controls.merge_state({"objects": {"/Shared/good": {}}, **state} if "users" in state else state)
    assert emulator.controls.state() == before


def test_knobs_are_checked(emulator: RunningEmulator) -> None:
    for wrong in ({"speed": 1}, {"cloud": "ICLOUD"}, {"new_files": 1}, {"list_lag_ms": True}, {"list_lag_ms": "x"}):
        with pytest.raises(ControlError):
            emulator.controls.set_knobs(**wrong)
    assert emulator.controls.set_knobs(url_lifetime_s=5)["url_lifetime_s"] == 5
