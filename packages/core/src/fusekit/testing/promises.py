"""What programs were promised about their files, and whether what is left after a crash keeps it.

Outside the layers. Judges the lines of `fusekit.testing.crash_writer`, where each program changes names of its own, one
operation after the other. The rule, for each name:

A name has a history: that it was not there at first, then the state (a content, or gone) of each operation that was
*tried* on it, in order. An operation that was *acknowledged* (it returned without an error) promises its state on one
of two levels. ``REMOTE``: the service has it. ``LOCAL``: the service will have it, whatever happens to the mount.

==========================  =================  ==================
acknowledged                ``--write sync``   ``--write async``
==========================  =================  ==================
``fsync``                   REMOTE             REMOTE
``close``                   REMOTE             LOCAL
``close`` of an empty file  LOCAL              LOCAL
rename, unlink, truncate    REMOTE             LOCAL
==========================  =================  ==================

(A rename promises for its new name no more than was promised of the content under the old one.)

- **At any moment**, the kill included, the service has for each name one state of its history, whole: anything else is
  *partial*. It is no older than the last one promised as REMOTE: anything older is *lost*.
- **After the next mount has drained**, it is no older than the last state that was promised at all, or the journal has
  the bytes of such a state under that name.
- A rename that was tried and not acknowledged has happened or not: its content is under one of the two names. A content
  that it replaces, or that an interrupted removal removes, and that in ``async`` still waited to be sent, may then be in
  a file beside that name (a conflict): nobody was told that it is gone.
- Where the power went as well (``power``), names that were acknowledged as LOCAL, by a rename or a removal, may be the ones
  before, as on a disk whose directory nobody synced; what a rename had replaced may come back as a file beside it (a
  conflict). Contents may not: what was renamed is under one of its names.

A rename brings the older states of the content along: where the service learns of it first, it may show those under
the new name for a while. An operation that failed, or that the kill interrupted, is in the history without a promise.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs


class Promise(enum.IntEnum):
    """What an acknowledgement means."""

    NONE = 0
    LOCAL = 1
    REMOTE = 2


@attrs.frozen
class State:
    """One state of a name: the digest of its content, None where it is gone, and what was promised of it."""

    digest: str | None
    promise: Promise


@attrs.frozen
class Violation:
    """One promise that was broken: ``kind`` is lost or partial."""

    kind: str
    name: str
    says: str


@attrs.define(eq=False)
class _Rename:
    """Renames that may have happened or not: the content, which was promised, and where it may be."""

    digest: str
    names: tuple[str, ...]
    promise: Promise


class Ledger:
    """What one program tried and was told. ``asynchronous``: under ``--write async``; ``power``: it went."""

    def __init__(self, *, asynchronous: bool, power: bool = False) -> None:
        self._asynchronous = asynchronous
        self._power = power
        self._states: dict[str, list[State]] = {}
        self._renames: list[_Rename] = []
        self._replaced: set[str] = set()  # names that were to be replaced or removed, last of all and without an end
        self._trying: dict[str, Any] | None = None
        self.acknowledged = 0
        self.failed = 0

    def take(self, line: str | bytes) -> None:
        """Take one line of the program."""
        facts = json.loads(line)
        if "call" in facts:
            self._trying = facts
            return
        assert self._trying is not None
        assert facts["number"] == self._trying["number"], "one operation after the other"
        tried, self._trying = self._trying, None
        acknowledged = facts["error"] is None
        self.acknowledged += acknowledged and tried["call"] in {"close", "fsync"}
        self.failed += not acknowledged
        self._apply(tried, acknowledged=acknowledged)

    def finish(self) -> None:
        """Say that no more lines come: what was still tried then has happened or not."""
        if self._trying is not None:
            self._apply(self._trying, acknowledged=False)
            self._trying = None

    @property
    def names(self) -> list[str]:
        """Return all names on which anything was tried."""
        return list(self._states)

    def digests(self, name: str) -> set[str]:
        """Return the digests of all contents that ``name`` may ever have had."""
        return {state.digest for state in self._states.get(name, ()) if state.digest is not None}

    def _apply(self, tried: Mapping[str, Any], *, acknowledged: bool) -> None:
        moved: Mapping[str, str] = tried["moved"]
        effects: Mapping[str, str | None] = tried["effects"]
        if self._power and self._asynchronous and tried["call"] in {"rename", "unlink"}:
            acknowledged = False
        under_way, self._renames = self._renames, [one for one in self._renames if not effects.keys() & set(one.names)]
        self._replaced -= effects.keys()
        if not acknowledged:
            self._replaced |= {*effects} if tried["call"] == "unlink" else {*moved}
        before = {name: self._history(name) for name in {*effects, *moved.values()}}
        for name, digest in effects.items():
            promise = self._promised(tried, name) if acknowledged else Promise.NONE
            history = self._history(name)
            if name in moved:
                source = before[moved[name]]
                last = max(at for at, state in enumerate(source) if state.promise is Promise.REMOTE)
                older = [attrs.evolve(state, promise=Promise.NONE) for state in source[last:] if state.digest]
                promised = max((one.promise for one in source if one.digest == digest), default=Promise.NONE)
                on = next((one for one in under_way if one.digest == digest and moved[name] in one.names), None)
                if not acknowledged and digest is not None and (promised or on):
                    names = on.names if on is not None else (moved[name],)
                    self._renames.append(_Rename(digest, (*names, name), promised or (on.promise if on else promised)))
                history = [*history, *older]
                promise = min(promise, promised)
            self._states[name] = [*history, State(digest, promise)]

    def _promised(self, tried: Mapping[str, Any], name: str) -> Promise:
        if tried["call"] == "fsync":
            return Promise.REMOTE
        if self._asynchronous or (tried["call"] == "close" and name in tried["empty"]):
            return Promise.LOCAL
        return Promise.REMOTE

    def _history(self, name: str) -> list[State]:
        return self._states.get(name, [State(None, Promise.REMOTE)])

    def broken(self, remote: Mapping[str, str], kept: Mapping[str, set[str]] | None = None) -> Iterator[Violation]:
        """Yield what is wrong with the digests that the service has by name.

        ``kept`` are those in the journal by name, after the next mount has drained; None: right after the kill.
        """
        for name, history in self._states.items():
            found, wanted = remote.get(name), Promise.REMOTE if kept is None else Promise.LOCAL
            states = [state.digest for state in history]
            last = max(at for at, state in enumerate(history) if state.promise >= wanted)
            good = states[last:]
            if found not in states:
                yield Violation("partial", name, f"the service has {_named(found)}, which nobody ever wrote there")
            elif found not in good and not (kept is not None and kept.get(name, set()) & {*good}):
                told = f"promised was {_named(states[last])}, or one of {len(good) - 1} later states"
                where = "" if kept is None else ", and the journal has none of them"
                yield Violation("lost", name, f"the service has {_named(found)}; {told}{where}")
        for name in remote.keys() - self._states.keys():
            replaced = _without_conflict(name)
            unsure = self._asynchronous and (self._power or replaced in self._replaced)
            if unsure and remote[name] in self.digests(replaced):
                continue  # what a rename had replaced came back with the row, and is beside what replaced it
            yield Violation("partial", name, "nobody made this name")
        yield from self._lost_on_the_way(remote, kept)

    def _lost_on_the_way(self, remote: Mapping[str, str], kept: Mapping[str, set[str]] | None) -> Iterator[Violation]:
        for one in self._renames:
            if kept is None and one.promise is not Promise.REMOTE:
                continue
            if not any(
                remote.get(name) == one.digest or one.digest in (kept or {}).get(name, ()) for name in one.names
            ):
                yield Violation("lost", one.names[0], f"{one.digest} got lost on its way to {one.names[-1]}")


def ledger(lines: Iterable[str | bytes], *, asynchronous: bool, power: bool = False) -> Ledger:
    """Return what the lines of one program, which has ended, say."""
    found = Ledger(asynchronous=asynchronous, power=power)
    for line in lines:
        found.take(line)
    found.finish()
    return found


def _without_conflict(name: str) -> str:
    """Return the name beside which ``name`` is a second version, "" where it is none."""
    return name.partition(" (conflict ")[0] if name.endswith(")") and " (conflict " in name else ""


def _named(digest: str | None) -> str:
    return "nothing" if digest is None else digest
