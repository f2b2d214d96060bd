"""What registration refuses and fills in, how layers stack, and how plugins are found."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from fusekit.errors import NotSupported, PluginError
from fusekit.plugins import manager
from fusekit.plugins.manager import stack, verify
from fusekit.plugins.specs import OPERATIONS, SYNCHRONOUS, Hooks, hookimpl
from fusekit.testing.harness import ME, NO_ATTRIBUTES, Buffer, Upload, listed
from fusekit.types import Attributes, Caller, Capabilities, Content, Entry, Kind, Page, Sink, Want

ROOT = Entry.directory("")


class Small:
    """The least that is a backend."""

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        await page([Entry.file("file", size=4)])

    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        await sink.write(b"data"[start:stop])


# --- what is refused


def refusal(plugin: object) -> str:
    with pytest.raises(PluginError) as caught:
        stack(plugin)
    return str(caught.value)


def test_a_scheme_with_a_slip_of_the_pen_is_guessed() -> None:
    with pytest.raises(PluginError, match=r"'memry' .*; did you mean memory\?$"):
        manager.find("memry")


def test_a_method_without_the_marker_is_refused() -> None:
    class Overrides(Small):
        async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
            """Would silently take the capability away."""

    reason = refusal(Overrides())
    assert "Overrides.fusekit_read" in reason
    assert "lacks @hookimpl" in reason


def test_a_name_that_is_no_hook_is_refused() -> None:
    class Misspelled(Small):
        @hookimpl
        async def fusekit_raed(self) -> None: ...

    assert "fusekit_raed is no hook of fusekit" in refusal(Misspelled())


def test_a_discovery_hook_on_the_object_is_refused() -> None:
    class Confused(Small):
        @hookimpl
        def fusekit_backends(self) -> list[type]:
            return []

    assert "fusekit_backends is no hook" in refusal(Confused())


def test_a_function_where_a_coroutine_is_wanted_is_refused() -> None:
    class Blocks(Small):
        @hookimpl
        def fusekit_stat(self, directory: Entry, name: str) -> Entry:
            return Entry.file(name)

    assert "fusekit_stat must be `async def`" in refusal(Blocks())


def test_an_async_generator_is_refused() -> None:
    class Yields(Small):
        @hookimpl
        async def fusekit_list(self, directory: Entry) -> AsyncIterator[Entry]:  # type: ignore[override]
            yield directory

    assert "without `yield`" in refusal(Yields())


def test_a_coroutine_where_a_function_is_wanted_is_refused() -> None:
    class Waits(Small):
        @hookimpl
        async def fusekit_capabilities(self) -> Capabilities:
            return Capabilities()

    assert "must not be a coroutine function" in refusal(Waits())


def test_a_default_argument_is_refused() -> None:
    class Defaults(Small):
        @hookimpl
        async def fusekit_stat(self, directory: Entry, name: str, known: Entry | None = None) -> Entry:
            return Entry.file(name)

    reason = refusal(Defaults())
    assert "known" in reason
    assert "never filled" in reason


def test_a_keyword_only_argument_is_refused() -> None:
    class KeywordOnly(Small):
        @hookimpl
        async def fusekit_stat(self, *, directory: Entry, name: str) -> Entry:
            return Entry.file(name)

    assert "never filled" in refusal(KeywordOnly())


def test_collecting_arguments_is_refused() -> None:
    class Collects(Small):
        @hookimpl
        async def fusekit_stat(self, *given: Entry) -> Entry:
            return given[0]

    assert "never filled" in refusal(Collects())


def test_an_annotation_other_than_the_specification_is_refused() -> None:
    class Mistyped(Small):
        @hookimpl
        async def fusekit_stat(self, directory: Entry, name: bytes) -> Entry:
            return ROOT

    reason = refusal(Mistyped())
    assert "`name`" in reason
    assert "not <class 'bytes'>" in reason


def test_an_annotation_that_cannot_be_looked_up_is_refused() -> None:
    class Unknown(Small):
        @hookimpl
        async def fusekit_stat(self, directory: Entry, name: Missing) -> Entry:  # type: ignore[name-defined]  # noqa: F821
            return ROOT

    assert "importable at run time" in refusal(Unknown())


def test_an_argument_that_the_hook_does_not_have_is_refused() -> None:
    class Asks(Small):
        @hookimpl
        async def fusekit_stat(self, directory: Entry, filename: str) -> Entry:
            return ROOT

    assert "filename" in refusal(Asks())


def test_a_wrapper_of_a_coroutine_is_refused() -> None:
    class Wraps(Small):
        @hookimpl(wrapper=True)
        async def fusekit_stat(self) -> None: ...

    assert "delegate to `inner`" in refusal(Wraps())


def test_a_layer_is_checked_as_well() -> None:
    class Layer:
        def __init__(self, inner: Hooks) -> None: ...

        @hookimpl
        def fusekit_read(self) -> None: ...

    with pytest.raises(PluginError, match="must be `async def`"):
        stack(Small(), [Layer])


def test_missing_annotations_are_nobodys_business() -> None:
    class Untyped(Small):
        @hookimpl
        async def fusekit_stat(self, directory, name):  # type: ignore[no-untyped-def]
            return Entry.file(name)

    verify(Untyped())


# --- what is filled in


async def test_two_methods_make_a_backend() -> None:
    hooks = stack(Small()).hooks
    root = await hooks.fusekit_root(caller=ME)
    assert root == Entry.directory("")
    assert list(await listed(hooks, root)) == ["file"]
    sink = Buffer(1)
    await hooks.fusekit_read(entry=Entry.file("file"), start=1, stop=3, sink=sink, caller=ME)
    assert sink.got(1) == b"at"
    assert await hooks.fusekit_principal(uid=1, gid=1, pid=1) == ""
    await hooks.fusekit_access(entry=root, want=Want.LIST, caller=ME)


def test_capabilities_are_the_hooks_that_are_implemented() -> None:
    found = stack(Small()).hooks.fusekit_capabilities(directory=ROOT)
    assert found == Capabilities(hooks=frozenset({"fusekit_list", "fusekit_read"}))
    assert found.has("fusekit_read")
    assert not found.has("fusekit_write")


def test_what_a_backend_says_of_itself_is_completed_with_its_hooks() -> None:
    class Says(Small):
        @hookimpl
        def fusekit_capabilities(self) -> Capabilities:
            return Capabilities(requests_max=3)

    found = stack(Says()).hooks.fusekit_capabilities(directory=ROOT)
    assert found.requests_max == 3
    assert found.hooks == frozenset({"fusekit_list", "fusekit_read", "fusekit_capabilities"})


def test_hooks_that_a_backend_names_for_a_place_are_left_as_they_are() -> None:
    class Places(Small):
        @hookimpl
        def fusekit_capabilities(self, directory: Entry) -> Capabilities:
            return Capabilities(hooks=frozenset({"fusekit_list"} if directory.ref else ()))

    hooks = stack(Places()).hooks
    assert hooks.fusekit_capabilities(directory=ROOT).hooks == frozenset()
    assert hooks.fusekit_capabilities(directory=Entry.directory("a", "/a")).hooks == frozenset({"fusekit_list"})


async def test_every_absent_hook_is_not_supported_and_says_which() -> None:
    hooks = stack(object()).hooks
    content: Content = Upload(b"")
    one: dict[str, Any] = {
        "directory": ROOT,
        "page": None,
        "caller": ME,
        "name": "n",
        "known": None,
        "entry": ROOT,
        "start": 0,
        "stop": None,
        "sink": Buffer(),
        "replacing": None,
        "content": content,
        "attributes": NO_ATTRIBUTES,
        "target": ROOT,
        "kind": Kind.FIFO,
        "source": ROOT,
        "exchange": False,
        "changes": NO_ATTRIBUTES,
        "value": b"",
        "request": b"",
    }
    defaulted = {"fusekit_root", "fusekit_principal", "fusekit_access"} | SYNCHRONOUS
    for name in set(OPERATIONS) - defaulted:
        wanted = getattr(Hooks, name).__code__.co_varnames[1 : getattr(Hooks, name).__code__.co_argcount]
        with pytest.raises(NotSupported, match=name):
            await getattr(hooks, name)(**{argument: one[argument] for argument in wanted})


async def test_an_implementation_gets_the_arguments_that_it_names() -> None:
    class Names(Small):
        @hookimpl
        async def fusekit_stat(self, name: str, caller: Caller) -> Entry:
            return Entry.file(name, uid=caller.uid)

    entry = await stack(Names()).hooks.fusekit_stat(directory=ROOT, name="x", known=None, caller=ME)
    assert (entry.name, entry.uid) == ("x", ME.uid)


# --- layers


class Upper:
    """Reads in capitals, and leaves the rest to what is below."""

    def __init__(self, inner: Hooks) -> None:
        self.inner = inner

    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink, caller: Caller) -> None:
        below = Buffer(start)
        await self.inner.fusekit_read(entry=entry, start=start, stop=stop, sink=below, caller=caller)
        await sink.write(below.got(start).upper())


class Twice(Upper):
    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink, caller: Caller) -> None:
        for _ in range(2):
            await self.inner.fusekit_read(entry=entry, start=start, stop=stop, sink=sink, caller=caller)


class Narrow:
    def __init__(self, inner: Hooks) -> None: ...

    @hookimpl(wrapper=True)
    def fusekit_capabilities(self) -> Iterator[None]:
        below = yield
        assert isinstance(below, Capabilities)
        assert below.hooks is not None
        return attrs.evolve(below, hooks=below.hooks - {"fusekit_read"})


async def read_all(hooks: Hooks) -> bytes:
    sink = Buffer()
    await hooks.fusekit_read(entry=Entry.file("file"), start=0, stop=None, sink=sink, caller=ME)
    return bytes(sink.data)


async def test_a_layer_changes_one_hook_and_the_rest_fall_through() -> None:
    hooks = stack(Small(), [Upper]).hooks
    assert await read_all(hooks) == b"DATA"
    assert list(await listed(hooks, ROOT)) == ["file"]
    with pytest.raises(NotSupported):
        await hooks.fusekit_remove(directory=ROOT, entry=ROOT, caller=ME)


async def test_layers_stand_on_each_other_the_first_lowest() -> None:
    assert await read_all(stack(Small(), [Twice, Upper]).hooks) == b"DATADATA"
    inner: list[Hooks] = []

    class Sees(Upper):
        def __init__(self, below: Hooks) -> None:
            super().__init__(below)
            inner.append(below)

    stack(Small(), [Upper, Sees])
    assert await read_all(inner[0]) == b"DATA", "inner is the hooks of the level below, without the layer itself"


def test_a_layer_narrows_capabilities_as_a_wrapper() -> None:
    assert stack(Small(), [Narrow]).hooks.fusekit_capabilities(directory=ROOT).hooks == frozenset({"fusekit_list"})


def test_implementing_a_hook_in_a_layer_is_no_capability_by_itself() -> None:
    class Writes:
        def __init__(self, inner: Hooks) -> None: ...

        @hookimpl
        async def fusekit_mkdir(self, name: str, attributes: Attributes) -> Entry:
            return Entry.directory(name)

    assert not stack(Small(), [Writes]).hooks.fusekit_capabilities(directory=ROOT).has("fusekit_mkdir")


async def test_lifespans_are_entered_bottom_up_and_left_top_down() -> None:
    log: list[str] = []

    def spanned(base: type, word: str) -> type:
        class Spanned(base):  # type: ignore[misc]
            @hookimpl
            @asynccontextmanager
            async def fusekit_lifespan(self) -> AsyncIterator[None]:
                log.append(f"{word} up")
                yield
                log.append(f"{word} down")

        return Spanned

    made = stack(spanned(Small, "backend")(), [spanned(Upper, "first"), Upper, spanned(Upper, "second")])
    assert len(made.lifespans) == 3
    first, second, third = made.lifespans
    async with first, second, third:
        assert log == ["backend up", "first up", "second up"]
    assert log[3:] == ["second down", "first down", "backend down"]


def test_without_a_lifespan_there_is_nothing_to_enter() -> None:
    assert stack(Small(), [Upper]).lifespans == ()


# --- discovery


def install(root: Path, name: str, points: Mapping[str, str], modules: Mapping[str, str]) -> None:
    """Lay out a distribution as an installer does."""
    info = root / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [f"{point} = {module}" for point, module in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[fusekit]", *lines, ""]))
    for module, source in modules.items():
        (root / f"{module}.py").write_text(source)


GOOD = """
from pathlib import Path
import attrs
from fusekit.api import Entry, hookimpl

@attrs.frozen
class Options:
    path: str = ""

class Backend:
    scheme, options = "{scheme}", Options
    def __init__(self, options, mount): ...

class Layer:
    name, options = "loud", Options
    def __init__(self, options, mount, inner): ...

class Emulator:
    scheme, options = "{scheme}", Options

@hookimpl
def fusekit_backends():
    return [Backend]

@hookimpl
def fusekit_layers():
    return [Layer]

@hookimpl
def fusekit_emulators():
    return [Emulator]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a directory on the import path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("plugin_"):
            del sys.modules[name]


def test_what_a_distribution_registers_is_found(site: Path) -> None:
    install(site, "fusekit-good", {"good": "plugin_good"}, {"plugin_good": GOOD.format(scheme="good")})
    plugin = manager.find("good")
    assert (plugin.name, plugin.module, plugin.distribution, plugin.version) == (
        *("good", "plugin_good", "fusekit-good"),
        "1.2",
    )
    assert plugin.error is None
    assert manager.backend_class("good").scheme == "good"
    assert manager.emulator_class("good").__name__ == "Emulator"
    assert [cls.name for cls in plugin.layers] == ["loud"]


def test_a_layer_is_found_by_its_entry_point(site: Path) -> None:
    install(site, "fusekit-loud", {"loud": "plugin_loud"}, {"plugin_loud": GOOD.format(scheme="good")})
    assert manager.layer_class("loud").name == "loud"


def test_the_built_in_plugins_are_installed() -> None:
    found = {plugin.name: plugin for plugin in manager.installed()}
    assert {"local", "memory", "tree", "read-only"} <= set(found)
    assert all(found[name].error is None for name in ("local", "memory", "tree", "read-only"))
    assert all(found[name].distribution == "fusekit" for name in ("local", "memory", "tree"))
    for name in ("local", "memory", "tree"):
        assert manager.backend_class(name).scheme == name
    assert manager.layer_class("read-only").name == "read-only"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import does_not_exist_anywhere", "ModuleNotFoundError: No module named 'does_not_exist_anywhere'"),
        ("raise RuntimeError", "RuntimeError"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        (GOOD.replace('scheme, options = "{scheme}", Options', "options = Options"), "Backend has no `scheme`"),
        (GOOD.replace('"{scheme}", Options', '"x", dict'), "Backend.options is no attrs class"),
        (GOOD.replace('name, options = "loud", Options', "options = Options"), "Layer has no `scheme`"),
        (GOOD.replace("def fusekit_layers():", "def fusekit_lairs():"), "fusekit_lairs"),
    ],
)
def test_a_plugin_that_fails_is_listed_with_its_reason_and_breaks_no_other(
    site: Path, source: str, reason: str
) -> None:
    install(site, "fusekit-bad", {"bad": "plugin_bad"}, {"plugin_bad": source})
    install(site, "fusekit-good", {"good": "plugin_good"}, {"plugin_good": GOOD.format(scheme="good")})
    found = {plugin.name: plugin for plugin in manager.installed()}
    assert found["bad"].distribution == "fusekit-bad"
    assert found["good"].error is None
    error = found["bad"].error
    assert error is not None
    assert "'bad' (plugin_bad)" in error
    assert reason in error
    assert manager.backend_class("good").scheme == "good"
    with pytest.raises(PluginError, match="cannot be used"):
        manager.backend_class("bad")


def test_only_the_plugin_asked_for_is_imported(site: Path) -> None:
    install(site, "fusekit-bad", {"bad": "plugin_bad"}, {"plugin_bad": "raise RuntimeError"})
    install(site, "fusekit-good", {"good": "plugin_good"}, {"plugin_good": GOOD.format(scheme="good")})
    manager.find("good")
    assert "plugin_good" in sys.modules
    assert "plugin_bad" not in sys.modules


def test_an_unknown_scheme_names_what_is_installed_and_what_to_install() -> None:
    with pytest.raises(
        PluginError, match=r"'nosuch' \(installed: .*memory.*\); fusekit-nosuch would bring it, .*/backend-nosuch$"
    ):
        manager.backend_class("nosuch")


def test_a_plugin_without_what_is_asked_for_says_so(site: Path) -> None:
    install(site, "fusekit-other", {"mine": "plugin_other"}, {"plugin_other": GOOD.format(scheme="other")})
    with pytest.raises(PluginError, match="registers no backend for 'mine'"):
        manager.backend_class("mine")
    with pytest.raises(PluginError, match="registers no layer 'mine'"):
        manager.layer_class("mine")
    with pytest.raises(PluginError, match="has no emulator for 'mine'"):
        manager.emulator_class("mine")


def test_two_distributions_for_one_scheme_are_refused_by_name(site: Path) -> None:
    install(site, "fusekit-one", {"same": "plugin_one"}, {"plugin_one": GOOD.format(scheme="same")})
    install(site, "fusekit-two", {"same": "plugin_two"}, {"plugin_two": GOOD.format(scheme="same")})
    with pytest.raises(PluginError, match=r"fusekit-one.*fusekit-two"):
        manager.backend_class("same")


def test_two_backends_for_one_scheme_in_a_plugin_are_refused(site: Path) -> None:
    source = GOOD.format(scheme="same").replace("return [Backend]", "return [Backend, type('Other', (Backend,), {})]")
    install(site, "fusekit-same", {"same": "plugin_same"}, {"plugin_same": source})
    with pytest.raises(PluginError, match="Backend and Other both"):
        manager.backend_class("same")
