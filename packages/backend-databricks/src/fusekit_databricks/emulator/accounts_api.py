"""Signing in and finding out who one is: discovery, OAuth for machines, and the user's own record.

Part of the emulator.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from fusekit.testing.replies import Reply, json_reply
from fusekit.testing.routes import route
from fusekit.testing.server import Request
from fusekit_databricks.emulator import errors

if TYPE_CHECKING:
    from fusekit_databricks.emulator.service import DatabricksEmulator


WORKSPACE_ID: Final = 1_234_567_890_123_456


class AccountsApi:
    """Discovery, ``/oidc`` and SCIM."""

    def __init__(self, service: DatabricksEmulator) -> None:
        self._service = service

    @route("host-metadata", "GET", "/.well-known/databricks-config")
    def host_metadata(self, request: Request) -> Reply:
        """Say where to sign in; asked without credentials by the vendor's client when it is made."""
        if not self._service.setup.host_metadata:
            return self._service.failure(404, request, "unknown")
        facts = {"oidc_endpoint": f"{self._service.url}/oidc", "workspace_id": str(WORKSPACE_ID)}
        return json_reply({**facts, "cloud": self._service.setup.cloud})

    @route("oauth-discovery", "GET", "/oidc/.well-known/oauth-authorization-server")
    @route("oauth-discovery", "GET", "/oidc/.well-known/openid-configuration")
    def oauth_discovery(self, request: Request) -> Reply:
        """Name the OAuth endpoints."""
        base = f"{self._service.url}/oidc"
        return json_reply(
            {
                "issuer": base,
                "authorization_endpoint": f"{base}/v1/authorize",
                "token_endpoint": f"{base}/v1/token",
                "grant_types_supported": ["client_credentials"],
                "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            }
        )

    @route("oauth-token", "POST", "/oidc/v1/token")
    def oauth_token(self, request: Request) -> Reply:
        """Give a service principal an access token for its id and secret."""
        form = {name: values[-1] for name, values in parse_qs(request.body.read().decode("utf-8", "replace")).items()}
        if form.get("grant_type") != "client_credentials":
            return _oauth_error(400, "unsupported_grant_type", "only client_credentials is supported")
        client_id, client_secret = _basic(request.headers.get("authorization", "")) or (
            form.get("client_id", ""),
            form.get("client_secret", ""),
        )
        service = self._service
        with service.lock:
            user = service.accounts.sign_in(client_id, client_secret)
            if user is None:
                return _oauth_error(401, "invalid_client", "Client authentication failed")
            lifetime_s = service.setup.token_lifetime_s
            token = service.accounts.issue(user, service.clock.now() + lifetime_s)
        answer = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": int(lifetime_s),
            "scope": form.get("scope", "all-apis"),
        }
        return json_reply(answer, headers={"Cache-Control": "no-store"})

    @route("me", "GET", "/api/2.0/preview/scim/v2/Me")
    def me(self, request: Request) -> Reply:
        """Say who the token belongs to."""
        user = self._service.sign_in(request)
        record = {
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
            "id": user.id,
            "userName": user.name,
            "displayName": user.name.partition("@")[0],
            "active": True,
            "emails": [{"type": "work", "value": user.name, "primary": True}],
            "groups": [{"display": "admins", "value": "1"}] if user.admin else [],
        }
        return json_reply(record, headers={"X-Databricks-Org-Id": str(WORKSPACE_ID)})


def _basic(header: str) -> tuple[str, str] | None:
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise errors.refuse(401, "UNAUTHENTICATED", "The Authorization header is malformed.") from error
    return name, secret


def _oauth_error(status: int, code: str, message: str) -> Reply:
    return json_reply({"error": code, "error_description": message}, status)
