"""Which store a source is: two that differ only in a host must never share a cache or a journal."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import attrs
import pytest

from fusekit.api import Entry, Mount, Page, PluginError, hookimpl, option
from fusekit.config import LayerChoice, Source, declared, fill, identity
from fusekit.plugins import manager
from fusekit.plugins.manager import stack
from fusekit.settings import Settings
from fusekit.types import Auth, Explain, Http
from fusekit.volume import Volume, open_stack, open_volume


@attrs.frozen
class Options:
    path: str = option(default="/")
    host: str = option(default="one", env=("SHOP_HOST",), identity=True)
    speed: str = option(default="slow")
    token: str = option(default="", secret=True, env=("SHOP_TOKEN",))


@attrs.frozen
class KeyOptions:
    key_name: str = option(default="first", identity=True)
    tries: int = option(default=3)


class Shop:
    scheme, options = "shop", Options

    def __init__(self, options: Options, mount: Mount) -> None:
        self.options_given = options

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        await page([])


class Wandering(Shop):
    """A backend that knows its host only when it was made: from a file of other tools."""

    scheme = "wandering"

    def __init__(self, options: Options, mount: Mount) -> None:
        super().__init__(options, mount)
        self.identity = f"https://{options.host}.example"


def source(*, flags: Mapping[str, str] = {}, environment: Mapping[str, str] = {}, **more: Any) -> Source:
    options, origins = fill(Options, "shop", path="/a", flags=flags, environment=environment, profile={})
    return Source("shop", "/a", options, origins, **more)


def test_an_option_that_says_which_store_it_is_counts_wherever_its_value_came_from() -> None:
    given = identity(source(flags={"host": "two"}))
    assert given == identity(source(environment={"SHOP_HOST": "two"}))
    assert given == identity(source(environment={"FUSEKIT_SHOP_HOST": "two"}))
    assert given != identity(source())
    assert identity(source(flags={"host": "one"})) == identity(source())


def test_other_options_and_secrets_do_not_count() -> None:
    assert identity(source(flags={"speed": "fast"}, environment={"SHOP_TOKEN": "hush"})) == identity(source())
    assert "hush" not in identity(source(environment={"SHOP_TOKEN": "hush"}))


def test_scheme_and_path_count() -> None:
    other = attrs.evolve(source(), path="/b")
    assert identity(other) != identity(source())
    assert identity(attrs.evolve(source(), scheme="shed")) != identity(source())


def test_a_layer_counts_by_what_it_calls_identity_and_without_any_not_at_all() -> None:
    plain = source(layers=(LayerChoice("audit", _NoIdentity()),))
    assert identity(plain) == identity(source())
    first = source(layers=(LayerChoice("crypt", KeyOptions()),))
    second = source(layers=(LayerChoice("crypt", KeyOptions(key_name="second")),))
    patient = source(layers=(LayerChoice("crypt", KeyOptions(tries=9)),))
    assert len({identity(source()), identity(first), identity(second)}) == 3
    assert identity(patient) == identity(first)


@attrs.frozen
class _NoIdentity:
    rate: int = option(default=1)


def test_a_secret_cannot_say_which_store_it_is() -> None:
    with pytest.raises(PluginError, match="secret"):
        option(default="", secret=True, identity=True)


def test_the_flag_is_shown_with_the_option() -> None:
    assert [one.name for one in declared(Options, "shop") if one.identity] == ["host"]


def volume(tmp_path: Path, made: object, text: str = "shop:/a") -> AbstractAsyncContextManager[Volume]:
    settings = Settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")
    return open_stack(lambda mount: stack(made), text, settings)


async def test_what_a_backend_found_out_when_it_was_made_counts(tmp_path: Path) -> None:
    seen = set()
    for host in ("one", "two", "one"):
        async with volume(tmp_path, Wandering(Options(host=host), _no_mount())) as opened:
            seen.add(opened.identity)
    assert len(seen) == 2
    assert {path.name for path in (tmp_path / "state").iterdir()} == seen


async def test_an_identity_that_is_no_text_is_refused(tmp_path: Path) -> None:
    backend = Wandering(Options(), _no_mount())
    backend.identity = 7  # type: ignore[assignment]
    with pytest.raises(PluginError, match=r"Wandering\.identity is int"):
        stack(backend)


class _NoMount:
    def http(self, base_url: str, auth: Auth | None = None, explain: Explain | None = None) -> Http:
        raise NotImplementedError

    def changed(self, ref: str, name: str | None = None, principal: str | None = None) -> None:
        raise NotImplementedError

    def open(self, source: str, mount: Mount) -> Any:
        raise NotImplementedError


def _no_mount() -> Mount:
    return _NoMount()


@pytest.fixture
def shops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the schemes of this module be found as if they were installed."""
    classes = {cls.scheme: cls for cls in (Shop, Wandering)}
    known = manager.backend_class

    def find(scheme: str) -> type[Any]:
        return classes[scheme] if scheme in classes else known(scheme)

    monkeypatch.setattr(manager, "backend_class", find)
    monkeypatch.setattr("fusekit.plugins.sources.backend_class", find)
    monkeypatch.setattr("fusekit.plugins.sources._named", _named)


def _named(text: str, profiles: object) -> tuple[str, Mapping[str, Any], str, str, str]:
    word, _, path = text.partition(":")
    return "", {}, word, path, ""


@pytest.mark.usefixtures("shops")
@pytest.mark.parametrize("scheme", ["shop", "wandering"])
async def test_a_tree_is_another_store_where_one_of_its_sources_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    from fusekit.plugins.sources import resolve

    settings = Settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")
    seen = []
    for host in ("one", "two", "one"):
        monkeypatch.setenv("SHOP_HOST", host)
        request = resolve(f"tree:a={scheme}:/x,b=memory:")
        async with open_volume(request.source, settings) as opened:
            seen.append(opened.identity)
    assert seen[0] == seen[2] != seen[1]


async def test_a_tree_counts_the_names_of_its_sources(tmp_path: Path) -> None:
    from fusekit.backends.tree import Options as TreeOptions

    def named(**mounts: str) -> str:
        return identity(Source("tree", "", TreeOptions(mounts=mounts)))

    assert named(a="memory:") != named(b="memory:")
    assert named(a="memory:") == named(a="memory:")
