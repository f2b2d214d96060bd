"""What the memory backend promises beyond the contract: bounds and addresses."""

from __future__ import annotations

import pytest

from fusekit.backends.memory import MemoryBackend, Options
from fusekit.errors import NoSpace, NotFound, Stale, Unavailable
from fusekit.plugins.manager import stack
from fusekit.plugins.specs import Hooks
from fusekit.testing.harness import ME, PlainMount, Upload, listed, looked_up, made, moved, read, written
from fusekit.types import Entry, Space


def memory(options: Options | None = None) -> Hooks:
    return stack(MemoryBackend(options or Options(), PlainMount())).hooks


async def space(hooks: Hooks) -> Space:
    return await hooks.fusekit_statfs(directory=Entry.directory(""), caller=ME)


async def test_contents_are_bounded() -> None:
    hooks = memory(Options(size=10_000))
    root = await hooks.fusekit_root(caller=ME)
    await written(hooks, root, "most", bytes(9_000))
    with pytest.raises(NoSpace, match="10000 bytes"):
        await written(hooks, root, "more", bytes(1_001))
    assert set(await listed(hooks, root)) == {"most"}
    assert (await space(hooks)).free_bytes == 1_000
    await written(hooks, root, "rest", bytes(1_000))
    assert (await space(hooks)).free_bytes == 0


async def test_all_room_comes_back() -> None:
    hooks = memory(Options(size=10_000))
    root = await hooks.fusekit_root(caller=ME)
    file = await written(hooks, root, "file", bytes(4_000))
    file = await written(hooks, root, "file", bytes(3_000), replacing=file)
    link = await hooks.fusekit_symlink(directory=root, name="link", target="x" * 100, caller=ME)
    await hooks.fusekit_setxattr(entry=file, name="a", value=bytes(50), caller=ME)
    await hooks.fusekit_setxattr(entry=file, name="a", value=bytes(60), caller=ME)
    copy = await hooks.fusekit_copy(entry=file, directory=root, name="copy", caller=ME)
    assert (await space(hooks)).free_bytes == 10_000 - 3_000 - 100 - 60 - 3_060
    second = await hooks.fusekit_link(entry=file, directory=root, name="second", caller=ME)
    await hooks.fusekit_remove(directory=root, entry=file, caller=ME)
    assert (await space(hooks)).free_bytes == 10_000 - 3_000 - 100 - 60 - 3_060, "the other name still has the bytes"
    for entry in (second, copy, link):
        await hooks.fusekit_remove(directory=root, entry=entry, caller=ME)
    left = await space(hooks)
    assert (left.free_bytes, left.free_files) == (10_000, left.total_files - 1)


async def test_a_failed_upload_gives_its_room_back() -> None:
    hooks = memory(Options(size=10_000))
    root = await hooks.fusekit_root(caller=ME)
    with pytest.raises(Unavailable):
        await written(hooks, root, "file", Upload(bytes(9_000), step=1_000, fail_at=8))
    assert (await space(hooks)).free_bytes == 10_000


async def test_the_number_of_files_is_bounded() -> None:
    hooks = memory(Options(files=3))
    root = await hooks.fusekit_root(caller=ME)
    file = await written(hooks, root, "one", b"")
    await made(hooks, root, "two")
    with pytest.raises(NoSpace, match="3 files"):
        await made(hooks, root, "three")
    with pytest.raises(NoSpace):
        await written(hooks, root, "three", b"some bytes")
    with pytest.raises(NoSpace):
        await hooks.fusekit_copy(entry=file, directory=root, name="three", caller=ME)
    assert (await space(hooks)).free_bytes == (await space(hooks)).total_bytes
    await hooks.fusekit_link(entry=file, directory=root, name="second name", caller=ME)
    await hooks.fusekit_remove(directory=root, entry=await looked_up(hooks, root, "two"), caller=ME)
    await made(hooks, root, "three")


async def test_pages_are_as_long_as_told() -> None:
    hooks = memory(Options(page_size=4))
    root = await hooks.fusekit_root(caller=ME)
    for number in range(10):
        await written(hooks, root, str(number), b"")
    pages: list[int] = []

    async def page(entries: object) -> None:
        assert isinstance(entries, list)
        pages.append(len(entries))

    await hooks.fusekit_list(directory=root, page=page, caller=ME)
    assert pages == [4, 4, 2]


async def test_a_number_leads_to_a_file_wherever_it_moves() -> None:
    hooks = memory(Options(stable_refs=True))
    root = await hooks.fusekit_root(caller=ME)
    folder = await made(hooks, root, "folder")
    file = await written(hooks, folder, "file", b"content")
    await moved(hooks, folder, root, root, "renamed")
    assert await read(hooks, file) == b"content"


async def test_a_path_leads_to_what_is_there() -> None:
    hooks = memory()
    root = await hooks.fusekit_root(caller=ME)
    folder = await made(hooks, root, "folder")
    file = await written(hooks, folder, "file", b"content")
    await moved(hooks, folder, root, root, "renamed")
    with pytest.raises(NotFound):
        await read(hooks, file)
    other = await made(hooks, root, "folder")
    await written(hooks, other, "file", b"another")
    with pytest.raises(Stale):
        await read(hooks, file)
    with pytest.raises(Stale):
        await listed(hooks, folder)


async def test_a_directory_counts_its_subdirectories() -> None:
    hooks = memory()
    root = await hooks.fusekit_root(caller=ME)
    outer = await made(hooks, root, "outer")
    inner = await made(hooks, outer, "inner")
    assert (await looked_up(hooks, root, "outer")).nlink == 3
    await moved(hooks, inner, outer, root, "inner")
    assert (await looked_up(hooks, root, "outer")).nlink == 2
    assert (await hooks.fusekit_root(caller=ME)).nlink == 4


async def test_what_is_made_belongs_to_who_asked() -> None:
    hooks = memory()
    root = await hooks.fusekit_root(caller=ME)
    assert (root.uid, root.gid) == (None, None)
    file = await written(hooks, root, "file", b"")
    assert (file.uid, file.gid) == (ME.uid, ME.gid)
