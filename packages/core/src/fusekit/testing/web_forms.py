"""How web servers show a folder: each form as the server of that name writes it.

Part of the emulator base. A form renders the names of one folder; `fusekit.testing.web` has the folders. Sources: the
answers of nginx 1.22, Apache 2.4, Caddy 2.6, rclone 1.60 and Python 3.11, recorded in the tests of the backend ``http``.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final
from urllib.parse import quote
from xml.sax.saxutils import escape

import attrs

from fusekit.testing.replies import http_date

MODIFIED_S: Final = 1_700_000_000.0
"""When everything was modified that says nothing else: whole seconds, so that no form tells more of it than another."""


@attrs.frozen
class Item:
    """One name in a folder; ``size`` None is a folder."""

    name: str
    modified_s: float
    size: int | None = None
    etag: str = ""

    @property
    def link(self) -> str:
        """Return the name percent-encoded, with a slash where it is a folder."""
        return segment(self.name) + ("/" if self.size is None else "")


Render = Callable[[str, Iterable[Item]], bytes]


@attrs.frozen
class Form:
    """One server's way: ``render`` takes a folder's path and its items. ``redirects``: to a folder's name with a slash."""

    type: str
    render: Render
    etags: bool = True
    ranges: bool = True
    redirects: bool = True


def segment(name: str) -> str:
    """Return a name as it stands in a URL."""
    return quote(name.encode("utf-8", "surrogateescape"), safe="")


def nginx_json(path: str, items: Iterable[Item]) -> bytes:
    """Render ``autoindex_format json``; bytes of names are copied as they are."""
    rows = []
    for item in items:
        row = {"name": item.name, "type": "directory" if item.size is None else "file"}
        row["mtime"] = http_date(item.modified_s)
        size = "" if item.size is None else f', "size":{item.size}'
        rows.append(json.dumps(row, ensure_ascii=False)[:-1] + size + " }")
    return ("[\n" + ",\n".join(rows) + "\n]\n").encode("utf-8", "surrogateescape")


def nginx_html(path: str, items: Iterable[Item]) -> bytes:
    """Render autoindex with exact sizes."""
    return _nginx(path, items, str)


def nginx_rounded(path: str, items: Iterable[Item]) -> bytes:
    """Render autoindex with ``autoindex_exact_size off``."""
    return _nginx(path, items, lambda size: str(size) if size <= 9999 else f"{(size + 512) >> 10}K")


def apache_table(path: str, items: Iterable[Item]) -> bytes:
    """Render mod_autoindex with ``FancyIndexing HTMLTable``: rounded sizes, times of no known zone."""
    rows = [
        f'<tr><td valign="top">&nbsp;</td><td><a href="{html.escape(_here(item))}">{_shown(item)}</a></td>'
        f'<td align="right">{_local(item)}  </td><td align="right">{_about(item)}</td><td>&nbsp;</td></tr>'
        for item in items
    ]
    head = "".join(
        f'<th><a href="?C={key};O=D">{word}</a></th>' for key, word in (("N", "Name"), ("M", "Last modified"))
    )
    up = '<tr><td valign="top">&nbsp;</td><td><a href="../">Parent Directory</a></td><td>&nbsp;</td></tr>'
    return _page(path, f"  <table>\n   <tr>{head}</tr>\n{up}\n{chr(10).join(rows)}\n</table>")


def apache_pre(path: str, items: Iterable[Item]) -> bytes:
    """Render mod_autoindex with ``FancyIndexing``."""
    rows = [
        f'<a href="{html.escape(_here(item))}">{_shown(item)}</a>  {_local(item)}  {_about(item)}' for item in items
    ]
    return _page(path, '<pre><a href="?C=N;O=D">Name</a> <hr>' + "\n".join(rows) + "\n<hr></pre>")


def plain(path: str, items: Iterable[Item]) -> bytes:
    """Render a list of links, as Apache without ``FancyIndexing`` and Python's server do."""
    rows = [f'<li><a href="{html.escape(_here(item))}"> {_shown(item)}</a></li>' for item in items]
    return _page(path, "<ul>" + "\n".join(rows) + "\n</ul>")


def rclone(path: str, items: Iterable[Item]) -> bytes:
    """Render ``rclone serve http``: a sort key with the size, and a time with its zone."""
    rows = []
    for item in items:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(item.modified_s)) + ".487013833 &#43;0000 UTC"
        size = (
            '<td data-order="-1">&mdash;</td>'
            if item.size is None
            else f'<td data-order="{item.size}"><size>{item.size}</size></td>'
        )
        rows.append(
            f'<tr class="file"><td></td><td><span class="name"><a href="{item.link}">{_shown(item)}</a></span></td>'
            f'{size}<td class="hideable"><time datetime="{moment}">{moment}</time></td><td class="hideable"></td></tr>'
        )
    return _page(
        path,
        '<table><thead><tr><th><a href="?sort=name&order=asc">Name</a></th></tr></thead>\n'
        + "\n".join(rows)
        + "</table>",
    )


def caddy(path: str, items: Iterable[Item]) -> bytes:
    """Render Caddy's answer to ``Accept: application/json``."""
    rows = [
        {
            "name": item.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            + ("/" * (item.size is None)),
            "size": 4096 if item.size is None else item.size,
            "url": f"./{item.link}",
            "mod_time": time.strftime("%Y-%m-%dT%H:%M:%S.487013833Z", time.gmtime(item.modified_s)),
            "mode": 420,
            "is_dir": item.size is None,
            "is_symlink": False,
        }
        for item in items
    ]
    return json.dumps(rows or None).encode()


def multistatus(path: str, items: Iterable[Item], own: Item | None = None) -> bytes:
    """Render the answer to a PROPFIND of the folder ``path``, or of the file ``own`` alone."""
    parts = ['<?xml version="1.0" encoding="utf-8"?>\n<D:multistatus xmlns:D="DAV:">\n']
    parts.append(_response(path, own or Item("", MODIFIED_S)))
    parts += [_response(path + item.link, item) for item in items]
    parts.append("</D:multistatus>\n")
    return "".join(parts).encode()


def _response(href: str, item: Item) -> str:
    if item.size is None:
        kind, facts = "<D:collection/>", ""
    else:
        kind = ""
        facts = f"<D:getcontentlength>{item.size}</D:getcontentlength>"
        if item.etag:
            facts += f"<D:getetag>{escape(item.etag)}</D:getetag>"
    return (
        f"<D:response><D:href>{escape(href)}</D:href><D:propstat><D:prop><D:resourcetype>{kind}</D:resourcetype>{facts}"
        f"<D:getlastmodified>{http_date(item.modified_s)}</D:getlastmodified></D:prop>"
        "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>\n"
    )


def _nginx(path: str, items: Iterable[Item], sized: Callable[[int], str]) -> bytes:
    rows = []
    for item in items:
        when = time.strftime("%d-%b-%Y %H:%M", time.gmtime(item.modified_s))
        size = "-" if item.size is None else sized(item.size)
        rows.append(f'<a href="{item.link}">{_shown(item)}</a>{"":10} {when} {size:>19}')
    return _page(path, '<hr><pre><a href="../">../</a>\n' + "\n".join(rows) + "\n</pre><hr>")


def _page(path: str, body: str) -> bytes:
    title = html.escape(path)
    page = f"<html>\n<head><title>Index of {title}</title></head>\n<body>\n<h1>Index of {title}</h1>{body}\n</body></html>\n"
    return page.encode("utf-8", "surrogateescape")


def _here(item: Item) -> str:
    """Return the link as Apache writes it: a name with a colon would read as a scheme."""
    return f"./{item.link}" if "%3A" in item.link else item.link


def _shown(item: Item) -> str:
    return html.escape(item.name + ("/" if item.size is None else ""))


def _local(item: Item) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(item.modified_s + 3600))


def _about(item: Item) -> str:
    if item.size is None:
        return "  - "
    return (
        f"{item.size:3d} "
        if item.size < 973
        else f"{item.size / 1024:.1f}K"
        if item.size < 10240
        else f"{item.size >> 10:3d}K"
    )


FORMS: Final[Mapping[str, Form]] = {
    "nginx-json": Form("application/json", nginx_json),
    "nginx-html": Form("text/html", nginx_html),
    "nginx-rounded": Form("text/html", nginx_rounded),
    "apache-table": Form("text/html;charset=ISO-8859-1", apache_table),
    "apache-pre": Form("text/html;charset=ISO-8859-1", apache_pre),
    "apache-plain": Form("text/html;charset=ISO-8859-1", plain),
    "python": Form("text/html; charset=utf-8", plain, etags=False, ranges=False),
    "rclone": Form("text/html; charset=utf-8", rclone, etags=False, redirects=False),
    "caddy": Form("application/json; charset=utf-8", caddy),
    "webdav": Form("text/html", plain, redirects=False),
}
"""The forms by name; of ``webdav`` the pages are for people, and PROPFIND is the listing."""
