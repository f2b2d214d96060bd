"""Names from a remote side become legal file names and come back exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusekit import names

REMOTE = (
    st.text(st.sampled_from(["/", "\0", ".", "%", "2", "F", "0", "5", "E", "a", "é", " "]), max_size=12) | st.text()
)


@given(REMOTE)
def test_every_remote_name_comes_back(remote: str) -> None:
    assert names.to_remote(names.to_local(remote)) == remote


@given(REMOTE.filter(bool))
def test_every_local_name_is_legal_but_for_its_length(remote: str) -> None:
    assert names.problem(names.to_local(remote), bytes_max=1 << 20) is None


@given(REMOTE, REMOTE)
def test_different_names_stay_different(one: str, other: str) -> None:
    assert (names.to_local(one) == names.to_local(other)) == (one == other)


@pytest.mark.parametrize(
    ("remote", "local"),
    [
        ("plain.txt", "plain.txt"),
        ("100%", "100%"),
        ("%41", "%41"),
        ("a/b", "a%2Fb"),
        ("a\0b", "a%00b"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("...", "..."),
        (".hidden", ".hidden"),
        ("a%2Fb", "a%252Fb"),
        ("%2E", "%252E"),
        ("%25", "%2525"),
        ("%2f", "%2f"),
    ],
)
def test_only_what_must_be_is_escaped(remote: str, local: str) -> None:
    assert names.to_local(remote) == local


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        (".", "empty"),
        ("..", "empty"),
        ("a/b", "slash"),
        ("a\0b", "zero byte"),
        ("n" * 256, "255 bytes"),
        ("ü" * 128, "255 bytes"),
        ("half \ud800 a pair", ""),
        ("\udfff", ""),
    ],
    ids=ascii,
)
def test_a_name_that_cannot_be_says_why(name: str, reason: str) -> None:
    assert reason in (names.problem(name) or "")


@pytest.mark.parametrize("name", ["a", "n" * 255, "ü" * 127, "...", "\n", "-", "a b", "\udcff"], ids=ascii)
def test_a_legal_name_has_no_problem(name: str) -> None:
    assert names.problem(name) is None


def test_a_service_may_allow_less() -> None:
    assert names.problem("n" * 65, bytes_max=64) is not None
    assert names.problem("n" * 64, bytes_max=64) is None


@given(st.binary())
def test_undecodable_bytes_survive(raw: bytes) -> None:
    assert names.encode(names.decode(raw)) == raw
