"""Options: how a plugin declares them, and how core fills them from flags, environment, profile and default.

A base module. An options class is a frozen attrs class whose fields are made by `option`; the field called ``path``
takes what follows the scheme in SOURCE.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

METADATA_KEY: Final = "fusekit"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)?", re.IGNORECASE)
_SECONDS: Final = {"ms": 0.001, "s": 1, "": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def option(
    *,
    default: Any = attrs.NOTHING,
    factory: Callable[[], Any] | None = None,
    help: str = "",
    env: Sequence[str] = (),
    secret: bool = False,
    converter: Any = None,
    validator: Any = None,
) -> Any:
    """Declare one option of a plugin, as a field of its frozen attrs class.

    ``env`` names the service's own environment variables, asked after ``FUSEKIT_<SCHEME>_<NAME>``. A ``secret`` is
    taken from the environment or from a private file (``<name>_file``) only, and never shown.
    """
    if factory is not None:
        default = attrs.Factory(factory)
    metadata = {METADATA_KEY: {"help": help, "env": tuple(env), "secret": secret}}
    return attrs.field(default=default, metadata=metadata, converter=converter, validator=validator, repr=not secret)


def parse_size(value: str | int) -> int:
    """Return bytes from ``64MiB``, ``10MB``, ``1g`` or a plain number; a bare letter is a power of 1024."""
    if isinstance(value, int):
        return value
    found = _SIZE.fullmatch(value.strip())
    if not found:
        raise ValueError(f"{value!r} is no size; write for example 64MiB")
    number, letter, binary = found.groups()
    decimal = value.strip().lower().endswith("b") and letter and not binary
    unit = (1000 if decimal else 1024) ** " kmgtp".index(letter.lower() or " ")
    return int(float(number) * unit)


def parse_duration(value: str | float) -> float:
    """Return seconds from ``30s``, ``5min``, ``250ms`` or a plain number."""
    if isinstance(value, int | float):
        return float(value)
    found = _DURATION.fullmatch(value.strip())
    if not found:
        raise ValueError(f"{value!r} is no time; write for example 30s")
    return float(found[1]) * _SECONDS[(found[2] or "").lower()]


def octal(value: str | int) -> int:
    """Return permission bits from an octal string."""
    bits = value if isinstance(value, int) else int(value, 8)
    if not 0 <= bits <= 0o7777:
        raise ValueError(f"{value!r} is no octal mode between 0 and 7777")
    return bits


def words(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return the words of a comma-separated string."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())
