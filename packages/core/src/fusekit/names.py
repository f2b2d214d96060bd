"""Names from a remote side that are no legal file names, mapped to ones that are, and back.

Used by backends (as ``api.names``) whose service has no rule of its own. The escape is ``%XX`` of the UTF-8 bytes
for ``/``, NUL, the whole of ``.`` and ``..``, and for a ``%`` that would otherwise read as an escape; so an ordinary
name stays as it is, and every name comes back exactly.
"""

from __future__ import annotations

import re
from typing import Final

NAME_BYTES_MAX: Final = 255

_ESCAPE = re.compile(r"%(2F|00|25|2E)")
_SPECIAL = re.compile(r"[/\0]|%(?=2F|00|25|2E)")


def to_local(remote: str) -> str:
    """Return the file name that stands for ``remote``; ``to_remote`` undoes it."""
    if remote in {".", ".."}:
        return "%2E" * len(remote)
    return _SPECIAL.sub(lambda found: f"%{ord(found[0]):02X}", remote)


def to_remote(local: str) -> str:
    """Return the remote name that ``to_local`` made ``local`` from."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), local)


def problem(name: str, *, bytes_max: int = NAME_BYTES_MAX, forbidden: str = "") -> str | None:
    """Say why ``name`` cannot be a directory entry, or None where it can; ``forbidden`` characters are a place's own."""
    if name in {"", ".", ".."}:
        return "is empty, . or .."
    if "/" in name or "\0" in name:
        return "contains a slash or a zero byte"
    if forbidden and (found := next((letter for letter in name if letter in forbidden), None)) is not None:
        return f"contains U+{ord(found):04X}, which no name can have here"
    try:
        too_long = len(name) > bytes_max or len(encode(name)) > bytes_max
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no bytes stand for
        return "is no Unicode"
    return f"is longer than {bytes_max} bytes" if too_long else None


def encode(name: str) -> bytes:
    """Return the bytes of ``name`` for the kernel; undecodable bytes came as lone surrogates and go back as they were."""
    return name.encode("utf-8", "surrogateescape")


def decode(name: bytes) -> str:
    """Return ``name`` as the engine holds it: UTF-8, undecodable bytes as lone surrogates."""
    return name.decode("utf-8", "surrogateescape")
