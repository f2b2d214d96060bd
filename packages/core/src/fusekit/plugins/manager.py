"""Finds plugins by entry point, checks them at registration, and stacks one backend and its layers.

Plugins layer. Each level of a mount is a pluggy manager with one plugin more than the level below, so that what a
layer gets as ``inner`` is simply the hooks of the level it stands on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from importlib import metadata
from typing import Any, cast, get_type_hints

import attrs
import pluggy

from fusekit.config import closest
from fusekit.errors import NotSupported, PluginError
from fusekit.plugins.specs import OPERATIONS, PROJECT, SYNCHRONOUS, Discovery, Hooks, hookimpl
from fusekit.types import Capabilities, Entry

GROUP = PROJECT
LayerFactory = Callable[[Hooks], object]


@attrs.frozen
class Stack:
    """The hooks of one mount, and the lifespans to enter, bottom up, before the first call.

    ``identity`` is what the backend and its layers said for themselves about which store this is.
    """

    hooks: Hooks
    lifespans: tuple[AbstractAsyncContextManager[None], ...]
    identity: tuple[str, ...] = ()


@attrs.frozen
class Plugin:
    """One installed entry point: what it registers, or why it cannot."""

    name: str
    module: str
    distribution: str | None
    version: str | None
    backends: tuple[type[Any], ...] = ()
    layers: tuple[type[Any], ...] = ()
    emulators: tuple[type[Any], ...] = ()
    error: str | None = None


def stack(backend: object, layers: Sequence[LayerFactory] = ()) -> Stack:
    """Put ``layers`` (the first one lowest) on ``backend``, after checking each of them.

    Raises:
        PluginError: an implementation breaks the contract in a way that pluggy would pass over in silence.
    """
    verify(backend)
    plugins: list[object] = [_Ground(), backend, _Implemented(implemented(backend))]
    identity = [*_identity(backend)]
    manager = _manager(Hooks, plugins)
    for make in layers:
        layer = make(cast(Hooks, manager.hook))
        verify(layer)
        plugins.append(layer)
        identity += _identity(layer)
        manager = _manager(Hooks, plugins)
    spans = cast("list[AbstractAsyncContextManager[None]]", manager.hook.fusekit_lifespan())
    return Stack(cast(Hooks, manager.hook), tuple(reversed(spans)), tuple(identity))


def _identity(plugin: object) -> list[str]:
    """Return what ``plugin`` found out about which store it is, none where its options have said all."""
    found = getattr(plugin, "identity", "")
    if not isinstance(found, str):
        raise PluginError(f"{type(plugin).__qualname__}.identity is {type(found).__name__}, not text")
    who = getattr(plugin, "scheme", getattr(plugin, "name", ""))
    return [f"{who}={found}"] if found else []


def implemented(plugin: object) -> frozenset[str]:
    """Return the names of the operations that ``plugin`` implements."""
    return frozenset(name for name in OPERATIONS if _options(getattr(plugin, name, None)) is not None)


def verify(plugin: object) -> None:
    """Refuse a plugin whose mistakes pluggy would not mention.

    Raises:
        PluginError: a ``fusekit_`` method without the marker, with a name that is no hook, sync for async, with
            keyword-only or default arguments, or annotated otherwise than the specification.
    """
    cls = type(plugin)
    for name in dir(cls):
        if name.startswith(f"{PROJECT}_"):
            _verify_method(cls, name)


def _verify_method(cls: type, name: str) -> None:
    method, where = getattr(cls, name), f"{cls.__qualname__}.{name}"
    options = _options(method)
    if options is None:
        raise PluginError(f"{where} lacks @hookimpl: it would never be called")
    if name not in OPERATIONS:
        raise PluginError(f"{where} is no hook of {PROJECT}")
    if name not in SYNCHRONOUS and not inspect.iscoroutinefunction(method):
        raise PluginError(f"{where} must be `async def` without `yield`")
    if name in SYNCHRONOUS and inspect.iscoroutinefunction(method):
        raise PluginError(f"{where} must not be a coroutine function")
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.default is not parameter.empty:
            raise PluginError(f"{where}: `{parameter}` is never filled; make it a plain argument")
    if options.get("wrapper") or options.get("hookwrapper"):
        if name != "fusekit_capabilities":
            raise PluginError(f"{where}: a wrapper sees a coroutine and not its result; delegate to `inner` instead")
        return
    wanted = get_type_hints(getattr(Hooks, name))
    try:
        given = get_type_hints(method)
    except NameError as error:
        raise PluginError(f"{where}: annotations must be importable at run time ({error})") from error
    for argument, hint in given.items():
        if argument != "return" and argument in wanted and hint != wanted[argument]:
            raise PluginError(f"{where}: `{argument}` is {wanted[argument]}, not {hint}")


def installed() -> list[Plugin]:
    """Return every entry point of the group with what it registers, by name; one that fails carries its error."""
    return [_load(point) for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name)]


def find(name: str) -> Plugin:
    """Import the one module that the entry point ``name`` names.

    Raises:
        PluginError: nothing of that name is installed, or more than one, or it does not import.
    """
    installed_for = metadata.entry_points(group=GROUP, name=name)
    points = {(point.dist.name if point.dist else "?", point.value): point for point in installed_for}
    if len(points) > 1:
        owners = ", ".join(sorted(f"{owner} ({module})" for owner, module in points))
        raise PluginError(f"several plugins are installed for {name!r}, keep one of them: {owners}")
    for point in points.values():
        plugin = _load(point)
        if plugin.error is not None:
            raise PluginError(plugin.error)
        return plugin
    known = sorted({point.name for point in metadata.entry_points(group=GROUP)})
    hint = (
        closest(name, known) or f"; fusekit-{name} would bring it, in a checkout: pip install ./packages/backend-{name}"
    )
    raise PluginError(f"no plugin is installed for {name!r} (installed: {', '.join(known) or 'none'}){hint}")


def backend_class(scheme: str) -> type[Any]:
    """Return the backend class that serves ``scheme``.

    Raises:
        PluginError: there is none.
    """
    plugin = find(scheme)
    for cls in plugin.backends:
        if cls.scheme == scheme:
            return cls
    raise PluginError(f"the plugin {plugin.module} registers no backend for {scheme!r}")


def layer_class(name: str) -> type[Any]:
    """Return the layer class called ``name``.

    Raises:
        PluginError: there is none.
    """
    plugin = find(name)
    for cls in plugin.layers:
        if cls.name == name:
            return cls
    raise PluginError(f"the plugin {plugin.module} registers no layer {name!r}")


def emulator_class(scheme: str) -> type[Any]:
    """Return the emulator of the service behind ``scheme``.

    Raises:
        PluginError: there is none.
    """
    plugin = find(scheme)
    for cls in plugin.emulators:
        if cls.scheme == scheme:
            return cls
    raise PluginError(f"the plugin {plugin.module} has no emulator for {scheme!r}")


def _load(point: metadata.EntryPoint) -> Plugin:
    dist = point.dist
    plugin = Plugin(point.name, point.value, dist.name if dist else None, dist.version if dist else None)
    try:
        manager = _manager(Discovery, [point.load()])
        found = cast(Discovery, manager.hook)
        plugin = attrs.evolve(
            plugin,
            backends=tuple(cls for group in found.fusekit_backends() for cls in group),
            layers=tuple(cls for group in found.fusekit_layers() for cls in group),
            emulators=tuple(cls for group in found.fusekit_emulators() for cls in group),
        )
        for cls in (*plugin.backends, *plugin.layers, *plugin.emulators):
            _verify_class(cls)
        _verify_distinct(plugin)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - other people's import; their failure is shown, not spread
        words = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {words}" if words else type(error).__name__
        return attrs.evolve(plugin, error=f"the plugin {point.name!r} ({point.value}) cannot be used: {reason}")
    return plugin


def _verify_class(cls: type[Any]) -> None:
    if not isinstance(getattr(cls, "scheme", getattr(cls, "name", None)), str):
        raise PluginError(f"{cls.__qualname__} has no `scheme` (a layer: no `name`)")
    if not attrs.has(getattr(cls, "options", type(None))):
        raise PluginError(f"{cls.__qualname__}.options is no attrs class")


def _verify_distinct(plugin: Plugin) -> None:
    for group, key in ((plugin.backends, "scheme"), (plugin.layers, "name"), (plugin.emulators, "scheme")):
        seen: dict[str, type[Any]] = {}
        for cls in group:
            other = seen.setdefault(getattr(cls, key), cls)
            if other is not cls:
                raise PluginError(f"{other.__qualname__} and {cls.__qualname__} both are {key} {getattr(cls, key)!r}")


def _manager(spec: type, plugins: Sequence[object]) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(spec)
    try:
        for plugin in plugins:
            manager.register(plugin)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginError(str(error)) from error
    return manager


def _options(method: object) -> dict[str, Any] | None:
    return getattr(method, f"{PROJECT}_impl", None)


class _Ground:
    """Under every stack: the defaults of what a backend need not write, and `NotSupported` for the rest."""

    @hookimpl(trylast=True)
    def fusekit_capabilities(self) -> Capabilities:
        return Capabilities()

    @hookimpl(trylast=True)
    async def fusekit_root(self) -> Entry:
        return Entry.directory("")

    @hookimpl(trylast=True)
    async def fusekit_principal(self) -> str:
        return ""

    @hookimpl(trylast=True)
    async def fusekit_access(self) -> None:
        """Allow everything: the service decides at the operation itself."""


def _absent(name: str) -> Callable[..., Any]:
    async def absent(self: object) -> None:
        raise NotSupported(f"no plugin of this mount implements {name}")

    absent.__name__ = name
    return hookimpl(trylast=True)(absent)


for _name in OPERATIONS:
    if _name not in SYNCHRONOUS and not hasattr(_Ground, _name):
        setattr(_Ground, _name, _absent(_name))


@attrs.frozen
class _Implemented:
    """Right above the backend: fills ``hooks`` unless the backend did so itself (`tree`)."""

    names: frozenset[str]

    @hookimpl(wrapper=True)
    def fusekit_capabilities(self) -> Iterator[None]:
        found = yield
        assert isinstance(found, Capabilities), "fusekit_capabilities must return Capabilities"
        return found if found.hooks is not None else attrs.evolve(found, hooks=self.names)
