"""The suite covers every hook, and finds backends that break a promise."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import pytest

from fusekit.plugins.specs import OPERATIONS, Hooks
from fusekit.testing.conformance import BackendConformance, covered

pytest_plugins = ["pytester"]


def test_every_hook_has_a_test_of_its_own() -> None:
    found = covered(BackendConformance)
    assert set(found) == set(OPERATIONS)


def test_every_test_says_which_hooks_it_covers() -> None:
    named = {name for tests in covered(BackendConformance).values() for name in tests}
    tests = {name for name, _ in inspect.getmembers(BackendConformance, callable) if name.startswith("test_")}
    assert tests - named == {"test_absent_hooks_refuse"}


def test_every_hook_tells_its_contract() -> None:
    for name in OPERATIONS:
        assert (getattr(Hooks, name).__doc__ or "").strip(), f"{name} has no docstring"


BROKEN = {
    "LosesAttributes": (
        """
        async def fusekit_setattr(self, directory, entry, changes):
            return self._entry(entry.name, self._known(entry))
        """,
        ["test_a_changed_mode_stays_and_is_no_new_version", "test_a_changed_time_stays"],
    ),
    "Overwrites": (
        """
        async def fusekit_write(self, directory, name, replacing, content, caller):
            replacing = replacing or self._maybe(directory, name)
            return await super().fusekit_write(directory, name, replacing, content, caller)
        def _maybe(self, directory, name):
            node = self._directory(directory).children.get(name)
            return self._entry(name, node) if node else None
        """,
        ["test_a_taken_name_is_refused_and_stays_as_it_was"],
    ),
    "ReadsTheWrongRange": (
        """
        async def fusekit_read(self, entry, start, stop, sink):
            await super().fusekit_read(entry, start + 1 if start > 60000 else start, stop, sink)
        """,
        ["test_a_range_reads_exactly"],
    ),
    "ChangesVersionsWhenRead": (
        """
        async def fusekit_read(self, entry, start, stop, sink):
            await super().fusekit_read(entry, start, stop, sink)
            self._find(entry).change += 1
        """,
        ["test_the_version_is_the_same_everywhere"],
    ),
    "KeepsVersions": (
        """
        def _entry(self, name, node):
            entry = super()._entry(name, node)
            return attrs.evolve(entry, version="1") if entry.kind is Kind.FILE else entry
        """,
        ["test_a_replaced_file_has_the_new_content_and_another_version"],
    ),
    "ShowsHalfAFile": (
        """
        async def fusekit_write(self, directory, name, replacing, content, caller):
            if replacing is None:
                self._put(self._free(directory, name), name, self._make(Kind.FILE, content.attributes, caller))
                replacing = self._entry(name, self._child(directory, name))
            return await super().fusekit_write(directory, name, replacing, content, caller)
        """,
        [
            "test_a_failed_attempt_shows_nothing_and_the_next_succeeds",
            "test_a_cancelled_attempt_shows_nothing_and_the_next_succeeds",
        ],
    ),
    "RemovesTrees": (
        """
        async def fusekit_remove(self, directory, entry):
            self._child(directory, entry.name).children.clear()
            await super().fusekit_remove(directory, entry)
        """,
        ["test_only_an_empty_directory_is_removed"],
    ),
    "FailsOddly": (
        """
        async def fusekit_stat(self, directory, name):
            return self._entry(name, self._directory(directory).children[name])
        """,
        ["test_a_missing_name_is_not_found_and_nothing_else"],
    ),
    "ListsOnePage": (
        """
        async def fusekit_list(self, directory, page):
            there = self._directory(directory)
            await page([self._entry(name, node) for name, node in list(there.children.items())[:100]])
        """,
        ["test_a_long_listing_comes_whole"],
    ),
    "MangledNames": (
        """
        async def fusekit_write(self, directory, name, replacing, content, caller):
            return await super().fusekit_write(directory, name.replace("+", " "), replacing, content, caller)
        """,
        ["test_a_name_comes_back_as_it_was_given", "test_names_that_differ_are_different_files"],
    ),
    "CopiesWhereItShouldLink": (
        """
        async def fusekit_link(self, entry, directory, name):
            return await self.fusekit_copy(entry, directory, name, ME)
        """,
        ["test_a_second_name_is_the_same_file", "test_what_is_written_under_one_name_shows_under_the_other"],
    ),
    "IgnoresReplacing": (
        """
        async def fusekit_rename(self, entry, source, target, name, replacing, exchange):
            there = self._directory(target).children.get(name)
            now = self._entry(name, there) if there else None
            return await super().fusekit_rename(entry, source, target, name, now, exchange)
        """,
        ["test_rename_takes_no_taken_name", "test_rename_replaces_nothing_that_changed"],
    ),
}


@pytest.mark.parametrize("defect", sorted(BROKEN))
def test_a_broken_promise_is_found(pytester: pytest.Pytester, defect: str) -> None:
    body, found_by = BROKEN[defect]
    method = textwrap.indent(textwrap.dedent(body).strip(), "    ").replace(
        "    async def", "    @hookimpl\n    async def"
    )
    pytester.makepyfile(
        test_broken=f"""
import attrs, pytest
from fusekit.api import Kind, hookimpl
from fusekit.backends.memory import MemoryBackend, Options
from fusekit.testing.conformance import BackendConformance
from fusekit.testing.harness import ME, PlainMount, opened

class {defect}(MemoryBackend):
{method}

class TestBroken(BackendConformance):
    @pytest.fixture
    async def place(self):
        async with opened({defect}(Options(), PlainMount())) as place:
            yield place
"""
    )
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-k", " or ".join(found_by))
    failed = {report.nodeid.rpartition("::")[2].partition("[")[0] for report in _failed(result)}
    assert failed == set(found_by)


def _failed(result: pytest.RunResult) -> list[pytest.TestReport]:
    return [report for report in result.reprec.getreports("pytest_runtest_logreport") if report.failed]  # type: ignore[attr-defined]


def test_a_module_that_gives_no_place_is_told_so(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makepyfile(
        "from fusekit.testing.conformance import BackendConformance\nclass TestNothing(BackendConformance):\n    pass\n"
    )
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-k", "test_statfs or test_space")
    result.stdout.fnmatch_lines(["*the subclass of the suite gives the fixture `place`*"])
