"""Option values as people write them."""

from __future__ import annotations

import attrs
import pytest

from fusekit.config import METADATA_KEY, octal, option, parse_duration, parse_size, words


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("0", 0),
        ("123", 123),
        ("64MiB", 64 << 20),
        ("64mib", 64 << 20),
        ("10MB", 10_000_000),
        ("10 kB", 10_000),
        ("1g", 1 << 30),
        ("1G", 1 << 30),
        ("2k", 2048),
        ("1.5GiB", 3 << 29),
        ("3TiB", 3 << 40),
        ("1PB", 10**15),
        ("100B", 100),
        (" 7 ", 7),
    ],
)
def test_a_size_is_bytes(written: str, size: int) -> None:
    assert parse_size(written) == size


def test_a_number_is_taken_for_a_size() -> None:
    assert parse_size(5) == 5


@pytest.mark.parametrize("written", ["", "MiB", "-1", "1 2", "1XB", "1e6", "ten"])
def test_what_is_no_size_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(ValueError, match="64MiB"):
        parse_size(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("30s", 30), ("30", 30), ("5min", 300), ("5m", 300), ("250ms", 0.25), ("1.5h", 5400), ("2d", 172_800), ("0", 0)],
)
def test_a_time_is_seconds(written: str, seconds: float) -> None:
    assert parse_duration(written) == pytest.approx(seconds)


def test_a_number_is_taken_for_seconds() -> None:
    assert parse_duration(2.5) == 2.5


@pytest.mark.parametrize("written", ["", "s", "-1s", "1 week", "1:30"])
def test_what_is_no_time_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(ValueError, match="30s"):
        parse_duration(written)


@pytest.mark.parametrize(("written", "bits"), [("644", 0o644), ("0644", 0o644), ("0o755", 0o755), ("7777", 0o7777)])
def test_a_mode_is_octal(written: str, bits: int) -> None:
    assert octal(written) == bits


def test_a_number_is_taken_for_the_bits() -> None:
    assert octal(0o022) == 0o022


@pytest.mark.parametrize("written", ["", "8", "rw", "10000", "-1"])
def test_what_is_no_mode_is_refused(written: str) -> None:
    with pytest.raises(ValueError):
        octal(written)


def test_words_are_separated_by_commas() -> None:
    assert words("read-only, audit,,") == ("read-only", "audit")
    assert words("") == ()
    assert words([" a ", ""]) == ("a",)


@attrs.frozen
class Options:
    path: str = option(help="where")
    token: str = option(default="", secret=True, env=("SERVICE_TOKEN",), help="who")
    size: int = option(default="1k", converter=parse_size)
    many: tuple[str, ...] = option(factory=tuple)


def test_an_option_says_what_it_is() -> None:
    facts = {field.name: field.metadata[METADATA_KEY] for field in attrs.fields(Options)}
    assert facts["path"] == {"help": "where", "env": (), "secret": False, "identity": False}
    assert facts["token"] == {"help": "who", "env": ("SERVICE_TOKEN",), "secret": True, "identity": False}


def test_defaults_are_converted_and_made_afresh() -> None:
    assert Options("x").size == 1024
    assert Options("x").many == ()


def test_an_option_without_a_default_must_be_given() -> None:
    with pytest.raises(TypeError, match="path"):
        Options()


def test_a_secret_is_not_shown() -> None:
    assert "hunter2" not in repr(Options("x", token="hunter2"))
    assert "path='x'" in repr(Options("x"))
