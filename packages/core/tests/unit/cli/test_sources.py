"""What SOURCE, options and profiles mean together."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusekit.errors import ConfigError, PluginError
from fusekit.plugins.sources import is_source, read_profiles, resolve
from fusekit.settings import Consistency, Write


def profile(home: Path, text: str) -> None:
    folder = home / "config" / "fusekit"
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(text)


def test_options_go_to_engine_backend_and_layer_and_shared_names_to_each(shop: Path) -> None:
    flags = {"consistency": "relaxed", "port": "81", "layers": "shade", "depth": "7", "dry": None}
    request = resolve("shop:/a", flags, environment={})
    assert request.settings.consistency is Consistency.RELAXED
    assert (request.source.scheme, request.source.path, request.source.options.port) == ("shop", "/a", 81)
    (layer,) = request.source.layers
    assert (layer.name, layer.options.depth) == ("shade", 7)
    assert request.source.options.dry is True
    assert layer.options.dry is True
    assert str(layer.origins["depth"]) == "flag"


def test_layer_option_with_the_layers_name_goes_there_alone(shop: Path) -> None:
    request = resolve("shop:", {"layers": "shade", "shade.dry": "yes"}, environment={})
    assert request.source.options.dry is False
    assert request.source.layers[0].options.dry is True


def test_negated_name_switches_a_boolean_off(shop: Path) -> None:
    assert (
        resolve(
            "shop:", {"no-dry": None, "nodirect_io": None}, environment={"FUSEKIT_SHOP_DRY": "1"}
        ).source.options.dry
        is False
    )
    assert resolve("shop:", {"nodirect_io": None}, environment={"FUSEKIT_DIRECT_IO": "1"}).settings.direct_io is False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"prt": "1"}, "neither fusekit nor shop has an option 'prt'; did you mean port?"),
        ({"zzzz": "1"}, "neither fusekit nor shop has an option 'zzzz'; see: fusekit backends --options shop"),
        ({"port": None}, "option port needs a value, a whole number: -o port=…"),
        ({"path": "/x"}, "shop has no option 'path'"),
    ],
)
def test_wrong_option_is_one_sentence(shop: Path, flags: dict[str, str | None], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve("shop:", flags, environment={})
    assert str(caught.value) == message


def test_profile_gives_source_and_options_below_the_environment(shop: Path) -> None:
    profile(shop, '[profiles.work]\nsource = "shop:/me"\nport = 82\nwrite = "off"\nttl = "9s"\n')
    request = resolve("work", {}, environment={"FUSEKIT_TTL": "1s"})
    assert (request.source.path, request.source.options.port, request.settings.write) == ("/me", 82, Write.OFF)
    assert request.settings.ttl == 1.0
    assert str(request.source.origins["port"]) == "profile work"
    assert request.source.profile == "work"


def test_path_after_a_profile_is_inside_it_and_a_scheme_comes_first(shop: Path) -> None:
    profile(shop, '[profiles.work]\nsource = "shop:/me"\n[profiles.shop]\nsource = "shop:/other"\n')
    request = resolve("work:notes/a", environment={})
    assert (request.source.path, request.inner) == ("/me", "notes/a")
    assert resolve("shop:/x", environment={}).source.path == "/x"
    assert resolve("shop", environment={}).source.path == "/other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[profiles", "is no TOML"),
        ("profile = 1", "'profile' is not known"),
        ("[profiles.work]\nport = 1", "profile work needs a line such as"),
        ('[profiles.work]\nsource = "/srv"', "source of profile work is no scheme:path"),
        ('[profiles.work]\nsource = "shop:"\nprt = 1', "has an option 'prt'; did you mean port?"),
        ('[profiles.work]\nsource = "shop:"\nport = "x"', r"'x' is no whole number \(from profile work\)"),
        ('[profiles.work]\nsource = "shop:"\ntoken = "x"', "is a secret and a profile is no place"),
    ],
)
def test_broken_profile_is_one_sentence(shop: Path, text: str, message: str) -> None:
    profile(shop, text)
    with pytest.raises(ConfigError, match=message):
        resolve("work", environment={})


def test_config_file_of_the_variable_must_be_there(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml \(FUSEKIT_CONFIG\) is not there"):
        read_profiles({"FUSEKIT_CONFIG": str(home / "none.toml")})


def test_address_form_gives_host_and_path(shop: Path) -> None:
    request = resolve("shop://other.test/a/b", environment={"SHOP_HOST": "loses"})
    assert (request.source.options.host, request.source.path) == ("other.test", "/a/b")
    assert resolve("SHOP:///a", environment={}).source.path == "/a"
    with pytest.raises(ConfigError, match="user name or password"):
        resolve("shop://me:secret@other.test/", environment={})
    with pytest.raises(ConfigError, match="host is given twice"):
        resolve("shop://other.test/", {"host": "x"}, environment={})


def test_unknown_scheme_and_broken_plugin_and_plain_path_say_what_to_do(shop: Path) -> None:
    with pytest.raises(PluginError, match="no plugin is installed for 'nosuch'"):
        resolve("nosuch:/x", environment={})
    with pytest.raises(PluginError, match="RuntimeError: no compass on board"):
        resolve("broken:/x", environment={})
    with pytest.raises(ConfigError, match=r"'\./data' is no SOURCE and no profile of .*; write scheme:path"):
        resolve("./data", environment={})


def test_only_a_leading_word_with_a_colon_is_a_source() -> None:
    assert is_source("shop:/x")
    assert is_source("work:")
    assert not is_source("./shop:x")
    assert not is_source("/a/b:c")
    assert not is_source("plain")


def test_a_source_has_one_name_wherever_it_is_asked_for(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    assert str(resolve("local:home", environment={}).source) == f"local:{shop}/home"
    assert str(resolve("shop:", environment={}).source) == "shop:/"
