"""mount(8)'s option lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusekit.cli.options import read_lists, split_mount_options, write_list
from fusekit.errors import ConfigError


def test_names_values_and_escaped_commas_are_read_and_the_later_name_wins() -> None:
    assert read_lists(["ro,uid=7", "layers=a\\,b,uid=8,,x=1=2"]) == {
        "ro": None,
        "uid": "8",
        "layers": "a,b",
        "x": "1=2",
    }


@given(st.dictionaries(st.text("abc_.", min_size=1), st.none() | st.text("ab,=c\\d", max_size=8).map(str.strip)))
def test_what_is_written_for_the_background_process_is_read_back(flags: dict[str, str | None]) -> None:
    arguments = write_list(flags)
    assert arguments[::2] == ["-o"] * len(flags)
    assert read_lists(arguments[1::2]) == flags


def test_the_kinds_are_told_apart() -> None:
    found = split_mount_options(
        read_lists(
            ["ro,allow_other,noexec,max_read=65536,uid=7,host=h,defaults,_netdev,x-systemd.automount,nonempty,nosuid"]
        )
    )
    assert found.flags == {"write": "off", "uid": "7", "host": "h"}
    assert found.fuse == {"allow_other", "noexec", "max_read=65536"}
    assert found.nonempty


@pytest.mark.parametrize("option", ["suid", "dev"])
def test_what_is_never_possible_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"option {option} is not possible"):
        split_mount_options({option: None})
