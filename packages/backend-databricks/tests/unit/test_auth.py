"""Which workspace and which token: what people give, in the order in which it counts, and what they are told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import attrs
import pytest

from fusekit.api import ConfigError, Denied
from fusekit.plugins.manager import stack
from fusekit.testing.harness import PlainMount
from fusekit.types import Http
from fusekit_databricks.auth import find_credentials, sign_in, workspace_url
from fusekit_databricks.backend import DatabricksBackend
from fusekit_databricks.options import Options

_NO_HTTP = cast(Http, None)  # nothing is asked

FILE = """
; a comment
[DEFAULT]
host = https://default.example
token = dapi-default

[work]
host  = work.example/
token = dapi-100%work

[tokenless]
host = https://work.example

[hostless]
token = dapi-lost

[oauth]
host = https://work.example
client_id = abc
auth_type = oauth-m2m
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / ".databrickscfg"
    made.write_text(FILE)
    made.chmod(0o600)
    return made


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("https://adb-1.2.azuredatabricks.net", "https://adb-1.2.azuredatabricks.net"),
        ("adb-1.2.azuredatabricks.net", "https://adb-1.2.azuredatabricks.net"),
        (" https://Host.Example/ ", "https://host.example"),
        ("https://host.example/?o=123#notebook/1", "https://host.example"),
        ("https://host.example:443", "https://host.example"),
        ("https://host.example:8443/", "https://host.example:8443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("localhost:8080", "https://localhost:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_an_address_is_taken_as_people_paste_it(given: str, found: str) -> None:
    assert workspace_url(given, "x") == found


@pytest.mark.parametrize("given", ["https://", "ftp://host", "ho st", "https://host:port", "//", "https://[x"])
def test_what_is_no_address_is_a_wrong_option(given: str) -> None:
    with pytest.raises(ConfigError, match=r"DATABRICKS_HOST: .* is no address"):
        workspace_url(given, "DATABRICKS_HOST")


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError) as caught:
        workspace_url("https://me:SECRET@host.example", "x")
    assert "SECRET" not in str(caught.value)


def test_a_token_without_encryption_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    workspace_url("http://127.0.0.1:1", "x")
    assert not caplog.records
    workspace_url("http://host.example", "x")
    assert "without encryption" in caplog.text


def test_what_is_given_directly_needs_no_file(tmp_path: Path) -> None:
    found = find_credentials(Options(host="h.example", token="t", config_file=tmp_path / "missing"))
    assert (found.host, found.token) == ("https://h.example", "t")


def test_what_is_given_directly_comes_before_the_default_profile(file: Path) -> None:
    assert find_credentials(Options(host="h.example", token="t", config_file=file)).host == "https://h.example"
    with pytest.raises(ConfigError, match=r"^no token for https://h\.example: set DATABRICKS_TOKEN, "):
        find_credentials(Options(host="h.example", config_file=file))


def test_without_anything_the_default_profile_counts(file: Path) -> None:
    found = find_credentials(Options(config_file=file))
    assert (found.host, found.token) == ("https://default.example", "dapi-default")
    assert found.origin == f"profile DEFAULT of {file}"


def test_the_file_may_name_its_default_profile(file: Path) -> None:
    file.write_text(f"{FILE}\n[__settings__]\ndefault_profile = work\n")
    assert find_credentials(Options(config_file=file)).token == "dapi-100%work"


def test_the_file_is_looked_for_in_the_home_directory(file: Path) -> None:
    assert find_credentials(Options()).host == "https://default.example"


def test_a_profile_has_its_own_host_and_token(file: Path) -> None:
    found = find_credentials(Options(profile="work", config_file=file))
    assert (found.host, found.token) == ("https://work.example", "dapi-100%work")


def test_a_profile_inherits_no_token(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"no token for https://work\.example: .* add one to profile tokenless"):
        find_credentials(Options(profile="tokenless", config_file=file))


def test_a_profile_never_sends_its_token_to_another_host(file: Path) -> None:
    assert find_credentials(Options(host="https://work.example/", profile="work", config_file=file)).token
    with pytest.raises(
        ConfigError, match=r"is for https://work\.example, but the host given is https://other\.example"
    ):
        find_credentials(Options(host="other.example", profile="work", config_file=file))


def test_a_profile_without_a_host_takes_the_one_given(file: Path) -> None:
    assert find_credentials(Options(host="h.example", profile="hostless", config_file=file)).token == "dapi-lost"
    with pytest.raises(ConfigError, match=r"profile hostless of .* names no host"):
        find_credentials(Options(profile="hostless", config_file=file))


def test_other_sign_ins_are_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"signs in by auth_type, which is not possible yet"):
        find_credentials(Options(profile="oauth", config_file=file))


def test_a_missing_profile_says_which_there_are(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no profile wrok \(it has: DEFAULT, work, "):
        find_credentials(Options(profile="wrok", config_file=file))
    with pytest.raises(ConfigError, match=r"there is no .*, so no profile work"):
        find_credentials(Options(profile="work", config_file=file.with_name("missing")))


def test_nothing_at_all_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^no Databricks workspace is named: set DATABRICKS_HOST and DATABRICKS_TOKEN"
    ):
        find_credentials(Options(config_file=tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"^no Databricks workspace is named: set DATABRICKS_HOST to"):
        find_credentials(Options(token="t", config_file=tmp_path / "missing"))


@pytest.mark.parametrize("content", ["token = dapi-SECRET\n", "[work\nSECRET", "\x00\xff"])
def test_a_broken_file_is_named_and_not_quoted(tmp_path: Path, content: str) -> None:
    file = tmp_path / "cfg"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"is no configuration file") as caught:
        find_credentials(Options(config_file=file))
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "umlaut\u00e4"])
def test_a_token_that_cannot_be_one_is_not_shown(token: str) -> None:
    with pytest.raises(ConfigError, match=r"the token of DATABRICKS_TOKEN or token_file has characters") as caught:
        find_credentials(Options(host="h.example", token=token))
    assert token not in str(caught.value)


def test_blanks_around_a_token_do_not_matter() -> None:
    assert find_credentials(Options(host="h.example", token=" dapi-x\n")).token == "dapi-x"


def test_a_file_that_others_can_read_is_warned_about(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    find_credentials(Options(config_file=file))
    assert not caplog.records
    file.chmod(0o644)
    find_credentials(Options(config_file=file))
    assert "chmod 600" in caplog.text


def test_secrets_are_in_no_repr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    options = Options(host="h.example", token="SECRET")
    assert "SECRET" not in f"{options!r} {find_credentials(options)!r} {sign_in(options)!r} {caplog.text}"


async def test_a_refused_token_is_denied_with_what_to_do() -> None:
    _, auth = sign_in(Options(host="h.example", token="t"))
    assert await auth.headers(renew=False) == {"Authorization": "Bearer t"}
    with pytest.raises(
        Denied, match=r"refuses the token of DATABRICKS_TOKEN or token_file: .* make one in the workspace"
    ) as caught:
        await auth.headers(renew=True)
    assert caught.value.status == 401


def rewrite(file: Path, content: str | None) -> None:
    file.unlink()
    if content is not None:
        file.write_text(content)


async def test_a_token_that_was_changed_in_the_file_is_taken_up(file: Path) -> None:
    options = Options(profile="work", config_file=file)
    _, auth = sign_in(options)
    rewrite(file, FILE.replace("dapi-100%work", "dapi-new"))
    assert await auth.headers(renew=True) == {"Authorization": "Bearer dapi-new"}
    assert await auth.headers(renew=False) == {"Authorization": "Bearer dapi-new"}
    rewrite(file, None)
    with pytest.raises(Denied):
        await auth.headers(renew=True)


async def test_a_file_that_now_names_another_workspace_is_not_followed(file: Path) -> None:
    _, auth = sign_in(Options(profile="work", config_file=file))
    rewrite(file, "[work]\nhost = https://evil.example\ntoken = dapi-other\n")
    with pytest.raises(Denied):
        await auth.headers(renew=True)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "/"),
        ("/", "/"),
        ("/Users/me", "/Users/me"),
        ("Users/me/", "/Users/me"),
        ("/Workspace/Users//me", "/Users/me"),
        ("/Workspace", "/"),
        ("/Workspaces/x", "/Workspaces/x"),
        ("/Users/a b%41#?+&ü", "/Users/a b%41#?+&ü"),
    ],
)
def test_the_path_of_a_source_has_one_form(given: str, path: str) -> None:
    assert Options(path=given).path == path
    assert attrs.evolve(Options(), path=given).path == path


@pytest.mark.parametrize("given", ["/Users/../x", "/./x", "/a\nb"])
def test_a_path_that_no_object_can_have_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"is no path of a workspace"):
        Options(path=given)


@pytest.mark.parametrize(
    ("given", "identity"),
    [
        ({"host": "WORK.example/?o=1", "token": "dapi-1"}, "https://work.example"),
        ({"profile": "work"}, "https://work.example"),
        ({"profile": "DEFAULT"}, "https://default.example"),
        ({}, "https://default.example"),
    ],
)
def test_the_workspace_is_part_of_which_store_it_is_however_it_is_named(
    file: Path, given: dict[str, str], identity: str
) -> None:
    mount = PlainMount(lambda base_url, auth, explain: _NO_HTTP)
    backend = DatabricksBackend(Options(config_file=file, **given), mount)
    assert backend.identity == identity
    assert "dapi" not in stack(backend).identity[0]
