"""Names for what an emulator serves: handlers are methods marked with `route`, found by method and path.

Part of the emulator base. The name of a route is what logs, counters, latencies and faults go by, so it is stable
and says what the call does ("list-files"), whatever its URL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar
from urllib.parse import unquote

import attrs

from fusekit.testing.replies import Reply
from fusekit.testing.server import Request

Handler = Callable[[Request], Reply]
_Method = TypeVar("_Method", bound=Callable[..., Reply])
_MARK: Final = "__routes__"


@attrs.frozen
class Route:
    """One method and path with its handler. ``parts`` are the segments of the pattern."""

    name: str
    method: str
    pattern: str
    handler: Handler
    parts: tuple[str, ...]


def route(name: str, method: str, pattern: str) -> Callable[[_Method], _Method]:
    """Mark a method ``(self, request) -> Reply`` as the handler of ``method`` ``pattern``; may be used repeatedly.

    A segment ``{x}`` of the pattern takes one segment, ``{x...}`` at the end takes the rest, slashes and all; both
    arrive in ``request.params`` with their percent-escapes undone. A handler of GET also gets HEAD unless another
    route has it; the sender drops the body.
    """

    def mark(method_: _Method) -> _Method:
        setattr(method_, _MARK, [*getattr(method_, _MARK, ()), (name, method, pattern)])
        return method_

    return mark


class RouteTable:
    """All routes of one emulator."""

    def __init__(self) -> None:
        self._fixed: dict[str, dict[str, Route]] = {}
        self._patterns: list[Route] = []

    def add(self, owner: object) -> None:
        """Take in the marked methods of ``owner``."""
        for attribute in dir(type(owner)):
            for name, method, pattern in getattr(getattr(type(owner), attribute), _MARK, ()):
                found = Route(name, method, pattern, getattr(owner, attribute), tuple(pattern.split("/")))
                if "{" in pattern:
                    self._patterns.append(found)
                else:
                    self._fixed.setdefault(pattern, {})[method] = found

    def names(self) -> list[str]:
        """Return the names of all routes, sorted, each once."""
        fixed = {found.name for methods in self._fixed.values() for found in methods.values()}
        return sorted(fixed | {found.name for found in self._patterns})

    def find(self, method: str, path: str) -> tuple[Route | None, dict[str, str], set[str]]:
        """Return the route, the values of its variables, and the methods that the path has (for 405)."""
        methods: dict[str, tuple[Route, dict[str, str]]] = {}
        for found in self._fixed.get(path, {}).values():
            methods[found.method] = found, {}
        if not methods:
            segments = path.split("/")
            for found in self._patterns:
                params = _match(found.parts, segments)
                if params is not None:
                    methods.setdefault(found.method, (found, params))
        hit = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        return (*hit, set(methods)) if hit else (None, {}, set(methods))


def _match(parts: tuple[str, ...], segments: list[str]) -> dict[str, str] | None:
    params: dict[str, str] = {}
    for place, part in enumerate(parts):
        if part.endswith("...}"):
            params[part[1:-4]] = unquote("/".join(segments[place:]))
            return params if len(segments) > place else None
        if place >= len(segments):
            return None
        if part.startswith("{"):
            params[part[1:-1]] = unquote(segments[place])
        elif part != segments[place]:
            return None
    return params if len(parts) == len(segments) else None
