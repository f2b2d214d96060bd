"""``tree:NAME=SOURCE,NAME=SOURCE``, several sources side by side in one mount.

A backend made of others: it opens each source as part of its own mount and passes calls on to the one that they belong
to, with the name put in front of refs and ids on the way up and taken off on the way down. The root is a read-only
directory of the names. What a source can do, it can do here; a rename from one to another is `NotSupported`, upon which
programs copy.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final
from urllib.parse import quote, unquote

import attrs

from fusekit.api import (
    Attributes,
    Auth,
    BackendError,
    Caller,
    Capabilities,
    ConfigError,
    Content,
    Denied,
    Entry,
    Explain,
    Hooks,
    Http,
    Kind,
    Mount,
    NotFound,
    NotSupported,
    Page,
    ReadOnly,
    Rename,
    Sink,
    Space,
    Want,
    hookimpl,
    names,
    option,
)

ROOTS_MAX: Final = 1024  # remembered addresses of roots, one for each source and principal

# A comma starts another source only where a name and "=" follow: sources may have commas of their own.
_NEXT = re.compile(r",(?=[^,=:/]+=)")
_ABSENT: Final = "!"  # the principal of a source at which the caller is not signed in; quoting never makes this


def parse_mounts(value: str | Mapping[str, str]) -> dict[str, str]:
    """Return the sources by name.

    Raises:
        ValueError: a name is missing, given twice, or no directory can be called so.
    """
    found: dict[str, str] = {}
    pairs = list(value.items()) if isinstance(value, Mapping) else []
    if isinstance(value, str):
        for item in filter(None, _NEXT.split(value)):
            name, equals, source = item.partition("=")
            if not equals:
                raise ValueError(f"{item!r} is no NAME=SOURCE; write for example work=databricks:/Users/me,tmp=memory:")
            pairs.append((name, source))
    for name, source in ((name.strip(), source.strip()) for name, source in pairs):
        problem = names.problem(name) or ("contains a colon" if ":" in name else None)
        if problem is not None:
            raise ValueError(f"the name {name!r} {problem}")
        if name in found:
            raise ValueError(f"the name {name!r} is given twice")
        if not source:
            raise ValueError(f"the name {name!r} has no source")
        found[name] = source
    return found


@attrs.frozen
class Options:
    """What ``tree:`` can be told."""

    path: dict[str, str] = option(default="", converter=parse_mounts, help="NAME=SOURCE,NAME=SOURCE")
    mounts: dict[str, str] = option(
        default="", converter=parse_mounts, help="the same, for profiles: more sources", identity=True
    )


class TreeBackend:
    """The hooks of ``tree:``.

    Refs are ``NAME:ref``; that of a source's own root is ``NAME`` alone, so that a name can be shown while its source
    does not answer. The address of that root is asked once for each principal and remembered.
    """

    scheme: ClassVar[str] = "tree"
    options: ClassVar[type] = Options

    def __init__(self, options: Options, mount: Mount) -> None:
        twice = sorted(set(options.path) & set(options.mounts))
        if twice:
            raise ConfigError(f"given both in the source and in the option mounts: {', '.join(twice)}")
        sources = {**options.path, **options.mounts}
        if not sources:
            raise ConfigError("a tree needs sources: tree:work=databricks:/Users/me,tmp=memory:")
        self._roots: dict[tuple[str, str], Entry] = {}
        self._children = {name: mount.open(source, _ChildMount(self, name, mount)) for name, source in sources.items()}

    @hookimpl
    def fusekit_capabilities(self, directory: Entry) -> Capabilities:
        if directory.ref:
            name, _, ref = directory.ref.partition(":")
            child = self._children.get(name)
            if child is not None:
                below = self._root_seen(name) if ref == "" else attrs.evolve(directory, ref=ref)
                return child.fusekit_capabilities(directory=below)
        hooks = {"fusekit_root", "fusekit_list", "fusekit_stat", "fusekit_read", "fusekit_access"}
        if self._per_user():
            hooks.add("fusekit_principal")
        return Capabilities(hooks=frozenset(hooks), rename=Rename.NONE, replace=False)

    @hookimpl
    async def fusekit_principal(self, uid: int, gid: int, pid: int) -> str:
        """Return the names under which the caller acts at each source that has several, as one word.

        Not to be signed in at one source must not close the others, so that is found out when it is used.
        """
        found = []
        for name in self._per_user():
            try:
                principal = await self._children[name].fusekit_principal(uid=uid, gid=gid, pid=pid)
            except Denied:
                found.append(f"{name}={_ABSENT}")
            else:
                found.append(f"{name}={quote(principal, safe='@')}")
        return ",".join(found)

    @hookimpl
    async def fusekit_access(self, entry: Entry, want: Want, caller: Caller) -> None:
        if not entry.ref:
            if Want.WRITE in want:
                raise ReadOnly("only the sources of a tree can be written to, not the directory of their names")
            return
        child = await self._child(entry, caller)
        await child.hooks.fusekit_access(entry=child.entry, want=want, caller=child.caller)

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page, caller: Caller) -> None:
        if not directory.ref:
            for name in self._children:
                await page([await self._shown(name, caller)])
            return
        child = await self._child(directory, caller)

        async def named(entries: Sequence[Entry]) -> None:
            await page([child.up(entry) for entry in entries])

        await child.hooks.fusekit_list(directory=child.entry, page=named, caller=child.caller)

    @hookimpl
    async def fusekit_stat(self, directory: Entry, name: str, known: Entry | None, caller: Caller) -> Entry:
        if not directory.ref:
            if name not in self._children:
                raise NotFound(f"no source is called {name!r}")
            return await self._shown(name, caller)
        child = await self._child(directory, caller)
        known = None if known is None else child.down(known)
        return child.up(
            await child.hooks.fusekit_stat(directory=child.entry, name=name, known=known, caller=child.caller)
        )

    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink, caller: Caller) -> None:
        child = await self._child(entry, caller)
        await child.hooks.fusekit_read(entry=child.entry, start=start, stop=stop, sink=sink, caller=child.caller)

    @hookimpl
    async def fusekit_write(
        self, directory: Entry | None, name: str, replacing: Entry | None, content: Content, caller: Caller
    ) -> Entry:
        if directory is None:
            raise NotSupported("a tree keeps no bytes without a name: they would belong to no source")
        child = await self._child(directory, caller, changing=True)
        below = None if replacing is None else child.down(replacing)
        return child.up(
            await child.hooks.fusekit_write(
                directory=child.entry, name=name, replacing=below, content=content, caller=child.caller
            )
        )

    @hookimpl
    async def fusekit_mkdir(self, directory: Entry, name: str, attributes: Attributes, caller: Caller) -> Entry:
        child = await self._child(directory, caller, changing=True)
        return child.up(
            await child.hooks.fusekit_mkdir(
                directory=child.entry, name=name, attributes=attributes, caller=child.caller
            )
        )

    @hookimpl
    async def fusekit_symlink(self, directory: Entry, name: str, target: str, caller: Caller) -> Entry:
        child = await self._child(directory, caller, changing=True)
        return child.up(
            await child.hooks.fusekit_symlink(directory=child.entry, name=name, target=target, caller=child.caller)
        )

    @hookimpl
    async def fusekit_mknod(
        self, directory: Entry, name: str, kind: Kind, attributes: Attributes, caller: Caller
    ) -> Entry:
        child = await self._child(directory, caller, changing=True)
        return child.up(
            await child.hooks.fusekit_mknod(
                directory=child.entry, name=name, kind=kind, attributes=attributes, caller=child.caller
            )
        )

    @hookimpl
    async def fusekit_link(self, entry: Entry, directory: Entry, name: str, caller: Caller) -> Entry:
        child = await self._child(directory, caller, changing=True)
        return child.up(
            await child.hooks.fusekit_link(
                entry=child.down(entry), directory=child.entry, name=name, caller=child.caller
            )
        )

    @hookimpl
    async def fusekit_copy(self, entry: Entry, directory: Entry, name: str, caller: Caller) -> Entry:
        child = await self._child(directory, caller, changing=True)
        return child.up(
            await child.hooks.fusekit_copy(
                entry=child.down(entry), directory=child.entry, name=name, caller=child.caller
            )
        )

    @hookimpl
    async def fusekit_rename(
        self,
        entry: Entry,
        source: Entry,
        target: Entry,
        name: str,
        replacing: Entry | None,
        exchange: bool,
        caller: Caller,
    ) -> Entry:
        child = await self._child(target, caller, changing=True)
        leaving = await self._child(source, caller, changing=True)
        if leaving.name != child.name:
            raise _elsewhere(leaving.name, child.name)
        return child.up(
            await child.hooks.fusekit_rename(
                entry=child.down(entry),
                source=leaving.entry,
                target=child.entry,
                name=name,
                replacing=None if replacing is None else child.down(replacing),
                exchange=exchange,
                caller=child.caller,
            )
        )

    @hookimpl
    async def fusekit_remove(self, directory: Entry, entry: Entry, caller: Caller) -> None:
        child = await self._child(directory, caller, changing=True)
        await child.hooks.fusekit_remove(directory=child.entry, entry=child.down(entry), caller=child.caller)

    @hookimpl
    async def fusekit_setattr(self, directory: Entry, entry: Entry, changes: Attributes, caller: Caller) -> Entry:
        child = await self._child(directory, caller, changing=True)
        return child.up(
            await child.hooks.fusekit_setattr(
                directory=child.entry, entry=child.down(entry), changes=changes, caller=child.caller
            )
        )

    @hookimpl
    async def fusekit_getxattrs(self, entry: Entry, caller: Caller) -> Mapping[str, bytes]:
        if not entry.ref:
            return {}
        child = await self._child(entry, caller)
        return await child.hooks.fusekit_getxattrs(entry=child.entry, caller=child.caller)

    @hookimpl
    async def fusekit_setxattr(self, entry: Entry, name: str, value: bytes | None, caller: Caller) -> None:
        child = await self._child(entry, caller, changing=True)
        await child.hooks.fusekit_setxattr(entry=child.entry, name=name, value=value, caller=child.caller)

    @hookimpl
    async def fusekit_statfs(self, directory: Entry, caller: Caller) -> Space:
        child = await self._child(directory, caller)
        return await child.hooks.fusekit_statfs(directory=child.entry, caller=child.caller)

    @hookimpl
    async def fusekit_exchange(self, entry: Entry, request: bytes, sink: Sink, caller: Caller) -> None:
        child = await self._child(entry, caller)
        await child.hooks.fusekit_exchange(entry=child.entry, request=request, sink=sink, caller=child.caller)

    def root_is(self, name: str, ref: str) -> bool:
        """Return whether ``ref`` is the address of the root of source ``name``, as far as it was asked for."""
        return any(root.ref == ref for (child, _), root in self._roots.items() if child == name)

    def _per_user(self) -> list[str]:
        """Return the names of the sources that show each user something else."""
        return [
            name
            for name, child in self._children.items()
            if child.fusekit_capabilities(directory=self._root_seen(name)).has("fusekit_principal")
        ]

    def _root_seen(self, name: str) -> Entry:
        """Return the root of source ``name`` as somebody saw it, else what core takes for a root by default."""
        found = (root for (child, _), root in self._roots.items() if child == name)
        return next(found, Entry.directory(""))

    async def _shown(self, name: str, caller: Caller) -> Entry:
        """Return the entry of source ``name`` in the directory of the names.

        A source that is down or refuses the caller is there without facts, so that the others can be used; what is
        asked of it then says what is wrong.
        """
        below = self._caller(name, caller)
        try:
            root = await self._asked_root(name, below)
        except BackendError:
            return Entry.directory(name, name)
        facts = _Child(name, self._children[name], root, below).up(root)
        return attrs.evolve(facts, name=name, ref=name)

    async def _asked_root(self, name: str, caller: Caller) -> Entry:
        await self._signed_in(name, caller)
        root = await self._children[name].fusekit_root(caller=caller)
        self._roots.pop((name, caller.principal), None)
        self._roots[name, caller.principal] = root
        if len(self._roots) > ROOTS_MAX:
            del self._roots[next(iter(self._roots))]
        return root

    async def _signed_in(self, name: str, caller: Caller) -> None:
        if caller.principal == _ABSENT:
            # Asked once more for its reason: the message says how to sign in.
            await self._children[name].fusekit_principal(uid=caller.uid, gid=caller.gid, pid=caller.pid or 0)
            raise Denied(f"you were not signed in at {name} when this was opened; try again")

    async def _child(self, entry: Entry, caller: Caller, *, changing: bool = False) -> _Child:
        """Return the source that ``entry`` belongs to, with the entry and the caller as it knows them."""
        if not entry.ref:
            reason = "the names of a tree's sources are given when it is mounted"
            raise ReadOnly(reason) if changing else NotSupported(reason)
        name, _, ref = entry.ref.partition(":")
        hooks = self._children.get(name)
        if hooks is None:
            raise NotFound(f"no source is called {name!r}")
        below = self._caller(name, caller)
        await self._signed_in(name, below)
        if ref:
            return _Child(name, hooks, _stripped(name, attrs.evolve(entry, ref=ref)), below)
        root = self._roots.get((name, below.principal)) or await self._asked_root(name, below)
        return _Child(name, hooks, root, below)

    def _caller(self, name: str, caller: Caller) -> Caller:
        """Return ``caller`` with the principal that source ``name`` gave."""
        for word in caller.principal.split(","):
            source, _, principal = word.partition("=")
            if source == name:
                return attrs.evolve(caller, principal=principal if principal == _ABSENT else unquote(principal))
        return attrs.evolve(caller, principal="")


@attrs.frozen
class _Child:
    """One source for the length of a call: what to call, on what, as whom."""

    name: str
    hooks: Hooks
    entry: Entry
    caller: Caller

    def up(self, entry: Entry) -> Entry:
        """Return an entry of this source as the tree shows it.

        Without a ref core derives one from the directory's; that works out below everything but a source's root.
        """
        ref = entry.ref
        if not ref and self.entry.name == "" and entry is not self.entry:
            ref = f"{self.entry.ref}/{entry.name}"
        return attrs.evolve(
            entry,
            ref=f"{self.name}:{ref}" if ref else "",
            id=None if entry.id is None else f"{self.name}:{entry.id}",
            blob=None if entry.blob is None else f"{self.name}:{entry.blob}",
        )

    def down(self, entry: Entry) -> Entry:
        """Return an entry of the tree as this source made it."""
        name, _, ref = entry.ref.partition(":")
        if name != self.name:
            raise _elsewhere(name, self.name)
        if not ref:
            raise NotSupported("the root of a source stays where it is")
        return _stripped(self.name, attrs.evolve(entry, ref=ref))


def _elsewhere(one: str, other: str) -> NotSupported:
    # With this number programs copy instead; `ln` has no other way and says so.
    return NotSupported(f"{one} and {other} are different sources", errno=errno.EXDEV)


def _stripped(name: str, entry: Entry) -> Entry:
    """Return ``entry`` without ``name`` in front of its id and blob."""
    prefix = f"{name}:"
    return attrs.evolve(
        entry,
        id=None if entry.id is None else entry.id.removeprefix(prefix),
        blob=None if entry.blob is None else entry.blob.removeprefix(prefix),
    )


@attrs.frozen
class _ChildMount:
    """What a source gets as its `Mount`: that of the tree, with its own refs made the tree's."""

    tree: TreeBackend
    name: str
    outer: Mount

    def http(self, base_url: str, auth: Auth | None = None, explain: Explain | None = None) -> Http:
        return self.outer.http(base_url, auth, explain)

    def changed(self, ref: str, name: str | None = None, principal: str | None = None) -> None:
        """Pass the change on; for everybody, because the tree's principals are not the source's."""
        is_root = not ref or self.tree.root_is(self.name, ref)
        self.outer.changed(self.name if is_root else f"{self.name}:{ref}", name)

    def open(self, source: str, mount: Mount) -> Hooks:
        return self.outer.open(source, mount)


@hookimpl
def fusekit_backends() -> list[type]:
    return [TreeBackend]
