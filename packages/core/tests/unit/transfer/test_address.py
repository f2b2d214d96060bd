"""URLs are taken apart so that they go out as they came and lead nowhere else."""

from __future__ import annotations

import pytest

from fusekit.errors import ConfigError, Unavailable
from fusekit.transfer.address import Address, parse, parse_base


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://Host.Example", Address("https", "host.example", 443, "/")),
        ("HTTP://h:8080/a?b#c", Address("http", "h", 8080, "/a?b")),
        ("http://[::1]:80/x", Address("http", "::1", 80, "/x")),
        ("https://user:pass@h/x", Address("https", "h", 443, "/x")),
    ],
)
def test_an_absolute_url_is_taken_apart(url: str, found: Address) -> None:
    assert parse(url) == found


@pytest.mark.parametrize(
    "url", ["", "h/x", "ftp://h", "https://", "https:///x", "http://h:99999", "http://a b/", "http://[x"]
)
def test_what_is_no_url_is_none(url: str) -> None:
    assert parse(url) is None


@pytest.mark.parametrize("url", ["nonsense", "https://h/?token=SECRET", "https://me:SECRET@h/", "https://h/#x"])
def test_a_base_url_is_a_host_and_a_path(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_base(url)
    assert "SECRET" not in str(caught.value)


def test_ipv6_hosts_keep_their_brackets_where_shown() -> None:
    found = parse("http://[::1]:8080/x")
    assert found is not None
    assert (found.authority, found.public) == ("[::1]:8080", "http://[::1]:8080/x")


@pytest.mark.parametrize("url", ["//evil.example/x", "/\\evil.example", "https:/evil.example", "evil.example:80/x"])
def test_a_relative_url_never_leaves_the_host(url: str) -> None:
    assert parse_base("https://h/").at(url).host == "h"


@pytest.mark.parametrize("url", ["http://h/x", "http://elsewhere/x", "ftp://h/x", "https://h:0x1/"])
def test_a_url_of_the_service_that_gives_up_tls_or_is_none_is_refused(url: str) -> None:
    with pytest.raises(Unavailable):
        parse_base("https://h").at(url)


@pytest.mark.parametrize(
    ("location", "found"),
    [
        ("/b", "https://h:443/b"),
        ("c?x=1", "https://h:443/a/c"),
        ("//other/x", "https://other:443/x"),
        ("https://other/x", "https://other:443/x"),
        ("http://h/x", None),
        ("javascript:alert(1)", None),
        ("http://[", None),
        ("", "https://h:443/a/b"),
    ],
)
def test_redirects_follow_the_rules_of_locations(location: str, found: str | None) -> None:
    there = Address("https", "h", 443, "/a/b").redirected(location)
    assert (there and there.public) == found


def test_secrets_are_not_in_the_repr() -> None:
    assert "SECRET" not in repr(parse("https://h/SECRET?sig=SECRET"))
