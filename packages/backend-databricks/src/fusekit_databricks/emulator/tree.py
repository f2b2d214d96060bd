"""The workspace tree: objects by path, with ids that outlive a rename, and the recent past for stale answers.

Part of the emulator; no HTTP. Callers hold the emulator's lock. Nodes never change: a change puts another one in.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from fusekit.testing.blobs import Blob

FOLDERS: Final = frozenset({"DIRECTORY", "REPO"})
TYPES: Final = FOLDERS | {"FILE", "NOTEBOOK", "LIBRARY", "DASHBOARD"}
NAME_BYTES_MAX: Final = 255
_FIRST_ID: Final = 1_000_000_000_000_000
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@attrs.frozen(eq=False)
class Git:
    """Where the content of a Git folder comes from."""

    url: str
    provider: str
    branch: str = "main"
    head_commit_id: str = "0" * 40


@attrs.frozen(eq=False)
class Node:
    """One object. ``language`` and ``export_format`` (SOURCE or JUPYTER) only for notebooks, ``blob`` not for folders."""

    path: str
    type: str
    object_id: int
    created_ms: int
    modified_ms: int
    blob: Blob | None = None
    language: str | None = None
    export_format: str | None = None
    git: Git | None = None

    @property
    def is_folder(self) -> bool:
        """Return whether it can have children."""
        return self.type in FOLDERS

    @property
    def content(self) -> Blob:
        """Return the bytes of a file or notebook."""
        assert self.blob is not None, f"{self.path} has no content"
        return self.blob


class BadPath(ValueError):
    """No object can be at such a path."""


def canonical(path: str) -> str:
    """Return the one form of ``path``: without ``/Workspace``, doubled slashes and a slash at the end.

    Raises:
        BadPath: it is not absolute, or a name in it is not allowed.
    """
    if not path.startswith("/"):
        raise BadPath(f"Path ({path}) doesn't start with '/'.")
    names = [name for name in path.split("/") if name]
    if names[:1] == ["Workspace"]:
        names = names[1:]
    for name in names:
        if name in {".", ".."} or _CONTROL.search(name):
            raise BadPath(f"Path ({path}) contains a name that is not allowed.")
        if len(name.encode("utf-8", "surrogatepass")) > NAME_BYTES_MAX:
            raise BadPath(f"A name in the path ({path}) is longer than {NAME_BYTES_MAX} bytes.")
    return "/" + "/".join(names)


def parent_of(path: str) -> str:
    """Return the folder of ``path``; the root is its own."""
    return path.rpartition("/")[0] or "/"


def name_of(path: str) -> str:
    """Return the last name of ``path``."""
    return path.rpartition("/")[2]


class Tree:
    """All objects. ``keep_ms`` is how far back `at` can look; 0 keeps nothing of the past."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._nodes: dict[str, Node] = {}
        self._children: dict[str, set[str]] = {}
        self._by_id: dict[int, str] = {}
        self._past: deque[tuple[int, str, Node | None]] = deque()
        self._last = 0
        self.keep_ms = 0
        self.clear()

    def clear(self) -> None:
        """Drop everything but the root."""
        for table in (self._nodes, self._children, self._by_id, self._past):
            table.clear()
        self.put(Node("/", "DIRECTORY", self.new_id(), self._now_ms(), self._now_ms()))

    def new_id(self) -> int:
        """Return an object id that was never used."""
        while True:
            self._last += 1
            if _FIRST_ID + self._last not in self._by_id:
                return _FIRST_ID + self._last

    def get(self, path: str) -> Node | None:
        """Return the object at the canonical ``path``."""
        return self._nodes.get(path)

    def by_id(self, object_id: int) -> Node | None:
        """Return the object with that id."""
        path = self._by_id.get(object_id)
        return None if path is None else self._nodes.get(path)

    def put(self, node: Node) -> None:
        """Put ``node`` at its path, in place of what is there; its folder must be there."""
        self._remember(node.path)
        old = self._nodes.get(node.path)
        if old is not None:
            self._by_id.pop(old.object_id, None)
        self._nodes[node.path] = node
        self._by_id[node.object_id] = node.path
        if node.is_folder:
            self._children.setdefault(node.path, set())
        if node.path != "/":
            self._children[parent_of(node.path)].add(node.path)

    def remove(self, path: str) -> list[Node]:
        """Remove the object at ``path`` with all below it, deepest first, and return them."""
        removed = list(self.walk(path))[::-1]
        for node in removed:
            self._remember(node.path)
            del self._nodes[node.path]
            self._by_id.pop(node.object_id, None)
            self._children.pop(node.path, None)
            self._children[parent_of(node.path)].discard(node.path)
        return removed

    def move(self, source: str, target: str) -> None:
        """Move the object at ``source`` with all below it to ``target``, which must be free; ids stay."""
        moved = list(self.walk(source))
        self.remove(source)
        for node in moved:
            self.put(attrs.evolve(node, path=target + node.path[len(source) :]))

    def children(self, path: str) -> list[Node]:
        """Return what is in the folder at ``path``, by name."""
        return [self._nodes[child] for child in sorted(self._children.get(path, ()))]

    def has_children(self, path: str) -> bool:
        """Return whether something is in the folder at ``path``."""
        return bool(self._children.get(path))

    def walk(self, path: str = "/") -> Iterator[Node]:
        """Yield the object at ``path`` and all below it, each folder before what is in it."""
        queue = deque([path])
        while queue:
            node = self._nodes[queue.popleft()]
            yield node
            queue.extend(sorted(self._children.get(node.path, ())))

    def get_at(self, path: str, ago_ms: int) -> Node | None:
        """Return what was at ``path`` so long ago."""
        past = self._since(ago_ms)
        return past[path] if path in past else self._nodes.get(path)

    def children_at(self, path: str, ago_ms: int) -> list[Node]:
        """Return what was in the folder at ``path`` so long ago, by name."""
        past = {place: node for place, node in self._since(ago_ms).items() if parent_of(place) == path and place != "/"}
        now = {node.path: node for node in self.children(path)}
        return [node for _, node in sorted({**now, **past}.items()) if node is not None]

    def _since(self, ago_ms: int) -> dict[str, Node | None]:
        """Return, for every path changed within ``ago_ms``, what was there before."""
        found: dict[str, Node | None] = {}
        if ago_ms:
            limit = self._now_ms() - ago_ms
            for when, path, before in reversed(self._past):
                if when <= limit:
                    break
                found[path] = before
        return found

    def _remember(self, path: str) -> None:
        if not self.keep_ms:
            return
        now = self._now_ms()
        while self._past and self._past[0][0] < now - self.keep_ms:
            self._past.popleft()
        self._past.append((now, path, self._nodes.get(path)))
