"""Several sources in one mount: names, addresses, principals, and what is between them."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from fusekit.backends.memory import MemoryBackend
from fusekit.backends.memory import Options as MemoryOptions
from fusekit.backends.tree import Options, TreeBackend, parse_mounts
from fusekit.errors import BackendError, ConfigError, Denied, NotFound, NotSupported, ReadOnly, Unavailable
from fusekit.plugins.manager import stack
from fusekit.plugins.specs import Hooks, hookimpl
from fusekit.testing.harness import ME, PlainMount, Upload, listed, looked_up, made, moved, read, written
from fusekit.types import Caller, Capabilities, Entry, Http, Mount, Page, Rename, Want

NOTHING = Entry.directory("")


class Service:
    """A source whose root is somewhere inside the service, with a principal for each user."""

    def __init__(self, mount: Mount, *, root: str = "/Users/me", down: bool = False, per_user: bool = False) -> None:
        self.mount, self.root, self.down, self.per_user = mount, root, down, per_user
        self.roots = 0
        self.callers: list[str] = []

    @hookimpl
    def fusekit_capabilities(self, directory: Entry) -> Capabilities:
        hooks = {"fusekit_list", "fusekit_root"} | ({"fusekit_principal"} if self.per_user else set())
        if directory.ref == "/Users/me/writable":
            hooks.add("fusekit_write")
        return Capabilities(hooks=frozenset(hooks), requests_max=3)

    @hookimpl
    async def fusekit_principal(self, uid: int) -> str:
        if uid == 13:
            raise Denied("sign in with: service login")
        return f"user {uid}, of=all"

    @hookimpl
    async def fusekit_root(self) -> Entry:
        self.roots += 1
        if self.down:
            raise Unavailable("the service is down")
        return Entry.directory("", self.root, id="7", version="v", mode=0o750)

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page, caller: Caller) -> None:
        self.callers.append(caller.principal)
        assert directory.ref == self.root or directory.ref.startswith(f"{self.root}/")
        await page([Entry.directory("derived"), Entry.file("explicit", "object:17", id="17", blob="sha:1", size=1)])


def tree(sources: Mapping[str, Callable[[Mount], object]]) -> tuple[Hooks, PlainMount]:
    def opener(make: Callable[[Mount], object]) -> Callable[[Mount], Hooks]:
        return lambda mount: stack(make(mount)).hooks

    mount = PlainMount(sources={f"{name}:": opener(make) for name, make in sources.items()})
    backend = TreeBackend(Options(parse_mounts({name: f"{name}:" for name in sources})), mount)
    return stack(backend).hooks, mount


def memory(mount: Mount) -> MemoryBackend:
    return MemoryBackend(MemoryOptions(), mount)


# --- what can be told


@pytest.mark.parametrize(
    ("written_as", "found"),
    [
        ("work=databricks:/Users/me,tmp=memory:", {"work": "databricks:/Users/me", "tmp": "memory:"}),
        ("a=local:/x,y,b=local:/x=y", {"a": "local:/x,y", "b": "local:/x=y"}),
        ("a=local:/x,,y,", {"a": "local:/x,,y,"}),
        (" a = memory: , b=memory:", {"a": "memory:", "b": "memory:"}),
        ("with space=memory:", {"with space": "memory:"}),
        ("nested=tree:x=memory:", {"nested": "tree:x=memory:"}),
        ("", {}),
    ],
)
def test_sources_are_told_by_name(written_as: str, found: dict[str, str]) -> None:
    assert parse_mounts(written_as) == found


def test_a_profile_tells_sources_as_a_table() -> None:
    assert parse_mounts({"a": "memory:"}) == {"a": "memory:"}


@pytest.mark.parametrize(
    ("written_as", "reason"),
    [
        ("memory:", "NAME=SOURCE"),
        ("a=memory:,a=local:/x", "given twice"),
        ("=memory:", "is empty"),
        ("..=memory:", "is empty"),
        ("a/b=memory:", "slash"),
        ("a:b=memory:", "colon"),
        ("a=", "no source"),
    ],
)
def test_what_is_told_wrongly_is_refused_in_words(written_as: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_mounts(written_as)


def test_a_tree_needs_sources_and_each_once() -> None:
    with pytest.raises(ConfigError, match="needs sources"):
        TreeBackend(Options(), PlainMount())
    with pytest.raises(ConfigError, match="both in the source and in the option mounts: a"):
        TreeBackend(Options(parse_mounts("a=x:"), parse_mounts("a=y:,b=z:")), PlainMount())


async def test_both_ways_of_telling_add_up() -> None:
    mount = PlainMount(sources={"x:": lambda m: stack(memory(m)).hooks})
    hooks = stack(TreeBackend(Options(parse_mounts("a=x:"), parse_mounts("b=x:")), mount)).hooks
    assert set(await listed(hooks, NOTHING)) == {"a", "b"}


# --- the directory of the names


async def test_the_root_has_the_names_and_what_their_roots_tell() -> None:
    hooks, _ = tree({"work": Service, "tmp": memory})
    root = await hooks.fusekit_root(caller=ME)
    assert root == NOTHING
    found = await listed(hooks, root)
    assert list(found) == ["work", "tmp"]
    assert found["work"] == Entry.directory("work", "work", id="work:7", version="v", mode=0o750)
    assert await looked_up(hooks, root, "work") == found["work"]
    with pytest.raises(NotFound):
        await looked_up(hooks, root, "other")


async def test_the_root_cannot_be_changed() -> None:
    hooks, _ = tree({"tmp": memory})
    found = hooks.fusekit_capabilities(directory=NOTHING)
    assert not {"fusekit_write", "fusekit_remove", "fusekit_mkdir", "fusekit_rename"} & (found.hooks or set())
    assert found.rename is Rename.NONE
    top = await looked_up(hooks, NOTHING, "tmp")
    file = await written(hooks, top, "file", b"x")
    refused = [
        written(hooks, NOTHING, "new", b"x"),
        made(hooks, NOTHING, "new"),
        moved(hooks, file, top, NOTHING, "new"),
        moved(hooks, top, NOTHING, NOTHING, "new"),
        hooks.fusekit_remove(directory=NOTHING, entry=top, caller=ME),
        hooks.fusekit_access(entry=NOTHING, want=Want.WRITE, caller=ME),
        hooks.fusekit_symlink(directory=NOTHING, name="new", target="x", caller=ME),
    ]
    for call in refused:
        with pytest.raises(ReadOnly):
            await call
    await hooks.fusekit_access(entry=NOTHING, want=Want.LIST, caller=ME)
    assert await hooks.fusekit_getxattrs(entry=NOTHING, caller=ME) == {}


async def test_a_source_that_is_down_is_shown_and_says_why_when_used() -> None:
    service = None

    def make(mount: Mount) -> Service:
        nonlocal service
        service = Service(mount, down=True)
        return service

    hooks, _ = tree({"work": make, "tmp": memory})
    found = await listed(hooks, NOTHING)
    assert found["work"] == Entry.directory("work", "work")
    assert await listed(hooks, found["tmp"]) == {}
    with pytest.raises(Unavailable, match="is down"):
        await listed(hooks, found["work"])
    assert service is not None
    service.down = False
    assert set(await listed(hooks, found["work"])) == {"derived", "explicit"}


# --- addresses


async def test_refs_ids_and_blobs_belong_to_their_source() -> None:
    hooks, _ = tree({"one": Service, "two": Service})
    one, two = [await looked_up(hooks, NOTHING, name) for name in ("one", "two")]
    assert one.id != two.id
    found = await listed(hooks, one)
    assert found["explicit"].ref == "one:object:17"
    assert (found["explicit"].id, found["explicit"].blob) == ("one:17", "one:sha:1")
    assert found["derived"].ref == "one:/Users/me/derived"


async def test_what_a_source_lets_core_derive_is_derived_in_the_tree_too() -> None:
    hooks, _ = tree({"one": Service})
    top = await looked_up(hooks, NOTHING, "one")
    derived = (await listed(hooks, top))["derived"]
    entries: list[Entry] = []

    async def page(found: object) -> None:
        assert isinstance(found, list)
        entries.extend(found)

    await hooks.fusekit_list(directory=derived, page=page, caller=ME)
    assert {entry.name: entry.ref for entry in entries} == {"derived": "", "explicit": "one:object:17"}


async def test_the_root_of_a_source_is_asked_once() -> None:
    services: list[Service] = []

    def make(mount: Mount) -> Service:
        services.append(Service(mount))
        return services[0]

    hooks, _ = tree({"one": make})
    for _ in range(3):
        await listed(hooks, Entry.directory("one", "one"))
    assert services[0].roots == 1


async def test_capabilities_are_those_of_the_place() -> None:
    hooks, _ = tree({"work": Service, "tmp": memory})
    work = await looked_up(hooks, NOTHING, "work")
    assert hooks.fusekit_capabilities(directory=work).requests_max == 3
    assert not hooks.fusekit_capabilities(directory=work).has("fusekit_write")
    writable = Entry.directory("writable", "work:/Users/me/writable")
    assert hooks.fusekit_capabilities(directory=writable).has("fusekit_write")
    assert hooks.fusekit_capabilities(directory=Entry.directory("tmp", "tmp")).guarded


async def test_an_address_of_no_source_is_not_found() -> None:
    hooks, _ = tree({"tmp": memory})
    with pytest.raises(NotFound):
        await listed(hooks, Entry.directory("x", "other:/x"))


async def test_sources_are_apart() -> None:
    hooks, _ = tree({"one": memory, "two": memory})
    one, two = [await looked_up(hooks, NOTHING, name) for name in ("one", "two")]
    await written(hooks, one, "file", b"in one")
    assert await listed(hooks, two) == {}
    file = await written(hooks, two, "file", b"in two")
    assert await read(hooks, file) == b"in two"
    assert await read(hooks, await looked_up(hooks, one, "file")) == b"in one"


async def test_between_sources_programs_have_to_copy() -> None:
    hooks, _ = tree({"one": memory, "two": memory})
    one, two = [await looked_up(hooks, NOTHING, name) for name in ("one", "two")]
    file = await written(hooks, one, "file", b"x")
    calls = [
        moved(hooks, file, one, two, "moved"),
        hooks.fusekit_link(entry=file, directory=two, name="linked", caller=ME),
        hooks.fusekit_copy(entry=file, directory=two, name="copied", caller=ME),
    ]
    for call in calls:
        with pytest.raises(NotSupported, match="different sources") as caught:
            await call
        assert caught.value.errno == errno.EXDEV
    with pytest.raises(BackendError):
        await hooks.fusekit_link(entry=one, directory=one, name="loop", caller=ME)
    with pytest.raises(NotSupported):
        await hooks.fusekit_write(directory=None, name="", replacing=None, content=Upload(b""), caller=ME)
    assert set(await listed(hooks, one)) == {"file"}
    assert await listed(hooks, two) == {}


# --- the mount of a source


async def test_changes_are_told_by_the_addresses_of_the_tree() -> None:
    services: list[Service] = []

    def make(mount: Mount) -> Service:
        services.append(Service(mount))
        return services[0]

    hooks, mount = tree({"work": make})
    await looked_up(hooks, NOTHING, "work")
    service = services[0]
    service.mount.changed("/Users/me/sub", "file")
    service.mount.changed("/Users/me", "new")
    service.mount.changed("object:17", None, "somebody")
    assert mount.changes == [
        ("work:/Users/me/sub", "file", None),
        ("work", "new", None),
        ("work:object:17", None, None),
    ]


async def test_a_source_gets_http_and_further_sources_from_the_mount_of_the_tree() -> None:
    asked: list[str] = []

    class Client:
        pass

    def http(url: str, auth: object, explain: object) -> Http:
        asked.append(url)
        return Client()  # type: ignore[return-value]  # never called

    below: list[Mount] = []

    def opener(inner: Mount) -> Hooks:
        below.append(inner)
        return stack(memory(inner)).hooks

    mount = PlainMount(http_factory=http, sources={"x:": opener})
    TreeBackend(Options(parse_mounts("a=x:")), mount)
    below[0].http("https://service.example")
    assert asked == ["https://service.example"]
    below[0].open("x:", below[0])
    assert len(below) == 2


async def test_a_tree_in_a_tree() -> None:
    outer = PlainMount()
    outer.sources = {
        "memory:": lambda m: stack(memory(m)).hooks,
        "tree:inner=memory:": lambda m: stack(TreeBackend(Options(parse_mounts("inner=memory:")), m)).hooks,
    }
    hooks = stack(TreeBackend(Options(parse_mounts("outer=tree:inner=memory:")), outer)).hooks
    inner = await looked_up(hooks, await looked_up(hooks, NOTHING, "outer"), "inner")
    folder = await made(hooks, inner, "folder")
    await written(hooks, folder, "file", b"deep")
    assert await read(hooks, (await listed(hooks, folder))["file"]) == b"deep"
    assert not hooks.fusekit_capabilities(directory=Entry.directory("outer", "outer")).has("fusekit_write")


# --- who asks


async def test_without_views_for_each_user_there_is_one_principal() -> None:
    hooks, _ = tree({"one": memory, "two": Service})
    assert not hooks.fusekit_capabilities(directory=NOTHING).has("fusekit_principal")
    assert await hooks.fusekit_principal(uid=5, gid=5, pid=1) == ""


async def test_each_source_gets_its_own_principal() -> None:
    services: list[Service] = []

    def make(mount: Mount) -> Service:
        services.append(Service(mount, per_user=True))
        return services[-1]

    hooks, _ = tree({"one": make, "plain": memory, "two": make})
    assert hooks.fusekit_capabilities(directory=NOTHING).has("fusekit_principal")
    principal = await hooks.fusekit_principal(uid=5, gid=5, pid=1)
    caller = Caller(5, 5, 1, principal)
    for name in ("one", "two"):
        await listed(hooks, Entry.directory(name, name), caller)
    assert [service.callers for service in services] == [["user 5, of=all"], ["user 5, of=all"]]
    other = await hooks.fusekit_principal(uid=6, gid=6, pid=1)
    assert other != principal


async def test_who_is_not_signed_in_at_one_source_can_use_the_others() -> None:
    hooks, _ = tree({"closed": lambda mount: Service(mount, per_user=True), "tmp": memory})
    caller = Caller(13, 13, 1, await hooks.fusekit_principal(uid=13, gid=13, pid=1))
    found = await listed(hooks, NOTHING, caller)
    assert found["closed"] == Entry.directory("closed", "closed")
    assert await listed(hooks, found["tmp"], caller) == {}
    with pytest.raises(Denied, match="service login"):
        await listed(hooks, found["closed"], caller)
    with pytest.raises(Denied, match="service login"):
        await hooks.fusekit_access(entry=found["closed"], want=Want.LIST, caller=caller)


async def test_lifespans_of_the_sources_are_left_to_the_mount() -> None:
    entered: list[str] = []

    class Lives(MemoryBackend):
        @hookimpl
        @asynccontextmanager
        async def fusekit_lifespan(self) -> AsyncIterator[None]:
            entered.append("in")
            yield

    mount = PlainMount(sources={"x:": lambda m: stack(Lives(MemoryOptions(), m)).hooks})
    made_stack = stack(TreeBackend(Options(parse_mounts("a=x:")), mount))
    assert made_stack.lifespans == ()
    assert entered == []
