"""Says in words what went wrong between us and a host, and loads the certificates that decide whom we trust.

Transfer layer. The HTTP library wraps what happened in several exceptions; the one that tells a user what to do
(refused, unknown name, certificate) is somewhere below the first.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import certifi

from fusekit.errors import ConfigError

# OpenSSL's X509_V_ERR codes for which another --ca-file changes nothing.
_EXPIRED, _NOT_YET_VALID, _HOST_MISMATCH, _IP_MISMATCH = 10, 9, 62, 64


def describe(error: BaseException, authority: str, host: str, *, connected: bool) -> str:
    """Return one line on ``error``, which happened while talking to ``authority``."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate(cause, host)
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and connected:
            # A cut connection is SSLEOFError or a plain SSLError, depending on the version of Python.
            gone = isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError) or "EOF" in _reason(cause, "EOF")
            return f"the connection to {authority} was lost" + ("" if gone else f" (TLS: {cause.reason})")
        if isinstance(cause, ssl.SSLError):
            return f"TLS: no handshake with {authority} ({_reason(cause, 'unknown reason')}); is it an https address?"
        if isinstance(cause, socket.gaierror):
            return f"name {host} does not resolve"
    numbers = [cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno]
    reason = os.strerror(numbers[0]).lower() if numbers else ""
    if not connected:
        return f"cannot connect to {authority}" + (f": {reason}" if reason else "")
    return f"the connection to {authority} was lost" + (f": {reason}" if reason else "")


def unreachable(error: BaseException) -> bool:
    """Return whether ``error``, from connecting, may well mean that the address is wrong, so that waiting is no use."""
    wrong = (ConnectionRefusedError, socket.gaierror, ssl.SSLError)
    return any(isinstance(cause, wrong) for cause in _causes(error))


def no_common_protocol(error: BaseException) -> bool:
    """Return whether the server refused the handshake because it does not speak HTTP/1.1."""
    # Python has no word for this alert everywhere; then it is only in OpenSSL's text.
    texts = (f"{_reason(cause, '')} {cause}" for cause in _causes(error) if isinstance(cause, ssl.SSLError))
    return any("NO_APPLICATION_PROTOCOL" in text.upper().replace(" ", "_") for text in texts)


def tls_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """Return a context that verifies every host against the system's certificates and those in ``ca_file``.

    A machine without a certificate store (a bare container) gets the one that comes with Python's HTTP libraries.

    Raises:
        ConfigError: ``ca_file`` cannot be read or holds no certificate.
    """
    context = ssl.create_default_context()
    # Some versions of Python take an end without a farewell for one with it, and so anybody on the way could cut a body.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    if not _has_store():
        context.load_verify_locations(certifi.where())
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except ssl.SSLError as error:
            raise ConfigError(f"--ca-file {ca_file} holds no certificate in PEM form") from error
        except OSError as error:
            raise ConfigError(f"--ca-file {ca_file} cannot be read: {error.strerror}") from error
    return context


def _has_store() -> bool:
    paths = ssl.get_default_verify_paths()
    if paths.cafile is not None:
        return True
    try:
        return paths.capath is not None and any(os.scandir(paths.capath))
    except OSError:
        return False


def _reason(error: ssl.SSLError, unknown: str) -> str:
    """Return OpenSSL's word for what happened; an error that Python made has none, in spite of the stubs."""
    return getattr(error, "reason", None) or unknown


def _certificate(error: ssl.SSLCertVerificationError, host: str) -> str:
    if error.verify_code in {_HOST_MISMATCH, _IP_MISMATCH}:
        return f"TLS: the certificate that was shown is not for {host}"
    if error.verify_code == _EXPIRED:
        return f"TLS: the certificate of {host} has expired"
    if error.verify_code == _NOT_YET_VALID:
        return f"TLS: the certificate of {host} is not valid yet; is the clock right?"
    return f"TLS: the certificate of {host} is not trusted ({error.verify_message}); see --ca-file"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and everything behind it, each once, nearest first."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            waiting.extend(cause.exceptions)
        waiting.extend((cause.__cause__, cause.__context__))
