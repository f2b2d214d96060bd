"""Listings as real servers wrote them, recorded in ``web_answers``: names, and what may be believed of the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusekit.api import Unavailable
from fusekit.backends.http_dav import read_listing, read_one
from fusekit.backends.http_facts import Found
from fusekit.backends.http_index import read_html, read_json, stamp_s
from fusekit.backends.http_links import Folder, Link, base_url, url_of

ANSWERS = Path(__file__).parent / "web_answers"
HERE = Folder("http://127.0.0.1/")
HELLO_S = 1_580_702_706  # 2020-02-03 04:05:06 GMT

NAMES = {
    "dir with space",
    "sub",
    "100% of a+b #1.txt",
    "a:b",
    "averylongname" * 10 + ".txt",
    "back\\slash",
    "bad\udcff\udcfename",
    "empty",
    "hello.txt",
    "numbers.bin",
    "pct%252Fname",  # `pct%2Fname` there, escaped so that it cannot be taken for a slash
    "semi;colon?q&<amp>\"quo'te.txt",
    "ünï cödé 日本.txt",
}
FOLDERS = {"dir with space", "sub", ".hid"}
# Python's server encodes bytes that are no UTF-8 in a way of its own, under which it does not find them itself.
PYTHON_NAMES = NAMES - {"bad\udcff\udcfename"} | {b"bad\xed\xb3\xbf\xed\xb3\xbename".decode("utf-8", "surrogateescape")}
HIDDEN = {".hid", ".hidden"}

Reader = Callable[[bytes, Folder], Iterator[list[Found]]]


def found(reader: Reader, name: str) -> dict[str, Found]:
    return {one.name: one for piece in reader((ANSWERS / name).read_bytes(), HERE) for one in piece}


@pytest.mark.parametrize(
    ("reader", "answer", "names"),
    [
        (read_json, "nginx.json", NAMES | {"link"}),
        (read_json, "caddy.json", NAMES | HIDDEN | {"link"}),
        (read_html, "nginx.html", NAMES | {"link"}),
        (read_html, "nginx-rounded.html", NAMES | {"link"}),
        (read_html, "nginx-fancyindex.html", NAMES | {"link"}),
        (read_html, "apache-table.html", NAMES | HIDDEN | {"link"}),
        (read_html, "apache-pre.html", NAMES | HIDDEN | {"link"}),
        (read_html, "apache-plain.html", NAMES | HIDDEN | {"link"}),
        (read_html, "python.html", PYTHON_NAMES | HIDDEN | {"link"}),
        (read_html, "rclone.html", NAMES | HIDDEN),
        (read_html, "caddy.html", NAMES | HIDDEN | {"link"}),
        (read_html, "lighttpd.html", NAMES | {"link"}),
        (read_listing, "nginx-dav.xml", NAMES | {"link"}),
        (read_listing, "apache-dav.xml", NAMES | HIDDEN),
        (read_listing, "rclone-dav.xml", NAMES | HIDDEN),
    ],
)
def test_every_name_is_found_and_none_that_is_no_entry(reader: Reader, answer: str, names: set[str]) -> None:
    listed = found(reader, answer)
    recorded = {"link"} if answer == "nginx-dav.xml" else set()
    assert set(listed) | recorded == names | recorded
    assert {name for name, one in listed.items() if one.directory} == FOLDERS & names


@pytest.mark.parametrize(
    ("reader", "answer", "etag"),
    [
        (read_json, "nginx.json", None),
        (read_json, "caddy.json", None),
        (read_html, "rclone.html", None),
        (read_html, "caddy.html", None),
        (read_listing, "nginx-dav.xml", None),
        (read_listing, "apache-dav.xml", '"e-59da407496080"'),
        (read_listing, "rclone-dav.xml", '"15efc8bc76a0f400e"'),
    ],
)
def test_exact_listings_tell_size_and_second(reader: Reader, answer: str, etag: str | None) -> None:
    listed = found(reader, answer)
    assert listed["hello.txt"] == Found("hello.txt", False, 14, HELLO_S, etag)
    assert (listed["numbers.bin"].size, listed["empty"].size) == (150_000, 0)
    assert all(one.exact for name, one in listed.items() if name != "link")


@pytest.mark.parametrize("answer", ["nginx.html", "nginx-fancyindex.html"])
def test_exact_pages_tell_size_and_minute(answer: str) -> None:
    listed = found(read_html, answer)
    assert listed["hello.txt"] == Found("hello.txt", False, 14, HELLO_S - 6, step_s=60)
    assert listed["numbers.bin"].size == 150_000
    assert all(one.exact for one in listed.values())


@pytest.mark.parametrize(
    "answer", ["apache-table.html", "apache-pre.html", "apache-plain.html", "python.html", "lighttpd.html"]
)
def test_rounded_sizes_and_times_of_no_known_zone_are_not_believed(answer: str) -> None:
    assert [one for one in found(read_html, answer).values() if not one.directory and one.exact] == []


def test_a_rounded_size_among_exact_ones_is_not_told() -> None:
    listed = found(read_html, "nginx-rounded.html")
    assert (listed["numbers.bin"].exact, listed["numbers.bin"].size) == (False, None)
    assert listed["hello.txt"].size == 14


def test_the_target_of_a_link_is_not_described_by_the_link() -> None:
    assert found(read_json, "caddy.json")["link"] == Found("link")


@pytest.mark.parametrize("size", [1, 7, 64])
def test_pieces_may_end_anywhere(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {
        answer: found(reader, answer)
        for reader, answer in ((read_html, "nginx.html"), (read_listing, "rclone-dav.xml"))
    }
    monkeypatch.setattr("fusekit.backends.http_index._PIECE", size)
    monkeypatch.setattr("fusekit.backends.http_dav._PIECE", size)
    assert found(read_html, "nginx.html") == whole["nginx.html"]
    assert found(read_listing, "rclone-dav.xml") == whole["rclone-dav.xml"]


@pytest.mark.parametrize(
    "href",
    [
        "", "?C=M;O=A", "#top", "../", "..", ".", "./", "/", "/data/", "/data", "/other/x", "x/y", "x?download=1",
        "//elsewhere/data/x", "http://elsewhere/data/x", "https://host/data/x", "http://host:81/data/x",
        "mailto:me@example.org", "javascript:void(0)", "http://[bad/x", "/data/..", "%2e%2e/", "/data/../x", "/data//",
    ],
)  # fmt: skip
def test_links_that_are_no_entries_are_left_out(href: str) -> None:
    assert Folder("http://host/data/").child(href) is None


@pytest.mark.parametrize(
    ("href", "link"),
    [
        ("x", Link("x", False)),
        ("x/", Link("x", True)),
        ("./a:b", Link("a:b", False)),
        ("/data/x", Link("x", False)),
        ("http://host/data/x/", Link("x", True)),
        ("a%20b;c", Link("a b;c", False)),
        ("a%2Fb", Link("a%2Fb", False)),
        ("a%252Fb", Link("a%252Fb", False)),
        ("a%3Fb%23c", Link("a?b#c", False)),
        ("%FF", Link("\udcff", False)),
        ("100%", Link("100%", False)),
        ("\udcff", Link("\udcff", False)),
        (" x ", Link("x", False)),
    ],
)
def test_names_come_from_links(href: str, link: Link) -> None:
    assert Folder("http://host/data/").child(href) == link


@pytest.mark.parametrize("name", sorted(NAMES | HIDDEN))
def test_a_name_leads_back_to_the_same_link(name: str) -> None:
    link = Folder("http://host/data/").child(url_of(f"/{name}"))
    assert link == Link(name, False)
    assert Folder("http://host/data/").child(url_of(f"/{name}", directory=True)) == Link(name, True)


def test_a_slash_inside_a_name_stays_inside() -> None:
    assert url_of("/sub/a%2Fb") == "sub/a%2Fb"
    assert url_of("/pct%252Fname") == "pct%252Fname"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://Example.org/data", "http://example.org/data/"),
        ("HTTPS://h:8443/a%20b//", "https://h:8443/a%20b/"),
        ("//h", "//h/"),
        ("http://h/a b/ü%20c", "http://h/a%20b/%C3%BC%20c/"),
        ("http://[::1]:8080", "http://[::1]:8080/"),
    ],
)
def test_the_url_of_a_folder_ends_with_a_slash(text: str, url: str) -> None:
    assert base_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "h/data",
        "ftp://h/",
        "http://",
        "http:///x",
        "http://u:p@h/",
        "http://h/?a=b",
        "http://h/#a",
        "http://h h/a",
        "http://h/a\nb",
    ],
)
def test_what_is_no_url_of_a_folder_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as raised:
        base_url(text)
    assert "u:p" not in str(raised.value)


def test_a_name_linked_twice_is_one_entry_with_what_is_told_beside_the_second() -> None:
    page = b'<pre><a href="x"><img src="i.png"></a> <a href="x">x</a>   26-Nov-2026 11:25    7\n</pre>'
    assert [one for piece in read_html(page, HERE) for one in piece] == [Found("x", False, 7, 1_795_692_300, step_s=60)]


@pytest.mark.parametrize("body", [b"", b"{", b'{"a": 1}', b'"text"', b"[" * 100_000])
def test_json_that_is_no_listing_is_refused(body: bytes) -> None:
    with pytest.raises(Unavailable):
        list(read_json(body, HERE))


@pytest.mark.parametrize(
    "row", ["1", "null", "{}", '{"name": ""}', '{"name": ".."}', '{"name": "s", "type": "other"}', '{"name": 1}']
)
def test_rows_that_name_nothing_are_left_out(row: str) -> None:
    assert list(read_json(f"[{row}]".encode(), HERE)) == [[]]


@pytest.mark.parametrize("size", ['"14"', "-1", "1.5", "true", "null"])
def test_a_size_that_is_none_is_not_told(size: str) -> None:
    ((one,),) = read_json(f'[{{"name": "f", "size": {size}}}]'.encode(), HERE)
    assert one.size is None


def test_no_entities_are_read() -> None:
    bomb = b'<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><D:multistatus xmlns:D="DAV:">&b;</D:multistatus>'
    with pytest.raises(Unavailable, match="document type"):
        list(read_listing(bomb, HERE))


@pytest.mark.parametrize("body", [b"", b"<html></html>", b"<D:multistatus xmlns:D='DAV:'>", b"\xff\xfe", b"<a><b></a>"])
def test_xml_that_is_no_multistatus_is_refused(body: bytes) -> None:
    with pytest.raises(Unavailable):
        list(read_listing(body, HERE))


def dav(*hrefs: str) -> bytes:
    inside = "".join(
        f"<response><href>{href}</href><propstat><prop><resourcetype/><getcontentlength>3</getcontentlength></prop>"
        "<status>HTTP/1.1 200 OK</status></propstat></response>"
        for href in hrefs
    )
    return f'<multistatus xmlns="DAV:">{inside}</multistatus>'.encode()


@pytest.mark.parametrize(
    "hrefs",
    [
        ("/data/", "/data/x", "/data/y"),
        ("http://other.name/data/", "http://other.name/data/x", "http://other.name/data/y"),
        ("/behind/the/proxy/", "/behind/the/proxy/x", "/behind/the/proxy/y"),
        ("/data/x", "/data/y"),
        ("/data", "/data/x", "/data/y", "/data/x/deeper", "/elsewhere/z"),
        ("/d%61ta/", "/d%61ta/x", "/d%61ta/%79"),
    ],
)
def test_the_folder_itself_and_what_is_elsewhere_are_no_entries(hrefs: tuple[str, ...]) -> None:
    listed = [one.name for piece in read_listing(dav(*hrefs), Folder("http://host/data/")) for one in piece]
    assert listed == ["x", "y"]


def test_properties_that_the_server_does_not_have_do_not_count() -> None:
    body = (
        b'<multistatus xmlns="DAV:"><response><href>/x</href><propstat><prop><getcontentlength>3</getcontentlength></prop>'
        b"<status>HTTP/1.1 200 OK</status></propstat><propstat><prop><getetag>no</getetag><resourcetype><collection/>"
        b"</resourcetype></prop><status>HTTP/1.1 404 Not Found</status></propstat></response></multistatus>"
    )
    assert read_one(body, "x") == Found("x", size=3)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-26 11:25:47.487013833 +0000 UTC", 1_795_692_347),
        ("2026-11-26T11:25:47Z", 1_795_692_347),
        ("2026-11-26T13:25:47+02:00", 1_795_692_347),
        ("2026-11-26 11:25:47", None),
        ("2026-13-26T11:25:47Z", None),
        ("", None),
    ],
)
def test_a_time_counts_with_its_zone_only(text: str, seconds: int | None) -> None:
    assert stamp_s(text) == seconds


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 5000, "-1", "\u0663", "", "0x10"])
def test_sizes_that_no_file_has_are_not_told(digits: str) -> None:
    page = (
        f'<tr><td><a href="x">x</a></td><td data-order="{digits}"></td><td><time datetime="2026-11-26T11:25:47Z"></tr>'
    )
    ((one,),) = [found for found in read_html(page.encode(), HERE) if found]
    assert (one.size, one.modified_s) == (None, 1_795_692_347)


@pytest.mark.parametrize("when", ["00-Nov-0000 11:25", "01-Foo-2026 11:25", "01-Nov-9999 11:25"])
def test_times_that_cannot_be_are_not_told(when: str) -> None:
    ((one,),) = [found for found in read_html(f'<pre><a href="x">x</a> {when} 7\n</pre>'.encode(), HERE) if found]
    assert not one.exact


@pytest.mark.parametrize("start", [b"<!--", b'<a href="', b"<!DOCTYPE "])
def test_a_page_that_never_gets_to_the_point_is_given_up(start: bytes) -> None:
    with pytest.raises(Unavailable, match="no listing"):
        list(read_html(start + b"x" * (4 << 20), HERE))
