"""Volumes for tests: the whole engine over a backend object, without a kernel, in directories that go away.

Outside the layers. `Recorder` stands between the engine and a backend and counts, delays or fails the hooks.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs

from fusekit.plugins.manager import LayerFactory, stack
from fusekit.plugins.specs import OPERATIONS, SYNCHRONOUS, Hooks, hookimpl
from fusekit.settings import Settings
from fusekit.types import Mount
from fusekit.volume import Volume, open_stack

Before = Callable[[str, dict[str, Any]], Awaitable[None]]


@attrs.define(eq=False)
class Recorder:
    """Counts every asynchronous hook by its short name and asks ``before``, which may wait or raise."""

    calls: Counter[str] = attrs.field(factory=Counter)
    before: Before | None = None
    after: Before | None = None

    def layer(self, backend: object) -> LayerFactory:
        """Return a layer that implements just what ``backend`` does and passes everything on."""

        def make(inner: Hooks) -> object:
            members: dict[str, Any] = {"__module__": __name__}
            for hook in OPERATIONS:
                if hook not in SYNCHRONOUS and getattr(getattr(backend, hook, None), "fusekit_impl", None):
                    members[hook] = self._passing(hook, inner)
            return type("Recording", (), members)()

        return make

    def _passing(self, hook: str, inner: Hooks) -> Callable[..., Any]:
        """Return a method with the signature of ``hook``, because pluggy fills arguments by name."""
        short = hook.removeprefix("fusekit_")
        signature = inspect.signature(getattr(Hooks, hook))
        arguments = [name for name in signature.parameters if name != "self"]

        async def run(values: dict[str, Any]) -> Any:
            self.calls[short] += 1
            if self.before is not None:
                await self.before(short, values)
            result = await getattr(inner, hook)(**values)
            if self.after is not None:
                await self.after(short, values)
            return result

        space: dict[str, Any] = {"run": run}
        given = ", ".join(arguments)
        values = ", ".join(f"{name!r}: {name}" for name in arguments)
        exec(f"async def {hook}(self, {given}):\n    return await run({{{values}}})", space)
        method = space[hook]
        method.__annotations__ = {}
        return cast("Callable[..., Any]", hookimpl(method))


@asynccontextmanager
async def open_backend(
    make: Callable[[Mount], object],
    directory: Path,
    settings: Settings | None = None,
    *,
    recorder: Recorder | None = None,
    layers: Sequence[LayerFactory] = (),
) -> AsyncIterator[Volume]:
    """Open a volume over the backend that ``make`` returns, with cache and journal below ``directory``."""
    settings = attrs.evolve(settings or Settings(), cache_dir=directory / "cache", state_dir=directory / "state")

    def built(mount: Mount) -> Any:
        backend = make(mount)
        recording = [recorder.layer(backend)] if recorder is not None else []
        return stack(backend, [*recording, *layers])

    async with open_stack(built, f"test:{directory.name}", settings) as volume:
        yield volume
