"""Random sequences while the service fails now and then: an operation that fails leaves the old state or the new one.

Outside the layers, above `fusekit.testing.sequences`. `Troubled` takes steps on a subject and on the model as a comparison does.
Where the subject answers with one of `TROUBLE`, it lets the trouble pause, looks at the whole tree, and goes on from
the model before the step or after it, whichever that is; neither is a `Difference`. A file whose commit failed shows
what the service has of it: each file of the model knows which contents that can be (``stored``), which is one as soon
as a commit succeeds. A content that is none of them, so one of mixed versions or a part of one, is a difference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final

import attrs

from fusekit.testing.model import Inode, Model, Node, Subject
from fusekit.testing.sequences import Difference, Plan, Step, alike, answer, failed

# What a program is told when the service refused, did not answer, or nobody knows what became of it.
TROUBLE: Final = frozenset({"EIO", "EACCES", "EBUSY", "ETIMEDOUT", "ESTALE"})

_COMMITTING: Final = frozenset({"close", "fsync", "truncate", "rename", "rename_noreplace"})


@attrs.define
class Tally:
    """How many steps were taken, how many met trouble, and after how many the old state or the new one was there.

    ``cleared`` are renames over an empty directory that have removed it and no more: where a service replaces no
    directory, that takes two requests.
    """

    taken: int = 0
    troubled: int = 0
    old: int = 0
    new: int = 0
    cleared: int = 0


class Troubled:
    """Compares ``subject`` with a model. ``calm`` is a context in which the service does not fail."""

    def __init__(self, subject: Subject, plan: Plan, calm: Callable[[], AbstractContextManager[None]]) -> None:
        self._subject, self._plan, self._calm = subject, plan, calm
        self._model = Model()
        self._done: list[Step] = []
        self.tally = Tally()

    def run(self, given: Sequence[Step]) -> None:
        """Take all steps.

        Raises:
            Difference: something is there that is neither the old state nor the new one.
        """
        for number, step in enumerate(given, 1):
            if step.call == "open" and self._model.held(step.arguments[0]) is not None:
                self._take(Step("close", step.arguments[:1]))  # on its own, because each of the two may fail
            self._take(step)
            if number % self._plan.tree_every == 0:
                self._settle([self._model], [])

    def finish(self) -> None:
        """Close what is open and compare the whole tree."""
        for slot in self._model.slots():
            self._take(Step("close", (slot,)))
        self._settle([self._model], [])

    def look(self) -> None:
        """Compare the whole tree, after a remount say."""
        self._settle([self._model], [])

    def _take(self, step: Step) -> None:
        self._done.append(step)
        self.tally.taken += 1
        before = copy.deepcopy(self._model)
        wanted = answer(self._model, step)
        got = answer(self._subject, step)
        if isinstance(got, str) and got in TROUBLE and got != wanted:
            self.tally.troubled += 1
            self._after_trouble(step, before, wanted)
        elif alike(self._plan, wanted, got):
            if not failed(got):
                self._stored(self._model, step, before, certain=True)
        else:
            # A commit that nobody waits for (an empty file's, at its last close) may have failed since the last look.
            self._settle([before], [f"  wanted: {wanted!r}"[:300], f"  got:    {got!r}"[:300]])
            again = copy.deepcopy(self._model)
            if not alike(self._plan, answer(self._model, step), got):
                raise Difference(self._done, [f"  wanted: {wanted!r}"[:300], f"  got:    {got!r}"[:300]])
            if not failed(got):
                self._stored(self._model, step, again, certain=True)

    def _after_trouble(self, step: Step, before: Model, wanted: object) -> None:
        """Find out whether ``step`` was taken or not; ``self._model`` has taken it."""
        after = self._model
        self._stored(after, step, before, certain=False)
        if step.call == "open":
            if step.arguments[0] in after.slots():
                after.close(step.arguments[0])  # no descriptor came back
        elif step.call == "close" and step.arguments[0] in before.slots():
            self._stored(before, step, before, certain=False)
            before.close(step.arguments[0])  # the descriptor is gone whatever close said
        else:
            self._stored(before, step, before, certain=False)
        told = [
            f"  wanted: {wanted!r}"[:300],
            "  got:    trouble, and what is there now is neither the old state nor the new",
        ]
        chosen = self._settle([before, after, *_cleared(before, step)], told)
        self.tally.old += chosen == 0
        self.tally.new += chosen == 1
        self.tally.cleared += chosen == 2

    def _stored(self, model: Model, step: Step, before: Model, *, certain: bool) -> None:
        """Note in ``model`` what the service may have of the file that ``step`` commits; ``certain``: it succeeded."""
        if step.call not in _COMMITTING:
            return
        if step.call in {"close", "fsync"}:
            inode = before.held(step.arguments[0])
            if inode is not None and inode is not model.held(step.arguments[0]):
                inode = model.held(step.arguments[0]) or self._twin(model, before, inode)
        elif step.call == "truncate":
            inode = model.find(step.arguments[0])
        else:
            inode = model.find(step.arguments[0 if model is before else 1])
        if inode is None or inode.kind != "file":
            return
        content = bytes(inode.data)
        alone = not any(model.held(slot) is inode for slot in model.slots())
        if step.call.startswith("rename"):
            if None in inode.stored and certain:
                inode.stored = [*(one for one in inode.stored if one is not None), content]
            elif not certain:
                inode.stored.append(content)
        elif certain and (alone or step.call == "fsync") and (content or step.call != "close"):
            inode.stored = [content]
        else:
            inode.stored.append(content)

    @staticmethod
    def _twin(model: Model, before: Model, inode: Inode) -> Inode | None:
        """Return the inode of ``model`` that is the same file as ``inode`` of its copy ``before``, by its name."""
        for path in before.kinds():
            if before.find(path) is inode:
                return model.find(path)
        return None

    def _settle(self, candidates: Sequence[Model], told: Sequence[str]) -> int:
        """Go on with the first of ``candidates`` that can be what is there, and return its number."""
        with self._calm():
            there = self._subject.tree()
        for number, model in enumerate(candidates):
            if self._fits(model, there):
                self._model = model
                return number
        raise Difference(self._done, [*told, *self._told(candidates[-1], there)])

    def _fits(self, model: Model, there: dict[str, Node]) -> bool:
        """Return whether ``model`` can look like ``there``, after contents that the service may have are adopted."""
        adopted: list[tuple[str, bytes | None]] = []
        wanted = model.tree()
        for path in wanted.keys() | there.keys():
            ours, theirs = wanted.get(path), there.get(path)
            if alike(self._plan, ours, theirs):
                continue
            inode = model.find(path)
            if inode is None or inode.kind != "file" or (theirs is not None and theirs.facts.kind != "file"):
                return False
            content = None if theirs is None else theirs.content
            if content not in inode.stored or (theirs is not None and theirs.facts.size != len(theirs.content)):
                return False
            adopted.append((path, content))
        for path, content in adopted:
            model.adopt(path, content)
        return alike(self._plan, model.tree(), there)

    def _told(self, model: Model, there: dict[str, Node]) -> list[str]:
        wanted, lines = model.tree(), []
        for path in sorted(wanted.keys() | there.keys()):
            if not alike(self._plan, wanted.get(path), there.get(path)):
                inode = model.find(path)
                known = [] if inode is None else [None if one is None else (len(one), one[:8]) for one in inode.stored]
                lines += [f"{path}: the service may have {known}"]
                lines += [f"  wanted: {wanted.get(path)!r}"[:300], f"  got:    {there.get(path)!r}"[:300]]
        return lines


def _cleared(before: Model, step: Step) -> list[Model]:
    """Return ``before`` without the empty directory that ``step`` was to replace, if it was."""
    if step.call != "rename":
        return []
    target = before.find(step.arguments[1])
    if target is None or not target.is_directory or target.children:
        return []
    cleared = copy.deepcopy(before)
    cleared.rmdir(step.arguments[1])
    return [cleared]
