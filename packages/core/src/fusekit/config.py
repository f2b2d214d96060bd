"""Options: how a plugin declares them, and how core fills them from flags, environment, profile and default.

A base module. An options class is a frozen attrs class whose fields are made by `option`; the field called ``path``
takes what follows the scheme in SOURCE. Users see a field without its unit: ``ttl_s`` is the option ``ttl``.
"""

from __future__ import annotations

import difflib
import enum
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

import attrs

from fusekit.errors import ConfigError, PluginError
from fusekit.values import absolute, convert, kind, read_secret, text, without_none
from fusekit.values import octal as octal
from fusekit.values import parse_duration as parse_duration
from fusekit.values import parse_size as parse_size
from fusekit.values import words as words

METADATA_KEY: Final = "fusekit"
PATH_FIELD: Final = "path"
_UNITS: Final = ("_s", "_bytes")

T = TypeVar("T")


class Place(enum.Enum):
    """Where the value of an option came from, in the order in which they are asked."""

    SOURCE = "SOURCE"
    FLAG = "flag"
    ENVIRONMENT = "environment"
    PROFILE = "profile"
    DEFAULT = "default"


@attrs.frozen
class Origin:
    """Where one value came from; ``name`` is the variable or the profile, or the file that holds a secret."""

    place: Place
    name: str = ""

    def __str__(self) -> str:
        return f"{self.place.value} {self.name}".rstrip()


@attrs.frozen
class Declared:
    """One option of an options class as users see it.

    ``variables`` are the environment variables asked, first one first; ``kind`` says in words what is taken and
    ``default`` shows what is used without a value, None where one is required. ``identity``: it is part of what says
    which store this is.
    """

    name: str
    field: str
    kind: str
    help: str
    secret: bool
    variables: tuple[str, ...]
    default: str | None
    identity: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return the spellings of the option itself: without and with the unit."""
        return (self.name,) if self.name == self.field else (self.name, self.field)

    @property
    def boolean(self) -> bool:
        """Return whether the name alone switches it on."""
        return self.kind == "yes or no"

    @property
    def spellings(self) -> tuple[str, ...]:
        """Return all that may be written for it: its names, and for a secret the file that holds it."""
        return (*self.names, f"{self.name}_file") if self.secret else self.names


@attrs.frozen
class LayerChoice:
    """One layer of a mount, with its options filled."""

    name: str
    options: Any
    origins: Mapping[str, Origin] = attrs.field(factory=dict)


@attrs.frozen
class Source:
    """What to mount: the backend's scheme, what follows it, its options and where each value came from.

    ``layers`` are those to put on the backend, lowest first; ``profile`` is the profile's name where one was used.
    """

    scheme: str
    path: str
    options: Any
    origins: Mapping[str, Origin] = attrs.field(factory=dict)
    layers: tuple[LayerChoice, ...] = ()
    profile: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}:{self.path}"


def option(
    *,
    default: Any = attrs.NOTHING,
    factory: Callable[[], Any] | None = None,
    help: str = "",
    env: Sequence[str] = (),
    secret: bool = False,
    identity: bool = False,
    converter: Any = None,
    validator: Any = None,
) -> Any:
    """Declare one option of a plugin, as a field of its frozen attrs class.

    ``env`` names the service's own environment variables, asked after ``FUSEKIT_<SCHEME>_<NAME>``. A ``secret`` is
    taken from the environment or from a private file (``<name>_file``) only, and never shown. ``identity`` says that
    another value is another store (a host, a bucket): each has a cache and a journal of its own.

    Raises:
        PluginError: a secret cannot be an identity, which is stored and shown.
    """
    if secret and identity:
        raise PluginError("an option that is a secret cannot say which store this is")
    if factory is not None:
        default = attrs.Factory(factory)
    metadata = {METADATA_KEY: {"help": help, "env": tuple(env), "secret": secret, "identity": identity}}
    return attrs.field(default=default, metadata=metadata, converter=converter, validator=validator, repr=not secret)


def declared(cls: type[Any], scheme: str) -> tuple[Declared, ...]:
    """Return the options of ``cls`` in the order of its fields; ``scheme`` is empty for the engine's own."""
    hints = _hints(cls)
    return tuple(_declare(field, hints.get(field.name, str), scheme) for field in _fields(cls))


def fill(
    cls: type[T],
    scheme: str,
    *,
    path: str | None = None,
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    profile: Mapping[str, Any],
    profile_name: str = "",
) -> tuple[T, dict[str, Origin]]:
    """Return an instance of ``cls`` and the origin of each value by the option's name.

    Asked in this order: ``path`` (for the field of that name only), ``flags``, ``FUSEKIT_<SCHEME>_<NAME>`` and the
    option's own variables, ``profile``, default. An empty variable counts as not set. Relative paths are made
    absolute here, since a mount in the background works in another directory.

    Raises:
        ConfigError: an option is unknown, missing, of the wrong type, or a secret where everybody can see it.
    """
    filler = _Filler(scheme, _normal(flags), environment, _normal(profile), profile_name)
    hints, values, origins = _hints(cls), dict[str, Any](), dict[str, Origin]()
    options = declared(cls, scheme)
    _refuse_unknown((*filler.flags, *filler.profile), options, scheme)
    for field, one in zip(_fields(cls), options, strict=True):
        if one.field == PATH_FIELD and path is not None:
            found = (path, Origin(Place.SOURCE)) if path else None
        else:
            found = filler.secret(one) if one.secret else filler.value(one)
        if found is not None:
            raw, origins[one.name] = found
            values[_argument(field)] = _checked(raw, field, hints.get(field.name, str), one, scheme, origins[one.name])
        elif one.default is not None:
            origins[one.name] = Origin(Place.DEFAULT)
        else:
            raise ConfigError(_missing(one, scheme, path))
    if path and PATH_FIELD not in origins:
        raise ConfigError(f"{scheme} takes no path: write {scheme}: instead of {scheme}:{path}")
    return _made(cls, values, origins, options, scheme), origins


def shown(instance: object, one: Declared) -> str:
    """Return the value of option ``one`` for people; a secret is only said to be set."""
    value = getattr(instance, one.field)
    if one.secret:
        return "set" if value else "not set"
    return text(value, one.field)


def identity(source: Source) -> str:
    """Return what says which store ``source`` is, as far as its options know: scheme, path, and identity options.

    Of a layer only what it calls identity counts, and without any the layer does not: a rate limit stores nothing
    elsewhere. Never holds a secret.
    """
    owners = [(source.scheme, source.options), *((layer.name, layer.options) for layer in source.layers)]
    chosen = [(owner, _identity_values(options, owner)) for owner, options in owners]
    return json.dumps([str(source), *((owner, values) for owner, values in chosen if values)], ensure_ascii=True)


def _identity_values(options: object, owner: str) -> dict[str, str]:
    return {
        one.field: text(getattr(options, one.field), one.field)
        for one in declared(type(options), owner)
        if one.identity and not one.secret
    }


def closest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` for the known word that is most like ``word``, else an empty string."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


@attrs.frozen
class _Filler:
    """The places that values come from, asked for one option at a time."""

    scheme: str
    flags: Mapping[str, Any]
    environment: Mapping[str, str]
    profile: Mapping[str, Any]
    profile_name: str

    def value(self, one: Declared) -> tuple[Any, Origin] | None:
        for name in one.names:
            if name in self.flags:
                return self.flags[name], Origin(Place.FLAG)
        for variable in one.variables:
            if found := self.environment.get(variable):
                return found, Origin(Place.ENVIRONMENT, variable)
        for name in one.names:
            if name in self.profile:
                return self.profile[name], Origin(Place.PROFILE, self.profile_name)
        return None

    def secret(self, one: Declared) -> tuple[Any, Origin] | None:
        """Like `value`, but a flag or a profile may only name the file that holds the secret."""
        for where, place in (
            (self.flags, "an argument is seen by every user"),
            (self.profile, "a profile is no place"),
        ):
            if one.name in where:
                raise ConfigError(
                    f"option {one.name} of {self.scheme} is a secret and {place}: "
                    f"set {one.variables[-1]} in the environment, or give {one.name}_file"
                )
        file = f"{one.name}_file"
        if file in self.flags:
            return read_secret(absolute(str(self.flags[file]))), Origin(Place.FLAG, file)
        for variable in one.variables:
            if found := self.environment.get(variable):
                return found, Origin(Place.ENVIRONMENT, variable)
        variable = f"{one.variables[0]}_FILE"
        if name := self.environment.get(variable):
            return read_secret(absolute(name)), Origin(Place.ENVIRONMENT, variable)
        if file in self.profile:
            return read_secret(absolute(str(self.profile[file]))), Origin(Place.PROFILE, self.profile_name)
        return None


def _fields(cls: type[Any]) -> list[attrs.Attribute[Any]]:
    return [field for field in attrs.fields(cls) if field.init]


def _argument(field: attrs.Attribute[Any]) -> str:
    return field.alias or field.name


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError as error:
        raise PluginError(f"{cls.__qualname__}: annotations must be importable at run time ({error})") from error


def _declare(field: attrs.Attribute[Any], hint: Any, scheme: str) -> Declared:
    meta = field.metadata.get(METADATA_KEY, {"help": "", "env": (), "secret": False, "identity": False})
    name = next((field.name.removesuffix(unit) for unit in _UNITS if field.name.endswith(unit)), field.name)
    prefix = re.sub(r"\W", "_", f"FUSEKIT_{scheme}_" if scheme else "FUSEKIT_").upper()
    variables = () if field.name == PATH_FIELD else (f"{prefix}{name.upper()}", *meta["env"])
    return Declared(
        name=name,
        field=field.name,
        kind=kind(hint, field.name),
        help=meta["help"],
        secret=meta["secret"],
        variables=variables,
        default=_default(field, secret=meta["secret"]),
        identity=meta["identity"],
    )


def _default(field: attrs.Attribute[Any], *, secret: bool) -> str | None:
    if field.default is attrs.NOTHING:
        return None
    if secret:
        return ""
    made: Any = field.default
    if hasattr(made, "factory"):  # attrs.Factory, which is a function to type checkers
        made = "" if made.takes_self else made.factory()
    return text(made, field.name)


def _normal(given: Mapping[str, T]) -> dict[str, T]:
    return {name.strip().replace("-", "_").lower(): value for name, value in given.items()}


def _refuse_unknown(given: Iterable[str], options: Sequence[Declared], scheme: str) -> None:
    known = {name for one in options for name in one.spellings if one.field != PATH_FIELD}
    for name in given:
        if name not in known:
            who = scheme or "fusekit"
            raise ConfigError(f"{who} has no option {name!r}{closest(name, known)}")


def _missing(one: Declared, scheme: str, path: str | None) -> str:
    if one.field == PATH_FIELD and path is not None:
        return f"{scheme} needs a path: write {scheme}:PATH"
    way = f"give -o {one.name}_file=FILE" if one.secret else f"give -o {one.name}=…"
    return f"option {one.name} of {scheme or 'fusekit'} is missing: {way}, or set {' or '.join(one.variables)}"


def _checked(raw: Any, field: attrs.Attribute[Any], hint: Any, one: Declared, scheme: str, origin: Origin) -> Any:
    """Return what to make the class with: converted by the type, or untouched where the field's converter takes it."""
    try:
        hint, optional = without_none(hint)
        if hint is Path and raw and isinstance(raw, str) and not _stands_for_nothing(raw, field):
            raw = absolute(raw)
        if field.converter is None or isinstance(field.converter, type):  # a class says no more than the annotation
            return convert(hint, raw, optional=optional)
        if callable(field.converter):
            field.converter(raw)  # once here, so that its complaint comes with the option's name and origin
    except (ValueError, TypeError) as error:
        raise _wrong(one, scheme, origin, str(error)) from (None if one.secret else error)
    return raw


def _stands_for_nothing(raw: str, field: attrs.Attribute[Any]) -> bool:
    """Return whether ``raw`` is a word for no path at all to the field's converter: a name in no directory."""
    converter = field.converter
    return callable(converter) and not isinstance(converter, type) and converter(raw) is None


def _made(
    cls: type[T], values: Mapping[str, Any], origins: Mapping[str, Origin], options: Sequence[Declared], scheme: str
) -> T:
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        for field, one in zip(_fields(cls), options, strict=True):
            value = values.get(_argument(field))
            if value is not None and (why := _refused(field, value)) is not None:
                raise _wrong(one, scheme, origins[one.name], why) from (None if one.secret else error)
        if any(one.secret and origins[one.name].place is not Place.DEFAULT for one in options):
            raise ConfigError(f"the options of {scheme or 'fusekit'} do not fit together") from None
        raise ConfigError(f"options of {scheme or 'fusekit'}: {error}") from error


def _refused(field: attrs.Attribute[Any], value: object) -> str | None:
    """Say what the field's validator has against ``value``: the class as a whole does not tell which field it was."""
    converted = field.converter(value) if callable(field.converter) else value
    try:
        if field.validator is not None:
            field.validator(None, field, converted)
    except (ValueError, TypeError) as error:
        return str(error.args[0]) if error.args else type(error).__name__
    except AttributeError:
        return None  # it compares with other fields, which there are none of here
    return None


def _wrong(one: Declared, scheme: str, origin: Origin, why: str) -> ConfigError:
    place = str(origin) if origin.place is not Place.FLAG else "-o" if scheme else "the command line"
    reason = "its value cannot be used" if one.secret else why
    owner = f" of {scheme}" if scheme else ""
    return ConfigError(f"option {one.name}{owner}: {reason} (from {place})")
