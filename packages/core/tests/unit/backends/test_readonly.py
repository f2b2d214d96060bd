"""The read-only layer refuses what changes anything, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from fusekit.backends.memory import MemoryBackend
from fusekit.backends.memory import Options as MemoryOptions
from fusekit.backends.readonly import CHANGING, Options, ReadOnlyLayer
from fusekit.errors import ReadOnly
from fusekit.plugins.manager import stack
from fusekit.plugins.specs import OPERATIONS, Hooks, hookimpl
from fusekit.testing.harness import ME, NO_ATTRIBUTES, PlainMount, Upload, listed, read, written
from fusekit.types import Capabilities, Entry, Io, Kind, Rename, Want

ROOT = Entry.directory("")


def layered(backend: object) -> Hooks:
    return stack(backend, [lambda inner: ReadOnlyLayer(Options(), PlainMount(), inner)]).hooks


def test_every_hook_changes_something_or_does_not() -> None:
    harmless = {
        "lifespan",
        "capabilities",
        "principal",
        "access",
        "root",
        "list",
        "stat",
        "read",
        "getxattrs",
        "statfs",
    }
    assert set(OPERATIONS) - CHANGING == {f"fusekit_{word}" for word in harmless | {"exchange"}}


async def test_what_changes_something_is_refused_and_not_passed_on() -> None:
    memory = MemoryBackend(MemoryOptions(), PlainMount())
    below = stack(memory).hooks
    root = await below.fusekit_root(caller=ME)
    file = await written(below, root, "file", b"content")
    hooks = layered(memory)
    calls: dict[str, dict[str, Any]] = {
        "fusekit_write": {"directory": root, "name": "new", "replacing": None, "content": Upload(b"x")},
        "fusekit_mkdir": {"directory": root, "name": "new", "attributes": NO_ATTRIBUTES},
        "fusekit_symlink": {"directory": root, "name": "new", "target": "x"},
        "fusekit_mknod": {"directory": root, "name": "new", "kind": Kind.FIFO, "attributes": NO_ATTRIBUTES},
        "fusekit_link": {"entry": file, "directory": root, "name": "new"},
        "fusekit_copy": {"entry": file, "directory": root, "name": "new"},
        "fusekit_rename": {
            "entry": file,
            "source": root,
            "target": root,
            "name": "new",
            "replacing": None,
            "exchange": False,
        },
        "fusekit_remove": {"directory": root, "entry": file},
        "fusekit_setattr": {"directory": root, "entry": file, "changes": NO_ATTRIBUTES},
        "fusekit_setxattr": {"entry": file, "name": "a", "value": b"1"},
    }
    assert set(calls) == CHANGING
    before = await listed(below, root)
    for name, arguments in calls.items():
        with pytest.raises(ReadOnly, match="read-only"):
            await getattr(hooks, name)(**arguments, caller=ME)
    assert await listed(below, root) == before
    assert await read(hooks, file) == b"content"


async def test_capabilities_are_narrowed() -> None:
    hooks = layered(MemoryBackend(MemoryOptions(), PlainMount()))
    found = hooks.fusekit_capabilities(directory=ROOT)
    assert found.hooks is not None
    assert not found.hooks & CHANGING
    assert {"fusekit_list", "fusekit_stat", "fusekit_read", "fusekit_getxattrs", "fusekit_statfs"} <= found.hooks
    assert (found.rename, found.replace, found.unlinked) == (Rename.NONE, False, False)
    assert not found.utf8_names, "what it does not narrow stays as it is below"


async def test_access_is_refused_for_writing_only() -> None:
    asked: list[Want] = []

    class Asks:
        @hookimpl
        async def fusekit_access(self, want: Want) -> None:
            asked.append(want)

        @hookimpl
        def fusekit_capabilities(self) -> Capabilities:
            return Capabilities()

    hooks, file = layered(Asks()), Entry.file("file")
    for want in (Want.WRITE, Want.READ | Want.WRITE):
        with pytest.raises(ReadOnly):
            await hooks.fusekit_access(entry=file, want=want, caller=ME)
    assert asked == []
    await hooks.fusekit_access(entry=file, want=Want.READ, caller=ME)
    exchange = Entry.file("ask", io=Io.EXCHANGE)
    await hooks.fusekit_access(entry=exchange, want=Want.READ | Want.WRITE, caller=ME)
    assert asked == [Want.READ, Want.READ | Want.WRITE]
