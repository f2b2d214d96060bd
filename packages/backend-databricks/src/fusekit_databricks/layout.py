"""How objects of a workspace are entries of a directory: names, addresses, versions.

Part of the backend, without I/O. A folder or plain file is addressed by its path, so its ref starts with a slash.
Everything else (notebooks, dashboards, libraries, what is not known yet) is shown as a file that can only be read,
and its ref begins with how to export it, ``SOURCE:/Users/me/report``: two objects never share a ref.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from fusekit.api import Entry, Invalid

FOLDERS: Final = frozenset({"DIRECTORY", "REPO"})
NOTEBOOK: Final = "NOTEBOOK"
FILE: Final = "FILE"

SUFFIXES: Final[Mapping[str, str]] = {"PYTHON": ".py", "SQL": ".sql", "SCALA": ".scala", "R": ".R"}
_LANGUAGES: Final = {suffix.lower(): language for language, suffix in SUFFIXES.items()}
_JUPYTER_SUFFIX: Final = ".ipynb"
_READ_ONLY: Final = 0o444

# The service refuses them in every name. Source: Databricks documentation, "Workspace files".
CONTROL_CHARACTERS: Final = "".join(map(chr, (*range(0x20), 0x7F)))
_FORBIDDEN: Final = frozenset(CONTROL_CHARACTERS)
_REF: Final = re.compile(r"([A-Z]+):(/.*)", re.DOTALL)
_HEADER_LINE: Final = re.compile(rb"\A(?:\xef\xbb\xbf)?(?:#|--|//) Databricks notebook source")


@attrs.frozen
class Info:
    """What the service tells of one object. ``size`` is bytes and only plain files have one; times are ms since 1970."""

    path: str
    type: str
    id: str | None = None
    language: str | None = None
    modified_ms: int | None = None
    created_ms: int | None = None
    size: int | None = None

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Info | None:
        """Return the object that ``fields`` describe; None where they name none."""
        path, kind = fields.get("path"), fields.get("object_type")
        if not isinstance(path, str) or not path.startswith("/"):
            return None
        language = fields.get("language")
        number = _whole(fields.get("object_id"))
        return cls(
            path=canonical(path, strict=False),
            type=kind if isinstance(kind, str) else "UNKNOWN",
            id=None if number is None else str(number),
            language=language if isinstance(language, str) else None,
            modified_ms=_whole(fields.get("modified_at")),
            created_ms=_whole(fields.get("created_at")),
            size=_whole(fields.get("size")) if kind == FILE else None,
        )

    @property
    def version(self) -> str | None:
        """Return what names the content of a plain file, the same from every call; None where the service is silent.

        There is no ETag: the time in ms and the size are all that a listing and a stat both tell.
        """
        return None if self.modified_ms is None else f"{self.modified_ms}:{self.size}"


@attrs.frozen
class Address:
    """Where an object is, and in which ``form`` it is exported: SOURCE, JUPYTER or AUTO; empty for what needs none."""

    path: str
    form: str = ""

    @classmethod
    def of(cls, ref: str) -> Address:
        """Return the address that `ref` was made from."""
        found = _REF.fullmatch(ref)
        return cls(found[2], found[1]) if found else cls(ref)

    @property
    def ref(self) -> str:
        """Return the address as an entry keeps it."""
        return f"{self.form}:{self.path}" if self.form else self.path


def canonical(path: str, *, strict: bool = True) -> str:
    """Return the one form of a workspace path: absolute, without ``/Workspace`` and needless slashes.

    Raises:
        ValueError: ``strict``, and it has a name that no object can have.
    """
    names = [name for name in path.split("/") if name]
    if names[:1] == ["Workspace"]:
        names = names[1:]
    if strict and any(name in {".", ".."} or not _FORBIDDEN.isdisjoint(name) for name in names):
        raise ValueError(f"{path!r} is no path of a workspace; write for example /Users/me@example.com")
    return "/" + "/".join(names)


def parent_of(path: str) -> str:
    """Return the folder of ``path``."""
    return path.rpartition("/")[0] or "/"


def name_of(path: str) -> str:
    """Return the last name of ``path``."""
    return path.rpartition("/")[2]


def child(directory: Entry, name: str) -> str:
    """Return the path of the plain file or folder ``name`` in ``directory``.

    Raises:
        Invalid: no object can have such a name.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise Invalid(f"{name!a} is no UTF-8, which names in a workspace are") from None
    if name in {"", ".", ".."} or "/" in name:
        raise Invalid(f"{name!r} is no name for an object")
    return f"{directory.ref.rstrip('/')}/{name}"


def notebook_stem(path: str) -> tuple[str, str] | None:
    """Return the path of the notebook that may be shown at ``path``, and the suffix of that; None for other names."""
    stem, dot, suffix = path.rpartition(".")
    shown = f".{suffix}"
    if not dot or name_of(stem) == "" or (shown.lower() not in _LANGUAGES and shown != _JUPYTER_SUFFIX):
        return None
    return stem, shown


def may_become_notebook(path: str) -> bool:
    """Return whether the service looks into a file at ``path`` to see whether it is a notebook."""
    found = notebook_stem(path)
    return found is not None and found[1] != _JUPYTER_SUFFIX


def is_notebook_source(data: bytes | memoryview) -> bool:
    """Return whether source begins with the header that the service knows a notebook by."""
    return _HEADER_LINE.match(data[:64]) is not None


def suffix_of(info: Info) -> str:
    """Return what a notebook's name ends with where nothing else has that name."""
    return SUFFIXES.get(info.language or "", _JUPYTER_SUFFIX)


def modified_ms(version: str) -> int | None:
    """Return the time that is part of a version made here, None for any other."""
    return _whole(version.partition(":")[0])


def entry_of(info: Info, name: str | None = None) -> Entry:
    """Return the entry of one object, called ``name`` if that is given.

    The name of a notebook says how it is exported: with the suffix of its language as source, else as Jupyter.
    """
    if info.type in FOLDERS:
        return Entry.directory(name or name_of(info.path), info.path, id=info.id, mtime_ns=_ns(info.modified_ms))
    if info.type == FILE:
        return Entry.file(
            name or name_of(info.path),
            info.path,
            size=info.size,
            id=info.id,
            version=info.version,
            mtime_ns=_ns(info.modified_ms),
            ctime_ns=_ns(info.modified_ms),
        )
    form = "AUTO"
    if info.type == NOTEBOOK:
        name = name or f"{name_of(info.path)}{suffix_of(info)}"
        form = "JUPYTER" if name.endswith(_JUPYTER_SUFFIX) else "SOURCE"
    return Entry.file(
        name or name_of(info.path),
        Address(info.path, form).ref,
        id=info.id,
        # The form belongs to it: the same notebook as source and as Jupyter are different bytes.
        version=None if info.modified_ms is None else f"{info.modified_ms}:{form}",
        mtime_ns=_ns(info.modified_ms),
        ctime_ns=_ns(info.modified_ms),
        mode=_READ_ONLY,
    )


def entries_of(infos: Iterable[Info]) -> list[Entry]:
    """Return the entries of a whole folder, each object under a name of its own.

    A notebook whose name is taken (file ``a.py`` beside notebook ``a``) is shown as Jupyter, ``a.ipynb``, and where
    that is taken too as ``a (notebook).py``: nothing is hidden.
    """
    infos = list(infos)
    entries = [entry_of(info) for info in infos if info.type != NOTEBOOK]
    taken = {entry.name for entry in entries}
    for info in sorted((info for info in infos if info.type == NOTEBOOK), key=lambda info: info.path):
        name = next(name for name in _notebook_names(info, len(infos)) if name not in taken)
        taken.add(name)
        entries.append(entry_of(info, name))
    return entries


def _notebook_names(info: Info, others: int) -> Iterable[str]:
    stem, suffix = name_of(info.path), suffix_of(info)
    yield f"{stem}{suffix}"
    yield f"{stem}{_JUPYTER_SUFFIX}"
    yield f"{stem} (notebook){suffix}"
    for number in range(2, others + 2):
        yield f"{stem} (notebook {number}){suffix}"


def _ns(ms: int | None) -> int | None:
    return None if ms is None else ms * 1_000_000


def _whole(value: object) -> int | None:
    """Return a number as the service sends it, in JSON or as text; None for everything else."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,19}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
