"""What commands say: data to stdout, everything for people to stderr, an error as one line.

Cli layer; nothing else in it prints or decides on an exit status.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn

from fusekit.errors import FusekitError

FAILED: Final = 1
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
BUG: Final = "internal error"

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class _Choices:
    """What holds for the whole run of the command."""

    debug = False


def open_streams() -> None:
    """Open the standard streams that the shell closed (``>&-``): a file opened later must not take the place of one."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - as long as the process


def set_debug(debug: bool) -> None:
    """Show tracebacks behind errors from now on; called for every command that has the option."""
    _Choices.debug = _Choices.debug or debug


def debugging() -> bool:
    """Return whether ``--debug`` was given."""
    return _Choices.debug


def say(text: str) -> None:
    """Print a line for people."""
    print(printable(text), file=sys.stderr, flush=True)


def say_trace(text: str) -> None:
    """Print a traceback: several lines."""
    for line in text.splitlines():
        say(line)


def tell(text: str) -> None:
    """Print a line of data. A name that is no UTF-8 comes out as the bytes that it is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(f"{text}\n".encode("utf-8", "surrogateescape"))


def name_text(name: str) -> str:
    """Return a name to print. A terminal gets no control characters: names come from elsewhere and are not trusted."""
    return printable(name) if sys.stdout.isatty() else name


def printable(text: str) -> str:
    """Return ``text`` as one line without control characters, for what is read by people whatever it is printed to."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def tell_json(value: Any) -> None:
    """Print ``value`` as JSON."""
    tell(json.dumps(value, indent=2, default=str))


def tell_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns under a header."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        tell("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def size_text(size_bytes: float) -> str:
    """Return a size for people, such as ``1.5 MiB``."""
    for unit in _UNITS:
        if size_bytes < 1024 or unit == _UNITS[-1]:
            return f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 100 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    raise AssertionError


def span_text(seconds: float) -> str:
    """Return a time span for people, such as ``2h 5min``."""
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{number}{unit}" for number, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (left, "s")) if number]
    return " ".join(parts[:2]) or "0s"


def not_sent(files: int) -> str:
    """Begin the sentence about files that are left; it ends with where."""
    return "1 file was not sent; it is kept" if files == 1 else f"{files} files were not sent; they are kept"


def tell_left(files: Iterable[Mapping[str, Any]]) -> None:
    """Complain of each of ``files``, rows of a journal, that it was not sent, why or how far it is, and where it is."""
    for one in files:
        kept = f"; its {size_text(one['size'])} are in {one['staging']}" if "staging" in one else ""
        complain(f"not sent: {one['path']} ({one.get('error') or one['state']}){kept}")


def reason(error: BaseException) -> str:
    """Return what went wrong in one line; of several errors at once the first that was raised on purpose."""
    chosen = cause(error)
    if isinstance(chosen, FusekitError):
        return " ".join(str(chosen).split()) or type(chosen).__name__
    if isinstance(chosen, KeyboardInterrupt):
        return "interrupted"
    if isinstance(chosen, OSError) and chosen.strerror:
        return f"{chosen.filename}: {chosen.strerror}" if chosen.filename else chosen.strerror
    hint = "" if debugging() else " (--debug shows where)"
    return f"{BUG}: {type(chosen).__name__}: {' '.join(str(chosen).split())}{hint}"


def cause(error: BaseException) -> BaseException:
    """Return the one error that tells most: the first that was raised on purpose, else the first."""
    leaves = list(_leaves(error))
    return next((leaf for leaf in leaves if isinstance(leaf, FusekitError)), leaves[0])


def trace(error: BaseException) -> str:
    """Return the traceback of ``error``."""
    return "".join(traceback.format_exception(error))


def complain(text: str) -> None:
    """Print an error."""
    say(f"fusekit: {text}")


def report(error: BaseException, about: str = "") -> int:
    """Print ``error`` as one line, with ``--debug`` after its traceback, and return the exit status.

    ``about`` is what it happened to; it goes in front where the message does not name it.
    """
    leaves = list(_leaves(error))
    if any(isinstance(leaf, BrokenPipeError) for leaf in leaves):
        # Who read our output has seen enough (`| head`). Flushing it at exit must not complain a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if debugging():
        say_trace(trace(error))
    why = reason(error)
    complain(why if about in why else f"{about}: {why}")
    return INTERRUPTED if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves) else FAILED


def give_up(status: int = FAILED) -> NoReturn:
    """End the command after its errors were printed."""
    sys.exit(status)


def _leaves(error: BaseException) -> Iterable[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
