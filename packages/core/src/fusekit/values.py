"""The values of options: from what users write to what the fields hold, and back to text.

A base module, below `fusekit.config`. A value that does not fit is a ValueError with the reason in words; who asked
adds the option's name and where the value came from.
"""

from __future__ import annotations

import enum
import os
import re
import stat
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

from fusekit.errors import ConfigError

SECRET_BYTES_MAX: Final = 64 << 10  # keys and certificates are small; more is the wrong file

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)?", re.IGNORECASE)
_SECONDS: Final = {"ms": 0.001, "s": 1, "": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_OCTAL: Final = ("mode", "umask")
_TRUE: Final = ("yes", "true", "1", "on")
_FALSE: Final = ("no", "false", "0", "off")
_WORDS: Final[Mapping[Any, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "yes or no",
    Path: "a path",
    str: "text",
}


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
    try:
        bits = value if isinstance(value, int) else int(value, 8)
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o7777:
        raise ValueError(f"{value!r} is no octal mode between 0 and 7777")
    return bits


def words(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return the words of a comma-separated string."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())


def read_secret(file: Path) -> str:
    """Return the text of a file that nobody but its owner can read, without the line end.

    Raises:
        ConfigError: it is not there, belongs to somebody else, or others can read it; the message says what to do.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"cannot read the secret in {file}: {error.strerror}") from error
    with open(descriptor, "rb") as opened:
        facts = os.fstat(descriptor)  # of what was opened, not of what the name means a moment later
        if not stat.S_ISREG(facts.st_mode):
            raise ConfigError(f"{file} is no plain file; a secret is read from one only")
        if facts.st_uid != os.geteuid():
            raise ConfigError(f"{file} holds a secret but belongs to another user; run: chown {os.geteuid()} {file}")
        if facts.st_mode & 0o077:
            raise ConfigError(f"{file} holds a secret and others can read it; run: chmod 600 {file}")
        data = opened.read(SECRET_BYTES_MAX + 1)
    if len(data) > SECRET_BYTES_MAX:
        raise ConfigError(f"{file} is longer than {SECRET_BYTES_MAX} bytes; that is no secret")
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} holds something that is no text") from error


def convert(hint: Any, raw: Any, *, optional: bool = False) -> Any:
    """Return ``raw`` (text, or a value of a TOML file) as the type ``hint``; unknown annotations take text.

    Raises:
        ValueError: it is no such thing, with the reason for people.
    """
    if optional and raw == "":
        return None
    if get_origin(hint) is tuple:
        if not isinstance(raw, str | Sequence):
            raise ValueError(f"{raw!r} is no list of words")
        inner = get_args(hint)[0]
        return tuple(convert(inner, part) for part in words(raw))
    if get_origin(hint) is Literal:
        return _choice({str(choice): choice for choice in get_args(hint)}, raw)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choice({str(member.value).lower(): member for member in hint}, raw)
    if hint is bool:
        return _boolean(raw)
    if hint in (int, float):
        return _number(hint, raw)
    if not isinstance(raw, str | int | float | Path):
        raise ValueError(f"{raw!r} is not {_WORDS.get(hint, 'text')}")  # noqa: TRY004 - one error for all that does not fit
    return Path(str(raw)) if hint is Path else str(raw)


def _boolean(raw: Any) -> bool:
    word = str(raw).lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(f"{raw!r} is neither yes nor no")
    return word in _TRUE


def _number(hint: type[int] | type[float], raw: Any) -> int | float:
    accepted = str | int if hint is int else str | int | float
    if isinstance(raw, accepted) and not isinstance(raw, bool):
        try:
            return hint(raw)
        except ValueError:
            pass
    raise ValueError(f"{raw!r} is no {_WORDS[hint].removeprefix('a ')}")


def _choice(choices: Mapping[str, Any], raw: Any) -> Any:
    if str(raw).lower() not in choices:
        raise ValueError(f"{raw!r} is not {_or(choices)}")
    return choices[str(raw).lower()]


def _or(choices: Iterable[str]) -> str:
    *head, last = choices
    return f"{', '.join(head)} or {last}" if head else last


def without_none(hint: Any) -> tuple[Any, bool]:
    """Return ``X, True`` for ``X | None`` and ``X, False`` for any other annotation."""
    if get_origin(hint) in (Union, types.UnionType):
        rest = [part for part in get_args(hint) if part is not type(None)]
        return (rest[0] if len(rest) == 1 else str), len(rest) < len(get_args(hint))
    return hint, False


def absolute(path: str) -> Path:
    """Return ``path`` with ``~`` and the working directory put in; links stay."""
    return Path(path).expanduser().absolute()


def text(value: object, field: str) -> str:
    """Return a value as users would write it; modes are octal, None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, int) and field.endswith(_OCTAL):
        return f"{value:03o}"
    if isinstance(value, int) and field.endswith("_bytes"):
        return _size_text(value)
    if isinstance(value, float) and field.endswith("_s"):
        return f"{value:g}s"
    if isinstance(value, tuple | list | set | frozenset):
        return ",".join(str(item) for item in value)
    return str(value)


def _size_text(size_bytes: int) -> str:
    """Return a size that `parse_size` reads back exactly."""
    unit = max((unit for unit in range(5) if size_bytes % 1024**unit == 0), default=0) if size_bytes else 0
    return f"{size_bytes // 1024**unit}{('', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def kind(hint: Any, field: str) -> str:
    """Say in words what an option of this annotation takes; units are told from the end of the field's name."""
    hint = without_none(hint)[0]
    if field.endswith("_bytes"):
        return "a size"
    if hint is float and field.endswith("_s"):
        return "a time"
    if hint is int and field.endswith(_OCTAL):
        return "an octal mode"
    if get_origin(hint) is tuple:
        return "words, separated by commas"
    if get_origin(hint) is Literal:
        return _or(str(choice) for choice in get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _or(str(member.value) for member in hint)
    return _WORDS.get(hint, "text")
