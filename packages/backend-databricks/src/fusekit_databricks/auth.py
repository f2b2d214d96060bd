"""Which workspace, and who signs in there: from options, environment and the vendor's configuration file.

Part of the backend, shared with other Databricks backends. Personal access tokens only so far. The order is the one
of the vendor's own tools: what is given directly (option or variable) comes first; a profile fills in what is
missing; the default profile counts only where nothing at all was given.
"""

from __future__ import annotations

import configparser
import ipaddress
import logging
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs
import trio

from fusekit.api import ConfigError, Denied
from fusekit_databricks.options import Options

logger = logging.getLogger(__name__)

# The section in which the vendor's tools keep their own settings; it is no profile.
_SETTINGS: Final = "__settings__"
_DEFAULT: Final = "DEFAULT"
_TOKEN: Final = re.compile(r"[!-~]+")
_GET_TOKEN: Final = "make one in the workspace under Settings, Developer, Access tokens"
_NOTHING_GIVEN: Final = (
    "no Databricks workspace is named: set DATABRICKS_HOST and DATABRICKS_TOKEN, "
    "or name a profile of {file} with -o profile=NAME"
)
# What a profile says when it signs in by other means than a token.
_OTHER_SIGN_INS: Final = (
    "auth_type",
    "client_id",
    "azure_client_id",
    "azure_tenant_id",
    "username",
    "google_credentials",
)


@attrs.frozen
class Credentials:
    """A workspace and a token for it; ``origin`` says in words where the token came from."""

    host: str
    token: str = attrs.field(repr=False)
    origin: str


class TokenAuth:
    """Signs with a token, and after a refusal with the one that has taken its place in the file it came from."""

    def __init__(self, credentials: Credentials, again: Callable[[], Credentials | None]) -> None:
        self._credentials = credentials
        self._again = again

    async def headers(self, renew: bool) -> Mapping[str, str]:
        """Return the header that signs a request.

        Raises:
            Denied: the service refused the token, and there is no other.
        """
        if renew:
            fresh = await trio.to_thread.run_sync(self._again)
            if fresh is None or fresh.token == self._credentials.token or fresh.host != self._credentials.host:
                raise Denied(
                    f"{self._credentials.host} refuses the token of {self._credentials.origin}: it is wrong, expired or "
                    f"for another workspace; {_GET_TOKEN}",
                    status=401,
                )
            self._credentials = fresh
        return {"Authorization": f"Bearer {self._credentials.token}"}


def sign_in(options: Options) -> tuple[str, TokenAuth]:
    """Return the address of the workspace and what signs requests to it. Reads files, but asks nobody.

    Raises:
        ConfigError: something is missing or contradicts itself; the message says what to do.
    """
    credentials = find_credentials(options)

    def again() -> Credentials | None:
        try:
            return find_credentials(options)
        except ConfigError:
            return None

    return credentials.host, TokenAuth(credentials, again)


def find_credentials(options: Options) -> Credentials:
    """Return the workspace and token that ``options`` lead to.

    Raises:
        ConfigError: something is missing or contradicts itself.
    """
    file = options.config_file.expanduser()
    name, profile = _profile(options, file)
    where = f"profile {name} of {file}"
    host = workspace_url(options.host, "DATABRICKS_HOST") if options.host else ""
    profile_host = workspace_url(profile["host"], where) if profile.get("host") else ""
    if not host and not profile_host:
        if options.token:
            raise ConfigError("no Databricks workspace is named: set DATABRICKS_HOST to its address, https://…")
        raise ConfigError(f"{where} names no host" if profile else _NOTHING_GIVEN.format(file=file))
    if options.token:
        token, origin = options.token, "DATABRICKS_TOKEN or token_file"
    elif profile.get("token"):
        token, origin = profile["token"], where
        if host and profile_host and host != profile_host:
            # A token must never reach another workspace than the one it was made for.
            raise ConfigError(f"{where} is for {profile_host}, but the host given is {host}; leave one of them out")
        _warn_if_open(file)
    else:
        raise _no_token(host or profile_host, where, profile)
    if not _TOKEN.fullmatch(token.strip()):
        raise ConfigError(f"the token of {origin} has characters that no token has")
    return Credentials(host or profile_host, token.strip(), origin)


def workspace_url(text: str, where: str) -> str:
    """Return the address of a workspace as ``scheme://host[:port]``, from all that people paste.

    The scheme may be missing, and whatever follows the host (``/?o=123`` of a browser) is left away.

    Raises:
        ConfigError: there is no host in it.
    """
    text = text.strip()
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme.lower() not in {"http", "https"} or not host or re.search(r"[\s/\\]", host):
        raise ConfigError(f"{where}: {text[:80]!r} is no address of a workspace; write https://HOST")
    if parts.username is not None:
        raise ConfigError(f"{where}: the address of a workspace has no user name or password in it")
    scheme = parts.scheme.lower()
    if scheme == "http" and not _loopback(host):
        logger.warning("the token is sent to %s without encryption; write https:// if it can do that", host)
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" if port in {None, 443 if scheme == "https" else 80} else f"{scheme}://{shown}:{port}"


def _profile(options: Options, file: Path) -> tuple[str, Mapping[str, str]]:
    """Return name and values of the profile that counts; no values where none does."""
    if not options.profile and (options.host or options.token):
        return _DEFAULT, {}
    # Values may hold a %, and no profile inherits from DEFAULT, which here is a profile like any other.
    parser = configparser.ConfigParser(interpolation=None, default_section="\0none")
    try:
        parser.read_string(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        if options.profile:
            raise ConfigError(
                f"there is no {file}, so no profile {options.profile}; try: databricks configure"
            ) from None
        return _DEFAULT, {}
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        # The parser's message quotes the line, which may be the one with the token.
        raise ConfigError(f"{file} is no configuration file: {type(error).__name__}") from None
    name = options.profile
    if not name and parser.has_section(_SETTINGS):
        name = parser[_SETTINGS].get("default_profile", "")
    name = name or _DEFAULT
    if parser.has_section(name) and name != _SETTINGS:
        return name, dict(parser[name])
    if options.profile:
        known = ", ".join(section for section in parser.sections() if section != _SETTINGS) or "none"
        raise ConfigError(f"{file} has no profile {name} (it has: {known})")
    return name, {}


def _no_token(host: str, where: str, profile: Mapping[str, str]) -> ConfigError:
    other = next((key for key in _OTHER_SIGN_INS if profile.get(key) and profile[key] != "pat"), None)
    if other is not None:
        return ConfigError(f"{where} signs in by {other}, which is not possible yet; give a token: {_GET_TOKEN}")
    source = f"add one to {where}" if profile else "name a profile with -o profile=NAME"
    return ConfigError(f"no token for {host}: set DATABRICKS_TOKEN, give -o token_file=FILE, or {source}; {_GET_TOKEN}")


def _warn_if_open(file: Path) -> None:
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError:
        return
    if mode & 0o077:
        logger.warning("%s holds a token and others can read it; try: chmod 600 %s", file, file)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
