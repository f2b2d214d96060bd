"""Signed URLs are kept for their version, until shortly before they end, and not more of them than fit."""

from __future__ import annotations

import trio
import trio.testing

from fusekit_databricks.links import Link, Links


def link(lives_s: float = 900) -> Link:
    return Link("https://cloud.example/x?sig=SECRET", {"x-sig": "SECRET"}, trio.current_time() + lives_s)


async def test_a_link_is_good_for_its_version_only() -> None:
    links, made = Links(), link()
    links.keep("/f", "1:2", made)
    assert links.find("/f", "1:2") is made
    assert links.find("/f", "1:3") is None
    assert links.find("/f", None) is None
    assert links.find("/g", "1:2") is None


async def test_a_link_is_not_used_in_its_last_seconds(mock_clock: trio.testing.MockClock) -> None:
    links = Links()
    links.keep("/f", "1", link(900))
    mock_clock.jump(870)
    assert links.find("/f", "1") is not None
    mock_clock.jump(20)
    assert links.find("/f", "1") is None


async def test_the_one_not_used_for_longest_goes_first() -> None:
    links = Links(links_max=3)
    for name in "abc":
        links.keep(f"/{name}", "1", link())
    assert links.find("/a", "1") is not None
    links.keep("/d", "1", link())
    assert len(links) == 3
    assert [name for name in "abcd" if links.find(f"/{name}", "1")] == ["a", "c", "d"]


async def test_a_newer_word_replaces_the_older() -> None:
    links, made = Links(), link()
    links.keep("/f", "1", link())
    links.keep("/f", "2", made)
    assert links.find("/f", "1") is None
    assert links.find("/f", "2") is made
    links.keep("/f", "2", None)
    assert len(links) == 0


async def test_dropping_leaves_what_somebody_else_renewed() -> None:
    links, old, new = Links(), link(), link()
    links.keep("/f", "1", old)
    links.keep("/f", "1", new)
    links.drop("/f", old)
    assert links.find("/f", "1") is new
    links.drop("/f")
    assert links.find("/f", "1") is None


async def test_a_folder_takes_its_links_along() -> None:
    links = Links()
    for path in ("/d/a", "/d/e/b", "/dd/c"):
        links.keep(path, "1", link())
    links.drop_below("/d")
    assert links.find("/dd/c", "1") is not None
    assert len(links) == 1


async def test_secrets_are_not_in_the_repr() -> None:
    assert "SECRET" not in repr(link())


async def test_what_is_known_of_a_version_outlives_its_url() -> None:
    links, first = Links(), link()
    links.keep("/f", "1", first)
    first.etag, first.confirmed = '"e"', "Fri, 01 Jan 2021 00:00:00 GMT"
    links.keep("/f", "1", link())
    renewed = links.find("/f", "1")
    assert renewed is not None
    assert (renewed.etag, renewed.confirmed) == (first.etag, first.confirmed)
    links.keep("/f", "2", link())
    replaced = links.find("/f", "2")
    assert replaced is not None
    assert replaced.etag is None
