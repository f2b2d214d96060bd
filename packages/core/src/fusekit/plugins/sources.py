"""From what users write (SOURCE, options, profiles) to a filled `Source` and `Settings`.

Plugins layer: above `fusekit.config`, which fills one class, this finds the classes and deals the options out among
the engine, the backend and its layers. The command line, fsspec and backends made of others (`tree`) come this way.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import attrs
import platformdirs

from fusekit.config import PATH_FIELD, Declared, LayerChoice, Origin, Source, closest, declared, fill
from fusekit.errors import ConfigError
from fusekit.plugins.manager import GROUP, backend_class, layer_class
from fusekit.settings import Settings

CONFIG_VARIABLE: Final = "FUSEKIT_CONFIG"
Flags = Mapping[str, str | None]
"""Options as given: by name, with dashes or underscores; None where only the name was given (``-o direct_io``)."""

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+._-]*):(?P<path>.*)", re.DOTALL)


@attrs.frozen
class Profiles:
    """The profiles of a ``config.toml``: by name the keys and values of each, ``source`` among them."""

    file: Path
    tables: Mapping[str, Mapping[str, Any]]


@attrs.frozen
class Request:
    """All that is needed to open a volume. ``inner`` is the path inside it, from ``PROFILE:inner``."""

    source: Source
    settings: Settings
    origins: Mapping[str, Origin]
    inner: str = ""


def read_profiles(environment: Mapping[str, str] = os.environ) -> Profiles:
    """Read ``config.toml`` from ``$FUSEKIT_CONFIG`` or the user's configuration directory; without one it is empty.

    Raises:
        ConfigError: it is no TOML, or has something else than profiles with a source.
    """
    named = environment.get(CONFIG_VARIABLE)
    file = Path(named) if named else platformdirs.user_config_path("fusekit") / "config.toml"
    try:
        content = tomllib.loads(file.read_text())
    except FileNotFoundError:
        if named:
            raise ConfigError(f"{file} ({CONFIG_VARIABLE}) is not there") from None
        return Profiles(file, {})
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is no TOML: {error}") from error
    for key in content:
        if key != "profiles":
            raise ConfigError(f"{file}: {key!r} is not known; profiles are tables called [profiles.NAME]")
    tables = content.get("profiles", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"{file}: profiles are tables called [profiles.NAME]")
    for name, table in tables.items():
        if not isinstance(table, dict) or not isinstance(table.get("source"), str):
            raise ConfigError(f'{file}: profile {name} needs a line such as: source = "local:/srv"')
    return Profiles(file, tables)


def is_source(text: str) -> bool:
    """Return whether ``text`` has a scheme or profile in front; ``./a:b`` and ``/a:b`` are plain paths."""
    return _SCHEME.fullmatch(text) is not None


def split(text: str) -> tuple[str, str]:
    """Return the scheme or profile in front of the first colon, in lower case, and what follows it."""
    found = _SCHEME.fullmatch(text)
    return (found["scheme"].lower(), found["path"]) if found else ("", text)


def resolve(
    text: str,
    flags: Flags | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    profiles: Profiles | None = None,
) -> Request:
    """Return what ``text`` (``scheme:path``, a profile, or ``profile:path inside it``) and the options around it mean.

    ``flags`` hold options of the engine, the backend and the layers alike; one that several know goes to each of
    them, and ``LAYER.option`` to that layer alone. An installed scheme comes before a profile of the same name.

    Raises:
        ConfigError: an option is wrong. PluginError: no such scheme or layer, or it does not import.
    """
    profiles = read_profiles(environment) if profiles is None else profiles
    name, table, scheme, path, inner = _named(text, profiles)
    cls = backend_class(scheme)
    path, host = _address(scheme, path, declared(cls.options, scheme))
    given = _Given({**_normal(flags or {}), **host}, {k: v for k, v in _normal(table).items() if k != "source"})
    if host and "host" in _normal(flags or {}):
        raise ConfigError(f"the host is given twice, in {text} and by -o host")
    settings, origins = _fill(Settings, "", given, environment, name, path=None)
    layers = [(layer, layer_class(layer)) for layer in settings.layers]
    owners = [("", Settings), (scheme, cls.options), *((layer, made.options) for layer, made in layers)]
    given.refuse_unknown(((owner, declared(options, owner)) for owner, options in owners), scheme)
    options, found = _fill(cls.options, scheme, given, environment, name, path=path)
    choices = tuple(
        LayerChoice(layer, *_fill(made.options, layer, given, environment, name, path=None)) for layer, made in layers
    )
    # As the options have it: absolute, so that one source has one name, wherever it was asked for.
    path = str(getattr(options, PATH_FIELD, path))
    return Request(Source(scheme, path, options, found, choices, name), settings, origins, inner)


@attrs.frozen
class _Given:
    """Options by normal name, before they are dealt out."""

    flags: Flags
    profile: Mapping[str, Any]

    def refuse_unknown(self, groups: Iterable[tuple[str, tuple[Declared, ...]]], scheme: str) -> None:
        known = set[str]()
        for owner, options in groups:
            plain = {spelling for one in options for spelling in (*one.spellings, *_negations(one))}
            known |= plain | ({f"{owner}.{spelling}" for spelling in plain} if owner else set())
        for name in (*self.flags, *self.profile):
            if name not in known:
                hint = closest(name, known) or f"; see: fusekit backends --options {scheme}"
                raise ConfigError(f"neither fusekit nor {scheme} has an option {name!r}{hint}")


def _named(text: str, profiles: Profiles) -> tuple[str, Mapping[str, Any], str, str, str]:
    """Return profile name, its table, scheme, path and inner path."""
    schemes = {point.name for point in metadata.entry_points(group=GROUP)}
    word, path = split(text)
    if word in schemes or (word and word not in profiles.tables):
        return "", {}, word, path, ""
    name, inner = (word, path) if word else (text, "")
    if name not in profiles.tables:
        near = closest(name, (*profiles.tables, *schemes))
        raise ConfigError(
            f"{text!r} is no SOURCE and no profile of {profiles.file}; write scheme:path, for example local:{text}{near}"
        )
    table = profiles.tables[name]
    scheme, path = split(table["source"])
    if not scheme:
        raise ConfigError(f"{profiles.file}: source of profile {name} is no scheme:path, for example local:/srv")
    return name, table, scheme, path, inner


def _address(scheme: str, path: str, options: Iterable[Declared]) -> tuple[str, dict[str, str]]:
    """Read ``scheme://host/path``: the host is the option of that name, or is left to a backend that has none."""
    if not path.startswith("//"):
        return path, {}
    authority, slash, rest = path[2:].partition("/")
    if "@" in authority:
        raise ConfigError(f"{scheme}://… has a user name or password, which every user can see; use the environment")
    if not authority:
        return slash + rest, {}
    if any(one.name == "host" for one in options):
        return slash + rest, {"host": authority}
    return path, {}


def _fill(
    cls: type[Any], owner: str, given: _Given, environment: Mapping[str, str], profile_name: str, *, path: str | None
) -> tuple[Any, dict[str, Origin]]:
    options = declared(cls, owner)
    return fill(
        cls,
        owner,
        path=path,
        flags=_deal(given.flags, options, owner),
        environment=environment,
        profile=_deal(given.profile, options, owner),
        profile_name=profile_name,
    )


def _deal(given: Mapping[str, Any], options: Iterable[Declared], owner: str) -> dict[str, Any]:
    """Return what of ``given`` one class knows, by plain name, with words put in for names without a value."""
    mine: dict[str, Any] = {}
    for one in options:
        if any(negation in given for negation in _negations(one)):
            mine[one.name] = "no"
        for name in one.spellings:
            for spelling in (name, f"{owner}.{name}"):
                if spelling in given:
                    mine[name] = _worded(spelling, given[spelling], one)
    return mine


def _worded(spelling: str, value: Any, one: Declared) -> Any:
    if value is not None:
        return value
    if not one.boolean:
        raise ConfigError(f"option {spelling} needs a value, {one.kind}: -o {spelling}=…")
    return "yes"


def _negations(one: Declared) -> tuple[str, ...]:
    """Return how mount(8) users switch an option off."""
    return (f"no_{one.name}", f"no{one.name}") if one.boolean else ()


def _normal(given: Mapping[str, Any]) -> dict[str, Any]:
    """Spell option names with underscores; the part before a dot is a layer's name and stays as it is."""
    normal: dict[str, Any] = {}
    for name, value in given.items():
        owner, dot, option = name.strip().rpartition(".")
        normal[owner + dot + option.replace("-", "_").lower()] = value
    return normal
