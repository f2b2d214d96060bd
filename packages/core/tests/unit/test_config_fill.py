"""Filling options: which place wins, what is refused, and where each value is said to come from."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from fusekit.config import Place, declared, fill, option, parse_duration, parse_size, shown
from fusekit.errors import ConfigError
from fusekit.settings import Consistency, Settings, Write


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen
class Options:
    host: str = option(env=("SHOP_HOST",), help="where the service is")
    path: str = option(default="/")
    port: int = option(default=443)
    ratio: float = option(default=0.5)
    dry: bool = option(default=False)
    root: Path | None = option(default=None)
    tags: tuple[str, ...] = option(default=())
    colour: Colour = option(default=Colour.RED)
    mode: Literal["fast", "safe"] = option(default="safe")
    wait_s: float = option(default=3.0, converter=parse_duration)
    chunk_bytes: int = option(default=1024, converter=parse_size, validator=attrs.validators.ge(16))
    token: str | None = option(default=None, env=("SHOP_TOKEN",), secret=True)


def filled(**places: Any) -> tuple[Options, dict[str, str]]:
    given: dict[str, Any] = {"flags": {}, "environment": {}, "profile": {}, **places}
    if "host" not in given["flags"] and not given.pop("hostless", False):
        given["flags"] = {"host": "h", **given["flags"]}
    options, origins = fill(Options, "shop", profile_name="work", **given)
    return options, {name: str(origin) for name, origin in origins.items()}


def test_flag_wins_over_environment_over_profile_over_default() -> None:
    environment = {"FUSEKIT_SHOP_PORT": "2", "FUSEKIT_SHOP_RATIO": "0.25"}
    profile = {"port": 3, "ratio": 0.75, "dry": True}
    options, origins = filled(flags={"port": "1"}, environment=environment, profile=profile)
    assert (options.port, options.ratio, options.dry, options.colour) == (1, 0.25, True, Colour.RED)
    assert origins["port"] == "flag"
    assert origins["ratio"] == "environment FUSEKIT_SHOP_RATIO"
    assert origins["dry"] == "profile work"
    assert origins["colour"] == "default"


def test_own_variable_is_asked_before_the_services_and_an_empty_one_not_at_all() -> None:
    options, origins = filled(environment={"SHOP_HOST": "theirs", "FUSEKIT_SHOP_HOST": "ours"}, hostless=True)
    assert (options.host, origins["host"]) == ("ours", "environment FUSEKIT_SHOP_HOST")
    options, origins = filled(environment={"SHOP_HOST": "theirs", "FUSEKIT_SHOP_HOST": ""}, hostless=True)
    assert (options.host, origins["host"]) == ("theirs", "environment SHOP_HOST")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "8443", 8443),
        ("ratio", "1", 1.0),
        ("dry", "Yes", True),
        ("dry", "0", False),
        ("tags", "a, b,,c", ("a", "b", "c")),
        ("tags", ["a", "b"], ("a", "b")),
        ("colour", "blue", Colour.BLUE),
        ("mode", "fast", "fast"),
        ("wait", "5min", 300.0),
        ("wait_s", "250ms", 0.25),
        ("chunk", "64KiB", 65536),
        ("root", "", None),
    ],
)
def test_text_becomes_the_annotated_type(name: str, text: Any, value: object) -> None:
    options, _ = filled(flags={name: text})
    field = {"wait": "wait_s", "chunk": "chunk_bytes"}.get(name, name)
    assert getattr(options, field) == value
    assert type(getattr(options, field)) is type(value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": "abc"}, "option port of shop: 'abc' is no whole number (from -o)"),
        ({"ratio": "much"}, "option ratio of shop: 'much' is no number (from -o)"),
        ({"dry": "perhaps"}, "option dry of shop: 'perhaps' is neither yes nor no (from -o)"),
        ({"colour": "green"}, "option colour of shop: 'green' is not red or blue (from -o)"),
        ({"mode": "best"}, "option mode of shop: 'best' is not fast or safe (from -o)"),
        ({"wait": "soon"}, "option wait of shop: 'soon' is no time; write for example 30s (from -o)"),
        ({"chunk": "8"}, "option chunk of shop: 'chunk_bytes' must be >= 16: 8 (from -o)"),
        ({"prt": "1"}, "shop has no option 'prt'; did you mean port?"),
        ({"path": "/x"}, "shop has no option 'path'"),
    ],
)
def test_what_does_not_fit_names_option_value_and_origin(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        filled(flags=flags)
    assert str(caught.value) == message


def test_a_wrong_value_names_the_variable_or_profile_it_came_from() -> None:
    with pytest.raises(ConfigError, match=r"\(from environment FUSEKIT_SHOP_PORT\)$"):
        filled(environment={"FUSEKIT_SHOP_PORT": "x"})
    with pytest.raises(ConfigError, match=r"True is no whole number \(from profile work\)$"):
        filled(profile={"port": True})


def test_missing_option_says_all_ways_to_give_it() -> None:
    with pytest.raises(ConfigError) as caught:
        filled(hostless=True)
    assert str(caught.value) == (
        "option host of shop is missing: give -o host=…, or set FUSEKIT_SHOP_HOST or SHOP_HOST"
    )


def test_path_comes_from_source_and_is_refused_where_there_is_none() -> None:
    options, origins = filled(path="/a:b")
    assert (options.path, origins["path"]) == ("/a:b", "SOURCE")
    assert filled(path="")[0].path == "/"

    @attrs.frozen
    class Pathless:
        size: int = option(default=1)

    with pytest.raises(ConfigError, match="memory takes no path: write memory:"):
        fill(Pathless, "memory", path="/x", flags={}, environment={}, profile={})

    @attrs.frozen
    class Required:
        path: Path

    with pytest.raises(ConfigError, match="zip needs a path: write zip:PATH"):
        fill(Required, "zip", path="", flags={}, environment={}, profile={})


def test_a_word_for_no_path_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    word = {"cache_dir": "none"}
    for flags, profile in ((word, {}), ({}, word)):
        settings, _ = fill(Settings, "", flags=flags, environment={}, profile=profile)
        assert settings.cache_dir is None
    settings, _ = fill(Settings, "", flags={"cache_dir": "./none"}, environment={}, profile={})
    assert settings.cache_dir == tmp_path / "none"


def test_relative_paths_and_home_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert filled(flags={"root": "x/y"})[0].root == tmp_path / "x/y"
    assert filled(flags={"root": "~/y"})[0].root == Path("/home/somebody/y")


def test_secret_is_refused_as_flag_and_in_a_profile_without_repeating_it() -> None:
    for place in ("flags", "profile"):
        with pytest.raises(ConfigError) as caught:
            filled(**{place: {"token": "hunter2"}})
        assert "set SHOP_TOKEN in the environment, or give token_file" in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_secret_from_a_private_file_named_by_flag_variable_or_profile(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("hunter2\n")
    file.chmod(0o600)
    for places in (
        {"flags": {"token_file": str(file)}, "environment": {"SHOP_TOKEN": "loses"}},
        {"environment": {"FUSEKIT_SHOP_TOKEN_FILE": str(file)}},
        {"profile": {"token_file": str(file)}},
    ):
        assert filled(**places)[0].token == "hunter2"
    options, origins = filled(environment={"SHOP_TOKEN": "wins"}, profile={"token_file": str(file)})
    assert (options.token, origins["token"]) == ("wins", "environment SHOP_TOKEN")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_secret_file_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    file.write_text("hunter2")
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"others can read it; run: chmod 600 {file}"):
        filled(flags={"token_file": str(file)})


def test_secret_file_that_is_missing_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the secret in .*: No such file"):
        filled(flags={"token_file": str(tmp_path / "none")})
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="no plain file"):
        filled(flags={"token_file": str(tmp_path / "pipe")})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_secret_file_of_another_user_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("hunter2")
    file.chmod(0o600)
    os.chown(file, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        filled(flags={"token_file": str(file)})


def test_secret_is_never_shown_and_never_in_an_error() -> None:
    @attrs.frozen
    class Picky:
        token: str = option(secret=True, validator=attrs.validators.matches_re("[0-9]+"))

    with pytest.raises(ConfigError) as caught:
        fill(Picky, "shop", flags={}, environment={"FUSEKIT_SHOP_TOKEN": "hunter2"}, profile={})
    assert str(caught.value) == "option token of shop: its value cannot be used (from environment FUSEKIT_SHOP_TOKEN)"
    assert caught.value.__cause__ is None
    options, _ = filled(environment={"SHOP_TOKEN": "hunter2"})
    token = next(one for one in declared(Options, "shop") if one.secret)
    assert shown(options, token) == "set"
    assert shown(filled()[0], token) == "not set"
    assert "hunter2" not in repr(options)


def test_declared_lists_what_people_can_write() -> None:
    table = {one.name: one for one in declared(Options, "shop")}
    assert table["host"].variables == ("FUSEKIT_SHOP_HOST", "SHOP_HOST")
    assert table["host"].default is None
    assert table["wait"].kind == "a time"
    assert table["chunk"].kind == "a size"
    assert table["colour"].kind == "red or blue"
    assert table["token"].default == ""
    assert table["path"].variables == ()


def test_settings_are_filled_by_the_same_rules() -> None:
    environment = {"FUSEKIT_TTL": "1min", "FUSEKIT_UMASK": "077"}
    settings, origins = fill(
        Settings,
        "",
        flags={"consistency": "relaxed", "file-mode": "640"},
        environment=environment,
        profile={"write": "off"},
    )
    assert (settings.consistency, settings.write) == (Consistency.RELAXED, Write.OFF)
    assert (settings.ttl, settings.umask, settings.file_mode) == (60.0, 0o077, 0o640)
    assert origins["ttl"].place is Place.ENVIRONMENT
    with pytest.raises(ConfigError) as caught:
        fill(Settings, "", flags={"umask": "9"}, environment={}, profile={})
    assert str(caught.value) == "option umask: '9' is no octal mode between 0 and 7777 (from the command line)"
