"""Every error that fusekit raises on purpose; the base of all layers, importing none of them.

The tree::

    FusekitError
    ├── ConfigError            an option, a profile or the command line is wrong
    ├── PluginError            a plugin does not import, register or keep the contract
    ├── MountError             a mount cannot start, with what to do about it
    └── BackendError           what a hook may raise, and nothing else
        ├── NotFound           no such name or object
        ├── Exists             the name is taken
        ├── NotEmpty           a directory still has children
        ├── NotDirectory       a directory was needed
        ├── IsDirectory        a directory was given where a file was needed
        ├── Denied             the caller may not
        ├── ReadOnly           nobody may write here
        ├── Invalid            the service refuses the value
        ├── TooLarge           over a limit of the service
        ├── NoSpace            a quota or a disk is full
        ├── Busy               held by somebody else at the moment
        ├── Stale              it is no longer the version that was named
        ├── NotSupported       cannot be done in this place
        ├── Throttled          too many requests; see ``retry_after_s``
        ├── Unavailable        the service does not answer, or answers nonsense
        │   └── Unreachable    nobody we may trust answers at this address: it may be wrong
        ├── TimedOut           nothing moved before the deadline
        ├── Aborted            given up on request
        └── Corrupt            bytes that do not match their length, range or checksum

Numbers (errno) are given in one place only, `fusekit.fuse.errno`; retrying is decided by class in one
place only, `fusekit.transfer.retry`.
"""

from __future__ import annotations


class FusekitError(Exception):
    """Base of everything below; the message is one line that a user can act on."""


class ConfigError(FusekitError):
    """An option, a profile or an argument is wrong."""


class PluginError(FusekitError):
    """A plugin does not import, does not register, or breaks the contract."""


class MountError(FusekitError):
    """A mount cannot be started or ended."""


class BackendError(FusekitError):
    """What went wrong at the storage, in words, with the facts that the service gave.

    ``errno`` overrides the table of the adapter where a service needs a finer number (EDQUOT, ENOMSG).
    ``status`` and ``code`` are the service's own, ``request_id`` what its support would ask for, and
    ``retry_after_s`` how long it wants to be left alone. No field ever holds a secret.
    """

    def __init__(
        self,
        message: str = "",
        *,
        errno: int | None = None,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message or type(self).__name__)
        self.errno = errno
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class NotFound(BackendError):
    """No such name or object."""


class Exists(BackendError):
    """The name is taken."""


class NotEmpty(BackendError):
    """A directory still has children."""


class NotDirectory(BackendError):
    """A directory was needed."""


class IsDirectory(BackendError):
    """A directory was given where a file was needed."""


class Denied(BackendError):
    """The caller may not."""


class ReadOnly(BackendError):
    """Nobody may write here."""


class Invalid(BackendError):
    """The service refuses the value."""


class TooLarge(BackendError):
    """Over a limit of the service."""


class NoSpace(BackendError):
    """A quota or a disk is full."""


class Busy(BackendError):
    """Held by somebody else at the moment."""


class Stale(BackendError):
    """It is no longer the version, or the listing marker, that was named."""


class NotSupported(BackendError):
    """Cannot be done in this place, by anybody."""


class Throttled(BackendError):
    """Too many requests; ``retry_after_s`` says how long to wait, where the service did."""


class Unavailable(BackendError):
    """The service does not answer, or answers something that is not its protocol."""


class Unreachable(Unavailable):
    """Nobody answers at the address, no such name, or not whom it should be: a wrong address as well as a service down.

    In a mount that runs it is retried like any `Unavailable`; one that starts gives up at once.
    """


class TimedOut(BackendError):
    """Nothing moved before the deadline."""


class Aborted(BackendError):
    """Given up on request."""


class Corrupt(BackendError):
    """Bytes that do not match their length, range or checksum."""
