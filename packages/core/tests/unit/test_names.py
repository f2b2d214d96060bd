"""Names from a remote side: which can be files, and how the others are spelled so that they can."""

from __future__ import annotations

import pytest

from fusekit import names


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/", "nul\0byte", "n" * 256, "ü" * 128, "half \ud800 a pair", "\udfff"],
    ids=ascii,
)
def test_names_that_no_file_can_have_are_told(name: str) -> None:
    assert names.problem(name) is not None


@pytest.mark.parametrize("name", ["a", "...", " ", "-", "n" * 255, "\n", "ü" * 127, "byte \udcff"], ids=ascii)
def test_names_that_files_can_have_are_no_problem(name: str) -> None:
    assert names.problem(name) is None


@pytest.mark.parametrize("remote", ["a/b", ".", "..", "%2F", "100%", "%41", "\0", "%%2E", "plain", "a/../b"], ids=ascii)
def test_an_escaped_name_is_legal_and_comes_back(remote: str) -> None:
    local = names.to_local(remote)
    assert names.problem(local) is None
    assert names.to_remote(local) == remote


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("100%", "%41", "a b", "..."):
        assert names.to_local(name) == name
