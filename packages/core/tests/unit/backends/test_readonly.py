"""The read-only layer refuses what changes anything, and nothing else."""

from __future__ import annotations

import pytest

from fusekit.backends.memory import MemoryBackend
from fusekit.backends.memory import Options as MemoryOptions
from fusekit.backends.readonly import CHANGING, Options, ReadOnlyLayer
from fusekit.errors import ReadOnly
from fusekit.plugins.manager import stack
from fusekit.plugins.specs import OPERATIONS, Hooks, hookimpl
from fusekit.testing.harness import ME, PlainMount, arguments, listed, read, written
from fusekit.types import Capabilities, Entry, Io, Rename, Want

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
    calls = {hook: values for hook, values in arguments(root, file, "new").items() if hook in CHANGING}
    assert set(calls) == CHANGING
    before = await listed(below, root)
    for hook, values in calls.items():
        with pytest.raises(ReadOnly, match="read-only"):
            await getattr(hooks, hook)(**values, caller=ME)
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
