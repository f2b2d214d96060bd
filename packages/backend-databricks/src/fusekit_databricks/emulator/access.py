"""Who may do what: users, their tokens, and levels by path.

Part of the emulator. The level on a path is the one granted on the nearest folder above; without a grant users have
their own home and ``/Shared``, and may look at the folders in which homes are. Admins may do everything.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

import attrs

LEVELS: Final = ("NONE", "CAN_READ", "CAN_RUN", "CAN_EDIT", "CAN_MANAGE")
_OPEN: Final = frozenset({"/", "/Users", "/Repos"})  # everybody may list these; what is in them is another matter


@attrs.define(eq=False)
class User:
    """One account. ``grants`` are levels by canonical path; ``tokens`` its valid access tokens.

    A service principal signs in with its ``name`` as client id and ``client_secret``.
    """

    name: str
    id: str
    admin: bool = False
    tokens: set[str] = attrs.field(factory=set, repr=False)
    client_secret: str | None = attrs.field(default=None, repr=False)
    grants: dict[str, str] = attrs.field(factory=dict)

    def level(self, path: str) -> str:
        """Return this user's level on ``path``."""
        return self.origin(path)[0]

    def origin(self, path: str) -> tuple[str, str]:
        """Return the level on ``path`` and the path that it was granted on."""
        if self.admin:
            return "CAN_MANAGE", "/"
        place = path
        while True:
            if place in self.grants:
                return self.grants[place], place
            if place in {f"/Users/{self.name}", f"/Repos/{self.name}", "/Shared"}:
                return "CAN_MANAGE", place
            if place == "/":
                break
            place = place.rpartition("/")[0] or "/"
        return ("CAN_READ", path) if path in _OPEN else ("NONE", "/")

    def may(self, level: str, path: str) -> bool:
        """Return whether this user has at least ``level`` on ``path``."""
        return LEVELS.index(self.level(path)) >= LEVELS.index(level)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON, secrets and all."""
        return {
            "id": self.id,
            "admin": self.admin,
            "tokens": sorted(self.tokens),
            "client_secret": self.client_secret,
            "grants": dict(self.grants),
        }


@attrs.define
class _Issued:
    user: User
    expires_s: float


class Accounts:
    """All users, and the OAuth tokens that were handed out."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self._issued: dict[str, _Issued] = {}
        self._last = 0

    def add(self, name: str, facts: Mapping[str, Any]) -> User:
        """Add or replace a user; ``facts`` are what `User.to_json` returns, all of it optional.

        Raises:
            ValueError: a level or a fact is unknown.
        """
        if unknown := facts.keys() - {"id", "admin", "token", "tokens", "client_secret", "grants"}:
            raise ValueError(f"a user has no {', '.join(sorted(unknown))}")
        grants = dict(facts.get("grants", {}))
        for level in grants.values():
            if level not in LEVELS:
                raise ValueError(f"{level!r} is none of {', '.join(LEVELS)}")
        self._last += 1
        tokens = {*facts.get("tokens", ()), *([facts["token"]] if "token" in facts else ())}
        user = User(
            name=name,
            id=str(facts.get("id", 7_000_000_000_000_000 + self._last)),
            admin=bool(facts.get("admin", False)),
            tokens=tokens,
            client_secret=facts.get("client_secret"),
            grants=grants,
        )
        self.users[name] = user
        return user

    def by_token(self, token: str, now_s: float) -> User | None:
        """Return whose valid token this is."""
        issued = self._issued.get(token)
        if issued is not None:
            return issued.user if now_s < issued.expires_s else None
        return next((user for user in self.users.values() if token in user.tokens), None)

    def sign_in(self, client_id: str, client_secret: str) -> User | None:
        """Return the service principal with that secret."""
        user = self.users.get(client_id)
        return user if user is not None and user.client_secret and user.client_secret == client_secret else None

    def issue(self, user: User, expires_s: float) -> str:
        """Return a new access token for ``user``."""
        token = f"oauth-{secrets.token_hex(16)}"
        self._issued[token] = _Issued(user, expires_s)
        return token

    def expire(self) -> None:
        """Make the OAuth tokens handed out so far invalid, and those that users had from the start."""
        for issued in self._issued.values():
            issued.expires_s = 0.0
        for user in self.users.values():
            user.tokens.clear()
