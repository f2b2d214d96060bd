"""The backend ``http`` against a web server: what it asks, what it believes, and what trouble becomes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from fusekit.api import (
    ConfigError,
    Denied,
    Entry,
    Invalid,
    Kind,
    NotDirectory,
    NotFound,
    Stale,
    Unavailable,
    Unreachable,
)
from fusekit.backends.http import HttpBackend, HttpsBackend, Options
from fusekit.config import fill
from fusekit.errors import BackendError
from fusekit.plugins.sources import resolve
from fusekit.testing.connected import asked, connected
from fusekit.testing.harness import ME, Place, PlainMount, listed, looked_up, opened, read
from fusekit.testing.raw import running
from fusekit.testing.running import RunningEmulator
from fusekit.testing.web import WebEmulator, files_state

FILES = {"a.txt": b"first", "b.bin": bytes(range(256)) * 100, "sub/c": b"third", "sub/deep/d": b"fourth"}
LATER_S = 1_700_000_060.0


@pytest.fixture
def server() -> Iterator[RunningEmulator]:
    with WebEmulator.start() as running:
        running.controls.replace_state(files_state(FILES))
        yield running


@asynccontextmanager
async def place_at(url: str, *, ca_file: Path | None = None, **options: Any) -> AsyncIterator[Place]:
    async with connected(ca_file) as mount, opened(HttpBackend(Options(url, **options), mount), seeded=True) as place:
        yield place


async def mounted_at(url: str, **options: Any) -> Entry:
    """Return the root, or raise why there is none."""
    async with connected() as mount:
        return await HttpBackend(Options(url, **options), mount).fusekit_root()


def change(server: RunningEmulator, path: str, data: bytes, modified_s: float = LATER_S) -> None:
    state = files_state({path: data})
    state["files"][path]["modified_s"] = modified_s
    server.controls.merge_state(state)


# --- what it costs


@pytest.mark.parametrize(
    ("form", "first", "later"),
    [
        ("webdav", {"propfind": 2}, {"propfind": 1}),
        ("nginx-json", {"propfind": 1, "get": 2}, {"get": 1}),
        ("caddy", {"propfind": 1, "get": 2}, {"get": 1}),
        ("rclone", {"propfind": 1, "get": 2}, {"get": 1}),
        # Once it is found out whether the minutes are those of GMT.
        ("nginx-html", {"propfind": 1, "get": 2, "head": 1}, {"get": 1}),
        ("nginx-rounded", {"propfind": 1, "get": 2, "head": 2}, {"get": 1, "head": 1}),
        ("apache-table", {"propfind": 1, "get": 2, "head": 2}, {"get": 1, "head": 1}),
        ("python", {"propfind": 1, "get": 2, "head": 2}, {"get": 1, "head": 1}),
    ],
)
async def test_a_folder_costs_one_request_where_its_listing_is_exact(
    server: RunningEmulator, form: str, first: dict[str, int], later: dict[str, int]
) -> None:
    async with place_at(f"{server.url}/{form}") as place:
        found = await listed(place.hooks, place.directory)
        assert asked(server.controls) == first
        assert (found["b.bin"].size, found["a.txt"].size) == (25_600, 5)
        await listed(place.hooks, found["sub"])
        assert asked(server.controls) == later
        await place.hooks.fusekit_root(caller=ME)
        assert asked(server.controls) == {}


@pytest.mark.parametrize("form", ["webdav", "nginx-json", "nginx-html", "apache-pre", "rclone", "python"])
async def test_a_read_and_a_stat_of_what_was_listed_cost_one_request_each(server: RunningEmulator, form: str) -> None:
    async with place_at(f"{server.url}/{form}") as place:
        found = await listed(place.hooks, place.directory)
        asked(server.controls)
        assert await read(place.hooks, found["b.bin"], 100, 300) == FILES["b.bin"][100:300]
        assert asked(server.controls) == {"get": 1}
        again = await looked_up(place.hooks, place.directory, "b.bin", found["b.bin"])
        assert again.version == found["b.bin"].version
        assert asked(server.controls) == {"propfind" if form == "webdav" else "head": 1}


async def test_a_listing_that_is_forced_is_not_tried_otherwise(server: RunningEmulator) -> None:
    async with place_at(f"{server.url}/apache-pre", index="html") as place:
        await listed(place.hooks, place.directory)
    assert "propfind" not in asked(server.controls)
    async with place_at(f"{server.url}/webdav", index="webdav") as place:
        await listed(place.hooks, place.directory)
    assert asked(server.controls) == {"propfind": 2}


@pytest.mark.parametrize(("index", "form"), [("json", "nginx-html"), ("html", "nginx-json")])
async def test_a_listing_of_another_form_than_the_forced_one_is_refused(
    server: RunningEmulator, index: str, form: str
) -> None:
    with pytest.raises(Invalid, match=index.upper()):
        await mounted_at(f"{server.url}/{form}", index=index)


async def test_a_missing_name_costs_two_requests_only_until_a_redirect_to_a_folder_was_seen(
    server: RunningEmulator,
) -> None:
    async with place_at(f"{server.url}/nginx-json") as place:
        await listed(place.hooks, place.directory)
        asked(server.controls)
        for costs in (2, 1):
            with pytest.raises(NotFound):
                await looked_up(place.hooks, place.directory, "missing")
            assert asked(server.controls) == {"head": costs}
            assert (await looked_up(place.hooks, place.directory, "sub")).kind is Kind.DIRECTORY
            assert asked(server.controls) == {"head": 1}


async def test_heads_are_asked_many_at_once_and_never_too_many(server: RunningEmulator) -> None:
    server.controls.replace_state(files_state({f"f{number}": b"x" for number in range(100)}))
    async with place_at(f"{server.url}/python") as place:
        server.controls.fault("stall", "head", hold_s=30.0, count=16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listed, place.hooks, place.directory)
            await trio.to_thread.run_sync(server.controls.wait_for_stalled, 8)
            assert len(server.controls.requests("head")) <= 16
            server.controls.release()
            server.controls.clear_faults()
    assert len(server.controls.requests("head")) == 100


# --- versions


@pytest.mark.parametrize("form", ["webdav", "nginx-json", "nginx-html", "apache-table", "rclone", "python", "caddy"])
@pytest.mark.parametrize("data", [b"other", b"longer than it was"])
async def test_content_that_changed_after_it_was_listed_is_stale(
    server: RunningEmulator, form: str, data: bytes
) -> None:
    async with place_at(f"{server.url}/{form}") as place:
        found = await listed(place.hooks, place.directory)
        change(server, "a.txt", data)
        with pytest.raises(Stale):
            await read(place.hooks, found["a.txt"])
        fresh = await looked_up(place.hooks, place.directory, "a.txt", found["a.txt"])
        assert fresh.version != found["a.txt"].version
        assert await read(place.hooks, fresh) == data
        assert (await listed(place.hooks, place.directory))["a.txt"].version == fresh.version


async def test_etags_of_listings_that_files_do_not_have_are_given_up(server: RunningEmulator) -> None:
    server.controls.set_knobs(etag_suffix="-gzip")
    async with place_at(f"{server.url}/webdav") as place:
        found = await listed(place.hooks, place.directory)
        with pytest.raises(Stale):
            await read(place.hooks, found["a.txt"])
        again = await looked_up(place.hooks, place.directory, "a.txt", found["a.txt"])
        assert await read(place.hooks, again) == FILES["a.txt"]
        assert (await listed(place.hooks, place.directory))["a.txt"].version == again.version


async def test_minutes_of_another_zone_than_gmt_are_not_believed(server: RunningEmulator) -> None:
    server.controls.set_knobs(zone_s=3600)
    async with place_at(f"{server.url}/nginx-html") as place:
        found = await listed(place.hooks, place.directory)
        assert asked(server.controls)["head"] == 3  # one to compare, and then one for each file
        assert (await looked_up(place.hooks, place.directory, "a.txt", found["a.txt"])).version == found[
            "a.txt"
        ].version
        assert await read(place.hooks, found["a.txt"]) == FILES["a.txt"]


async def test_minutes_that_turn_out_to_be_of_another_zone_are_given_up(server: RunningEmulator) -> None:
    async with place_at(f"{server.url}/nginx-html") as place:
        found = (await listed(place.hooks, place.directory))["a.txt"]
        assert found.version is not None
        hour_off = attrs.evolve(found, version=f"m:{int(found.version[2:].partition('-')[0]) + 3600}-5")
        fresh = await looked_up(place.hooks, place.directory, "a.txt", hour_off)
        assert (await listed(place.hooks, place.directory))["a.txt"].version == fresh.version
        assert fresh.version is not None
        assert fresh.version.startswith("e:")


# --- trouble


@pytest.mark.parametrize("form", ["webdav", "nginx-json", "python"])
async def test_what_goes_wrong_is_said(server: RunningEmulator, form: str) -> None:
    async with place_at(f"{server.url}/{form}") as place:
        found = await listed(place.hooks, place.directory)
        for fault, error in (
            ({"what": "status", "status": 403}, Denied),
            ({"what": "status", "status": 503}, Unavailable),
        ):
            server.controls.fault(**fault, count=1)  # type: ignore[arg-type]
            with pytest.raises(error):
                await read(place.hooks, found["b.bin"])
            server.controls.clear_faults()
            server.controls.fault(**fault, count=1)  # type: ignore[arg-type]
            with pytest.raises(error):
                await listed(place.hooks, found["sub"])
            server.controls.clear_faults()
        assert await read(place.hooks, found["b.bin"]) == FILES["b.bin"]


@pytest.mark.parametrize("form", ["webdav", "nginx-json", "nginx-html", "python"])
@pytest.mark.parametrize("what", ["truncated", "short", "overlong", "html", "garbage"])
async def test_a_body_that_is_not_the_file_is_an_error_and_no_bytes(
    server: RunningEmulator, form: str, what: str
) -> None:
    async with place_at(f"{server.url}/{form}") as place:
        found = await listed(place.hooks, place.directory)
        server.controls.fault(what, "get", count=1)
        with pytest.raises(BackendError):
            await read(place.hooks, found["b.bin"])
        server.controls.clear_faults()
        assert await read(place.hooks, found["b.bin"]) == FILES["b.bin"]


@pytest.mark.parametrize("form", ["webdav", "nginx-json", "apache-plain"])
async def test_a_listing_that_is_cut_is_no_shorter_listing(server: RunningEmulator, form: str) -> None:
    async with place_at(f"{server.url}/{form}") as place:
        server.controls.fault("truncated", "propfind" if form == "webdav" else "get", count=1)
        with pytest.raises(BackendError):
            await listed(place.hooks, place.directory)
        assert set(await listed(place.hooks, place.directory)) == {"a.txt", "b.bin", "sub"}


async def test_a_file_that_vanished_since_it_was_listed_is_left_out(server: RunningEmulator) -> None:
    async with place_at(f"{server.url}/python") as place:
        server.controls.fault("status", "head", status=404, contains="a.txt", count=None)
        assert set(await listed(place.hooks, place.directory)) == {"b.bin", "sub"}


async def test_a_file_that_may_not_be_read_is_listed(server: RunningEmulator) -> None:
    async with place_at(f"{server.url}/python") as place:
        server.controls.fault("status", status=403, contains="a.txt", count=None)
        found = await listed(place.hooks, place.directory)
        assert found["a.txt"].size is None
        with pytest.raises(Denied):
            await read(place.hooks, found["a.txt"])


async def test_a_failed_head_fails_the_listing(server: RunningEmulator) -> None:
    async with place_at(f"{server.url}/python") as place:
        server.controls.fault("status", "head", status=503, contains="a.txt", count=1)
        with pytest.raises(Unavailable):
            await listed(place.hooks, place.directory)


async def test_a_server_without_ranges_sends_the_whole_and_is_known_by_it(server: RunningEmulator) -> None:
    async with place_at(f"{server.url}/python") as place:
        found = await listed(place.hooks, place.directory)
        assert place.hooks.fusekit_capabilities(directory=place.directory).ranges
        assert await read(place.hooks, found["b.bin"], 1000, 2000) == FILES["b.bin"][1000:2000]
        assert not place.hooks.fusekit_capabilities(directory=place.directory).ranges


async def test_a_busy_server_is_not_taken_for_one_without_webdav(server: RunningEmulator) -> None:
    server.controls.fault("status", "propfind", status=503, count=1)
    async with connected() as mount:
        backend = HttpBackend(Options(f"{server.url}/webdav"), mount)
        with pytest.raises(Unavailable):
            await backend.fusekit_root()
        async with opened(backend, seeded=True) as place:
            found = await listed(place.hooks, place.directory)
    assert (found["a.txt"].version or "").startswith("e:")


@pytest.mark.parametrize(
    ("path", "error"), [("webdav/a.txt", NotDirectory), ("nginx-json/a.txt", NotFound), ("webdav/no", NotFound)]
)
async def test_an_url_that_is_no_folder_is_refused(
    server: RunningEmulator, path: str, error: type[BackendError]
) -> None:
    with pytest.raises(error):
        await mounted_at(f"{server.url}/{path}")


async def test_files_without_a_time_of_their_own_are_checked_by_size(server: RunningEmulator) -> None:
    server.controls.set_knobs(file_times=False)
    async with place_at(f"{server.url}/rclone") as place:
        found = await listed(place.hooks, place.directory)
        assert await read(place.hooks, found["a.txt"]) == FILES["a.txt"]
        asked(server.controls)
        assert await read(place.hooks, found["b.bin"]) == FILES["b.bin"]
        assert asked(server.controls) == {"get": 1}
        change(server, "a.txt", b"of another size")
        with pytest.raises(Stale):
            await read(place.hooks, found["a.txt"])


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_file_that_is_elsewhere_is_read_there_without_credentials(status: int) -> None:
    async with running() as here, running() as there:
        page = b'<ul><li><a href="f">f</a></li></ul>'
        moved = b"HTTP/1.1 %d Moved\r\nLocation: http://localhost:%d/f\r\nContent-Length: 0\r\n\r\n" % (
            status,
            there.port,
        )
        listing = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(page) + page
        here.reply(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n", listing, listing, moved)
        there.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nthere")
        async with place_at(f"{here.url}/", headers="X-Api-Key: s3cret", bearer="t0k3n") as place:
            found = await listed(place.hooks, place.directory)
            assert found["f"].size is None  # only reading tells
            assert await read(place.hooks, found["f"]) == b"there"
        assert {"authorization", "x-api-key"} <= set(here.requests[-1].headers)
        assert not {"authorization", "x-api-key"} & set(there.requests[0].headers)


def answered(body: bytes, more: bytes = b"Content-Type: text/html", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\n%s\r\nContent-Length: %d\r\n\r\n" % (status, more, len(body)) + body


async def test_an_address_that_redirects_is_refused_with_the_one_to_use() -> None:
    async with running() as here:
        moved = answered(b"", b"Location: /new/place/", b"301 Moved")
        here.reply(answered(b"", b"X: y", b"405 No"), moved, answered(b'<a href="f">f</a>'))
        with pytest.raises(Invalid, match=r"mount that address") as raised:
            await mounted_at(f"{here.url}/old/")
        assert f"{here.url}/new/place/" in str(raised.value)


async def test_a_folder_that_redirects_is_listed_where_it_is() -> None:
    async with running() as here:
        top = answered(b'<a href="sub/">sub</a>')
        moved = answered(b"", b"Location: /elsewhere/", b"302 Found")
        page = answered(b'<a href="f">f</a> <a href="/elsewhere/g">g</a> <a href="/sub/h">h</a>')
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
        here.reply(answered(b"", b"X: y", b"405 No"), top, top, moved, page, head)
        async with place_at(f"{here.url}/") as place:
            sub = (await listed(place.hooks, place.directory))["sub"]
            assert set(await listed(place.hooks, sub)) == {"f", "g"}


async def test_what_is_no_listing_is_no_folder() -> None:
    async with running() as here:
        here.reply(answered(b"", b"X: y", b"405 No"), answered(b"bytes", b"Content-Type: application/octet-stream"))
        with pytest.raises(NotDirectory, match="octet-stream"):
            await mounted_at(f"{here.url}/file")


# --- signing in


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"bearer": "t0k3n"}, "Bearer t0k3n"),
        ({"user": "me", "password": "söcret"}, "Basic bWU6c8O2Y3JldA=="),
        ({"headers": "Authorization: Special abc\nX-More: 1"}, "Special abc"),
    ],
)
@pytest.mark.parametrize("form", ["webdav", "nginx-html"])
async def test_requests_are_signed(form: str, options: dict[str, Any], sent: str) -> None:
    with WebEmulator.start(authorization=sent) as server:
        server.controls.replace_state(files_state(FILES))
        async with place_at(f"{server.url}/{form}", **options) as place:
            found = await listed(place.hooks, place.directory)
            assert await read(place.hooks, found["a.txt"]) == FILES["a.txt"]


@pytest.mark.parametrize(
    ("options", "says"), [({}, "wants a sign-in"), ({"bearer": "wr0ng"}, "refuses these credentials")]
)
async def test_a_refused_sign_in_says_what_to_do_and_no_secret(options: dict[str, Any], says: str) -> None:
    with WebEmulator.start(authorization="Bearer right") as server, pytest.raises(Denied, match=says) as raised:
        await mounted_at(f"{server.url}/nginx-json", **options)
    assert "wr0ng" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"bearer": "a", "user": "b"},
        {"password": "a"},
        {"bearer": "with a blank"},
        {"user": "a:b", "password": "c"},
    ],
)
async def test_credentials_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    async with connected() as mount:
        with pytest.raises(ConfigError):
            HttpBackend(Options("http://127.0.0.1:1/", **options), mount)


@pytest.mark.parametrize("name", ["bearer", "password", "headers"])
def test_secrets_are_taken_from_no_flag(name: str) -> None:
    with pytest.raises(ConfigError, match="secret"):
        fill(Options, "http", path="http://h/", flags={name: "x"}, environment={}, profile={})


def test_a_header_that_is_none_is_not_quoted() -> None:
    with pytest.raises(ConfigError) as raised:
        fill(Options, "http", path="http://h/", flags={}, environment={"FUSEKIT_HTTP_HEADERS": "s3cret"}, profile={})
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "backend", "url"),
    [
        ("http:https://h/data", HttpBackend, "https://h/data/"),
        ("http://h/data", HttpBackend, "http://h/data/"),
        ("https://H:8443/data/", HttpsBackend, "https://h:8443/data/"),
    ],
)
def test_an_address_is_a_source(source: str, backend: type[HttpBackend], url: str) -> None:
    request = resolve(source, environment={})
    assert request.source.scheme == backend.scheme
    asked_for: list[str] = []

    def http(base_url: str, auth: object, explain: object) -> object:
        asked_for.append(base_url)
        return object()

    backend(request.source.options, PlainMount(http))  # type: ignore[arg-type]
    assert asked_for == [url]


@pytest.mark.parametrize("source", ["http:", "http:data", "http://me:s3cret@h/", "http://h/?q"])
def test_a_source_that_is_no_address_is_refused(source: str) -> None:
    def use() -> None:
        HttpBackend(resolve(source, environment={}).source.options, PlainMount())

    with pytest.raises(ConfigError) as raised:
        use()
    assert "s3cret" not in str(raised.value)


# --- real servers


@contextmanager
def serving(*command: str, cwd: Path) -> Iterator[None]:
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def data() -> Iterator[Path]:
    """Give a folder that servers can read which change into a user of their own; pytest's are private."""
    with tempfile.TemporaryDirectory(prefix="fusekit-web-") as text:
        top = Path(text)
        for path, content in {**FILES, "100% of a+b #1;?.txt": b"odd", "ünï.txt": b"letters"}.items():
            (top / "data" / path).parent.mkdir(parents=True, exist_ok=True)
            (top / "data" / path).write_bytes(content)
        top.chmod(0o755)
        yield top / "data"


async def check_real(port: int, data: Path) -> None:
    url = f"http://127.0.0.1:{port}/"
    while True:
        try:
            await mounted_at(url)
            break
        except Unreachable:  # it does not listen yet; the test's own time limit ends this
            await trio.lowlevel.checkpoint()
    async with place_at(url) as place:
        found = await listed(place.hooks, place.directory)
        assert set(found) == set(os.listdir(data))
        for name, entry in found.items():
            again = await looked_up(place.hooks, place.directory, name, entry)
            assert (again.kind, again.size, again.version) == (entry.kind, entry.size, entry.version)
            if entry.kind is Kind.FILE:
                assert await read(place.hooks, entry) == (data / name).read_bytes()
        assert set(await listed(place.hooks, found["sub"])) == {"c", "deep"}
        with pytest.raises(NotFound):
            await looked_up(place.hooks, place.directory, "missing")


async def test_the_server_of_python(data: Path) -> None:
    port = free_port()
    with serving(sys.executable, "-m", "http.server", "-b", "127.0.0.1", str(port), cwd=data):
        await check_real(port, data)


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("way", ["http", "webdav"])
async def test_rclone_serve(data: Path, way: str) -> None:
    port = free_port()
    with serving(program("rclone"), "serve", way, "--addr", f"127.0.0.1:{port}", str(data), cwd=data):
        await check_real(port, data)


@pytest.mark.parametrize("form", ["autoindex_format json", "autoindex_exact_size on", "autoindex_exact_size off"])
async def test_nginx(data: Path, tmp_path: Path, form: str) -> None:
    port = free_port()
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"{'user root; ' if os.geteuid() == 0 else ''}daemon off; pid {tmp_path}/pid; error_log {tmp_path}/errors; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; root {data}; autoindex on; {form}; }} }}\n"
    )
    with serving(program("nginx"), "-c", str(tmp_path / "nginx.conf"), "-e", f"{tmp_path}/errors", cwd=data):
        await check_real(port, data)


@pytest.mark.parametrize(
    "form",
    [
        "IndexOptions FancyIndexing HTMLTable",
        "IndexOptions FancyIndexing",
        "IndexOptions -FancyIndexing",
        "<Location />\nDAV On\n</Location>",
    ],
)
async def test_apache(data: Path, form: str) -> None:
    port, above, modules = free_port(), data.parent, Path("/usr/lib/apache2/modules")
    names = ("mpm_event", "autoindex", "dir", "authz_core", "dav", "dav_fs")
    lines = [f"LoadModule {name}_module {modules}/mod_{name}.so" for name in names]
    lines += [f"PidFile {above}/pid", f"ErrorLog {above}/errors", f"DavLockDB {above}/locks", "ServerName localhost"]
    lines += [f"ServerRoot {above}", f"Listen 127.0.0.1:{port}", f"DocumentRoot {data}", form]
    lines += [f"<Directory {data}>", "Require all granted", "Options Indexes", "</Directory>"]
    (above / "apache.conf").write_text("\n".join(lines) + "\n")
    with serving(program("apache2"), "-f", str(above / "apache.conf"), "-DFOREGROUND", cwd=data):
        await check_real(port, data)
