"""A rename that a crash cuts in two has happened or not, also for what still waits to be sent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fusekit.errors import Unavailable
from fusekit.journal import steps
from fusekit.settings import Write
from fusekit.testing.driven import ME, opened
from fusekit.testing.harness import listed, read
from fusekit.vfs.inodes import ROOT


async def test_a_crash_in_a_rename_leaves_the_content_under_one_of_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    dead = False

    def reached(step: str) -> None:
        nonlocal dead
        if step == "name-changed":
            dead = True
            shutil.copytree(before / "state", after / "before" / "state")  # what a kill -9 leaves

    async with opened(before, write=Write.ASYNC, drain_timeout_s=0.1) as setup:
        await setup.remotely("a", b"old")
        attr = await setup.fs.lookup(ROOT, "a", ME)
        opened_ = await setup.fs.open(attr.ino, os.O_WRONLY | os.O_TRUNC, ME)
        await setup.fs.write(opened_.handle, 0, b"new")
        await setup.fs.flush(opened_.handle)
        monkeypatch.setattr(steps, "reached", reached)
        backend = setup.backend

        async def stop(hook: str, values: object) -> None:
            if dead and hook == "write":
                raise Unavailable("this mount is dead")

        setup.recorder.before = stop
        await setup.fs.rename(ROOT, "a", ROOT, "b", 0, ME)
        monkeypatch.undo()
        async with opened(after / "before", lambda options, mount: backend, write=Write.ASYNC) as again:
            await again.fs.files.uploads.drain()
            hooks = again.volume.hooks
            found = await listed(hooks, await hooks.fusekit_root(caller=ME))
            contents = {name: await read(hooks, entry) for name, entry in found.items()}
        assert contents in ({"a": b"new"}, {"b": b"new"}, {"a": b"new", "b": b"old"})
