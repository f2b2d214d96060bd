"""``http:URL``, the files of a web server: read-only, from whatever listing the server has.

A backend of core's own. WebDAV (PROPFIND), the JSON of nginx and Caddy, and pages of links are read; which it is, is
found out at mount. A directory costs one request where its listing tells sizes and times exactly. Where it does not, each
file costs a HEAD besides, sixteen at once, because a size that is not told would be measured by reading the file.

``http://host/path`` and ``https://host/path`` are SOURCEs as well, so that an address can be pasted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import ClassVar, Final, Literal
from urllib.parse import urljoin, urlsplit

import attrs
import trio

from fusekit.api import (
    Answer,
    Capabilities,
    ConfigError,
    Denied,
    Entry,
    Invalid,
    Kind,
    Mount,
    NotDirectory,
    NotFound,
    NotSupported,
    Page,
    Rename,
    Sink,
    Stale,
    hookimpl,
    names,
    option,
)
from fusekit.backends.http_dav import QUERY, read_listing, read_one
from fusekit.backends.http_facts import Found, Measure, expected, shifted, told
from fusekit.backends.http_index import read_html, read_json
from fusekit.backends.http_links import Folder, base_url, url_of, with_scheme

logger = logging.getLogger(__name__)

HEADS_MAX: Final = 16
"""HEAD requests at once for a listing that tells no sizes; as many as a service is asked for by default."""

_PAGE: Final = 256  # entries handed on together
_REDIRECTS: Final = (301, 302, 303, 307, 308)
# What a server answers to PROPFIND is taken for "I do not know that" unless it is one of these, which say "not now".
_NOT_NOW: Final = frozenset({408, 425, 429, 502, 503, 504})
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e]*)")
_TOKEN: Final = re.compile(r"[!-~]+")


def parse_headers(text: str | Mapping[str, str]) -> dict[str, str]:
    """Return the headers of lines such as ``X-Api-Key: abc``.

    Raises:
        ValueError: a line is none; it is not quoted, since it is a secret.
    """
    if isinstance(text, Mapping):
        return dict(text)
    found: dict[str, str] = {}
    for number, line in enumerate(filter(None, (line.strip() for line in text.splitlines())), start=1):
        match = _HEADER.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} is no header; write for example X-Api-Key: abc")
        found[match[1]] = match[2].strip()
    return found


@attrs.frozen
class Options:
    """What ``http:`` and ``https:`` can be told."""

    path: str = option(default="", converter=lambda text: base_url(text) if text else "", help="URL of the folder")
    index: Literal["auto", "webdav", "html", "json"] = option(default="auto", help="how the server lists its folders")
    user: str = option(default="", identity=True, help="name to sign in with, where the server asks for a password")
    password: str = option(default="", secret=True, help="password of the user")
    bearer: str = option(default="", secret=True, help="token, sent as Authorization: Bearer")
    headers: dict[str, str] = option(
        default="", converter=parse_headers, secret=True, help="more headers to sign with, one a line (X-Api-Key: abc)"
    )


class _Auth:
    """Signs with what the options hold; there is nothing else to try when it is refused."""

    def __init__(self, options: Options, host: str) -> None:
        self._host = host
        self._headers = dict(options.headers)
        if options.bearer and options.user:
            raise ConfigError("a bearer token and a user are two ways to sign in; give one of them")
        if options.password and not options.user:
            raise ConfigError("there is a password but no user; give -o user=NAME")
        if options.bearer:
            if not _TOKEN.fullmatch(options.bearer):
                raise ConfigError("the bearer token has characters that no token has")
            self._headers["Authorization"] = f"Bearer {options.bearer}"
        elif options.user:
            import base64

            if ":" in options.user:
                raise ConfigError("a user name for the web has no colon in it")
            pair = base64.b64encode(f"{options.user}:{options.password}".encode()).decode("ascii")
            self._headers["Authorization"] = f"Basic {pair}"

    async def headers(self, renew: bool) -> Mapping[str, str]:
        """Return the headers that sign a request.

        Raises:
            Denied: the server refused them.
        """
        if renew:
            how = "refuses these credentials" if self._headers else "wants a sign-in; see the options bearer and user"
            raise Denied(f"{self._host} {how}", status=401)
        return self._headers


class HttpBackend:
    """The tree below one URL.

    ``_dav`` is how the server lists its folders, None until it was asked. ``_measure`` is what versions are made of
    (`fusekit.backends.http_facts`), None until a listing showed a file; ``_heads`` says that listings do not tell enough.
    """

    scheme: ClassVar[str] = "http"
    options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options, mount: Mount) -> None:
        self._url = with_scheme(options.path, self.scheme)
        self._host = urlsplit(self._url).netloc
        self._http = mount.http(self._url, _Auth(options, self._host))
        self._index = options.index
        self._dav: bool | None = None
        self._measure: Measure | None = None
        self._heads = False
        self._etags = True
        self._times = True
        self._ranges = True
        self._redirects_folders = False
        self._detecting = trio.Lock()

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        """Return the same everywhere; that the server sends whole files only is learned from its first answer."""
        return Capabilities(rename=Rename.NONE, replace=False, ranges=self._ranges, time_step_ns=1_000_000_000)

    @hookimpl
    async def fusekit_root(self) -> Entry:
        """Return the mounted folder; the first time it is asked for, and so is how the server lists."""
        await self._detected()
        return Entry.directory("")

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        """List a folder: one request, and a HEAD a file where that does not tell enough."""
        dav = await self._detected()
        pieces = await self._listing(directory.ref, dav=dav)
        if dav:
            for found in pieces:
                await page([one.entry(self._by(one)) for one in found])
                await trio.lowlevel.checkpoint()
            return
        # A folder names its files in one answer: whether that tells enough is decided before the first is handed on,
        # since a server's versions are all made in one way.
        listed: list[Found] = []
        for found in pieces:
            listed += found
            await trio.lowlevel.checkpoint()
        await self._judge(directory, listed)
        asked = [one for one in listed if not one.directory and (self._heads or not one.exact)]
        known = [one for one in listed if one.directory or not (self._heads or not one.exact)]
        for start in range(0, len(known), _PAGE):
            await page([one.entry(self._by(one)) for one in known[start : start + _PAGE]])
            await trio.lowlevel.checkpoint()
        if asked:
            await self._complete(directory, asked, page)

    @hookimpl
    async def fusekit_stat(self, directory: Entry, name: str, known: Entry | None) -> Entry:
        """Return one entry: one request, two for a folder of a server that does not redirect to folders."""
        known = known if known is not None and known.name == name else None
        if await self._detected():
            found = await self._properties(directory, name, known)
        else:
            found = await self._head(directory, name, known)
        if found is None:
            raise NotFound(f"{self._host} has no {name!r} there")
        entry = found.entry(self._by(found))
        if known is not None and self._measure is Measure.MINUTE and shifted(known, entry):
            logger.info("%s lists times in a zone of its own; files are asked for one by one from now on", self._host)
            self._heads, self._measure = True, None
            entry = found.entry(self._by(found))
        return entry

    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        """Read a range with one request, whose answer must be of the version that is wanted."""
        if entry.size is not None and start >= entry.size:
            return
        expect, headers = expected(entry, times=self._times)
        stop = stop if entry.size is None or stop is None else min(stop, entry.size)
        try:
            answer = await self._http.fetch(url_of(entry.ref), start, stop, sink, headers=headers, expect=expect)
        except Stale:
            if expect.etag is not None and self._etags and self._dav:
                await self._check_etags(entry)
            if expect.last_modified is None or not await self._tells_no_times(entry):
                raise
            expect = attrs.evolve(expect, last_modified=None)
            answer = await self._http.fetch(url_of(entry.ref), start, stop, sink, headers=headers, expect=expect)
        if start > 0 and answer.status == 200:
            self._ranges = False

    # ---- how the server lists ----------------------------------------------------------------------------------

    async def _detected(self) -> bool:
        """Return whether listings are WebDAV; the first call finds out.

        Raises:
            NotDirectory: what is there is no listing at all. Invalid: it is none of the form that was asked for.
        """
        if self._dav is not None:
            return self._dav
        async with self._detecting:
            if self._dav is None:
                self._dav = await self._detect()
        return self._dav

    async def _detect(self) -> bool:
        if self._index in {"auto", "webdav"}:
            try:
                answer = await self._propfind("", "0", expect=_Unless(_NOT_NOW) if self._index == "auto" else (207,))
            except Denied:
                if self._index == "webdav":
                    raise  # else a GET may be open to everybody, and says what is wrong if it is not
            else:
                if answer.status == 207:
                    if not read_one(answer.content, "").directory:
                        raise NotDirectory(f"{self._url} is a file; the URL of a folder is wanted")
                    return True
        listed = [one for found in await self._listing("", dav=False) for one in found]
        await self._judge(Entry.directory(""), listed)
        return False

    async def _listing(self, ref: str, *, dav: bool) -> Iterator[list[Found]]:
        """Ask for one folder and return its entries as they are parsed."""
        url = url_of(ref, directory=True)
        if dav:
            answer = await self._propfind(url, "1", expect=(207,))
            return read_listing(answer.content, Folder(urljoin(self._url, url)))
        wanted = {"html": "text/html", "json": "application/json"}.get(self._index, "application/json, text/html;q=0.9")
        answer = await self._http.request("GET", url, headers={"Accept": f"{wanted}, */*;q=0.1"})
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        folder = self._folder(url, answer)
        if kind == "application/json" and self._index != "html":
            return read_json(answer.content, folder)
        if kind in {"text/html", "application/xhtml+xml"} and self._index != "json":
            return read_html(answer.content, folder)
        what = self._index.upper() if self._index in {"html", "json"} else "listing that is known"
        wrong = NotDirectory if self._index == "auto" else Invalid
        raise wrong(f"{answer.url or self._url} is no {what} but {kind or 'of no type'}; is it the URL of a folder?")

    def _folder(self, url: str, answer: Answer) -> Folder:
        """Return the place that the links of a listing are relative to: where the answer came from in the end.

        Raises:
            Invalid: the mounted folder itself is elsewhere, so that every request would be redirected, and signed nowhere.
        """
        here, there = urlsplit(urljoin(self._url, url)), urlsplit(answer.url)
        if not url and (here.scheme, here.path) != (there.scheme, there.path):
            raise Invalid(f"{self._url} redirects to {answer.url}; mount that address")
        return Folder(here._replace(path=there.path).geturl())

    async def _judge(self, directory: Entry, found: Sequence[Found]) -> None:
        """Decide from a listing's files whether listings are enough, and what versions are made of then.

        The server's measure is the coarsest that a listing showed. Minutes may be those of another zone than GMT, so the
        first of them is compared with a HEAD. Single files of which too little is told (links in Caddy's listings) are
        asked for, and measured like the others.
        """
        files = [one for one in found if not one.directory]
        if self._heads or not files:
            return
        exact = [one for one in files if one.exact]
        minutes = any(one.step_s > 1 for one in exact)
        if not exact or (minutes and len(exact) < len(files)):
            # Files that must be asked for anyway may as well have the better version.
            self._heads, self._measure = True, None
        elif minutes and self._measure is not Measure.MINUTE:
            self._heads = not await self._in_gmt(directory, exact[0])
            self._measure = None if self._heads else Measure.MINUTE
        elif self._measure is None:
            self._measure = Measure.SECOND

    async def _in_gmt(self, directory: Entry, listed: Found) -> bool:
        asked = await self._head(directory, listed.name, None)
        return (
            asked is not None
            and not asked.directory
            and asked.entry(Measure.MINUTE).version == listed.entry(Measure.MINUTE).version
        )

    def _by(self, found: Found) -> Measure:
        """Return what the version of ``found`` is to be made of."""
        if self._dav:
            return Measure.ETAG if self._etags else Measure.SECOND
        if self._heads or self._measure is None:
            return Measure.ETAG if self._etags else found.measure
        return self._measure

    # ---- one name ----------------------------------------------------------------------------------------------

    async def _complete(self, directory: Entry, found: Sequence[Found], page: Page) -> None:
        """Ask for each file of a listing that tells too little, and hand on what is known as it comes."""
        send, receive = trio.open_memory_channel[Found](HEADS_MAX)
        left = iter(found)

        async def ask(send: trio.MemorySendChannel[Found]) -> None:
            async with send:
                for one in left:
                    if names.problem(one.name) is not None:
                        await send.send(one)  # core says what is wrong with it, and counts it
                        continue
                    try:
                        asked = await self._head(directory, one.name, None)
                    except (Denied, Invalid, NotSupported):
                        asked = one  # it is there, and who reads it is told why not
                    if asked is not None:
                        await send.send(asked)

        try:
            async with trio.open_nursery() as nursery:
                async with send:
                    for _ in range(min(HEADS_MAX, len(found))):
                        nursery.start_soon(ask, send.clone())
                ready: list[Entry] = []
                async for one in receive:
                    ready.append(one.entry(self._by(one)))
                    if len(ready) >= _PAGE or receive.statistics().current_buffer_used == 0:
                        await page(ready)  # not later: of a slow server each answer is progress
                        ready = []
        except ExceptionGroup as group:
            raise _first(group) from group

    async def _head(self, directory: Entry, name: str, known: Entry | None) -> Found | None:
        """Return what HEAD tells about ``name``, None where there is none.

        A folder is known by the redirect to its name with a slash; of a server without, it is asked for with the slash.
        """
        ref = f"{directory.ref}/{name}"
        folder_first = known is not None and known.kind is Kind.DIRECTORY
        for as_folder in (True, False) if folder_first else (False, True):
            if as_folder and not folder_first and self._redirects_folders:
                continue
            found = await self._head_of(url_of(ref, directory=as_folder), name, as_folder=as_folder)
            if found is not None:
                return found
        return None

    async def _head_of(self, url: str, name: str, *, as_folder: bool) -> Found | None:
        headers = {"Accept-Encoding": "identity"}
        answer = await self._http.request(
            "HEAD", url, headers=headers, expect={200, 204, 404, 405, 410, 501, *_REDIRECTS}
        )
        if answer.status in _REDIRECTS:
            there = urlsplit(answer.headers.get("location", "")).path
            if not as_folder and there.endswith("/") and Folder(urljoin(self._url, url)).is_at(there):
                self._redirects_folders = True
                return Found(name, directory=True)
            if as_folder:
                return None
            if urlsplit(urljoin(urljoin(self._url, url), answer.headers.get("location", ""))).netloc != self._host:
                return Found(name)  # a mirror, which is asked when the file is read
            answer = await self._http.request("HEAD", url, headers=headers)
        if answer.status in {404, 410}:
            return None
        if as_folder:
            return Found(name, directory=True) if answer.status in {200, 204} else None
        return told(name, answer) if answer.status == 200 else Found(name)

    async def _properties(self, directory: Entry, name: str, known: Entry | None) -> Found | None:
        ref = f"{directory.ref}/{name}"
        folder = known is not None and known.kind is Kind.DIRECTORY
        for as_folder in (folder, not folder):
            answer = await self._propfind(
                url_of(ref, directory=as_folder), "0", expect={207, 404, 410, *(() if as_folder else _REDIRECTS)}
            )
            if answer.status == 207:
                return read_one(answer.content, name)
            if not as_folder and not folder and answer.status in {404, 410}:
                return None
        return None

    async def _propfind(self, url: str, depth: str, *, expect: Container[int]) -> Answer:
        headers = {"Depth": depth, "Content-Type": "application/xml; charset=utf-8"}
        return await self._http.request("PROPFIND", url, content=QUERY, headers=headers, expect=expect)

    async def _check_etags(self, entry: Entry) -> None:
        """Find out whether ETags of listings and of files are the same thing here; if not, versions go without them."""
        above, _, name = entry.ref.rpartition("/")
        listed = await self._properties(Entry.directory("", above), name, entry)
        asked = await self._head_of(url_of(entry.ref), name, as_folder=False)
        if listed is None or asked is None or (listed.size, listed.modified_s) != (asked.size, asked.modified_s):
            return
        if listed.etag is not None and listed.etag != asked.etag and listed.modified_s is not None:
            logger.warning("%s gives files other ETags than it lists; times and sizes are compared instead", self._host)
            self._etags = False

    async def _tells_no_times(self, entry: Entry) -> bool:
        """Find out whether answers with files lack the time that listings tell; then only the size can be compared."""
        asked = await self._head_of(url_of(entry.ref), entry.name, as_folder=False)
        if asked is None or asked.modified_s is not None or asked.size != entry.size:
            return False
        if self._times:
            logger.warning(
                "%s sends files without Last-Modified; only their size is checked when they are read", self._host
            )
            self._times = False
        return True


class HttpsBackend(HttpBackend):
    """The same for ``https://…`` as SOURCE."""

    scheme: ClassVar[str] = "https"


@attrs.frozen
class _Unless:
    """All statuses but these."""

    others: frozenset[int]

    def __contains__(self, status: object) -> bool:
        return status not in self.others


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """Return the first failure of several tasks that ask the same server for much the same."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


@hookimpl
def fusekit_backends() -> list[type]:
    """Return the backend under both of its schemes."""
    return [HttpBackend, HttpsBackend]
