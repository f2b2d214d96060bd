"""What a generation is to replace is right in the journal whenever a crash may come."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from fusekit.settings import Write
from fusekit.testing.driven import ME, Held, opened
from fusekit.vfs.inodes import ROOT


async def test_what_is_acknowledged_while_an_older_one_arrives_replaces_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, write=Write.ASYNC) as setup:
        await setup.make("f", b"first")
        journal = setup.volume.journal
        real, noted, go_on = journal.flushed, trio.Event(), trio.Event()
        forget, settled = journal.committed, trio.Event()

        async def flushed(*arguments: Any, **named: Any) -> None:
            await real(*arguments, **named)
            noted.set()
            await go_on.wait()  # its row is in the journal, and the program does not know yet

        async def committed(*arguments: Any) -> None:
            await forget(*arguments)
            settled.set()

        arrived = setup.recorder.after = Held("write")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(setup.fs.files.uploads.drain)
            await arrived.reached.wait()
            monkeypatch.setattr(journal, "flushed", flushed)
            monkeypatch.setattr(journal, "committed", committed)
            attr = await setup.fs.lookup(ROOT, "f", ME)
            again = await setup.fs.open(attr.ino, os.O_WRONLY | os.O_TRUNC, ME)
            await setup.fs.write(again.handle, 0, b"second")
            nursery.start_soon(setup.fs.flush, again.handle)
            await noted.wait()
            arrived.go_on.set()
            first = (await setup.there())["f"]
            await settled.wait()
            (row,) = await journal.rows()
            go_on.set()
        assert row.replacing is not None
        assert row.replacing.version == first.version
        await setup.fs.release(again.handle)
        await setup.fs.files.uploads.drain()
        assert await setup.content("f") == b"second"
