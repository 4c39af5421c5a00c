"""Stand-ins that speak as the well-known identity providers do.

Each answers under the provider's real host names, by its documented paths, with its documented
members, error forms and strictness. A dialect refuses what its provider refuses, so that a client
that is wrong about it fails here. `provider_dialect` serves them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote_plus, urlencode, urlsplit

import jwt

from gatehouse.common.clock import SystemClock
from tests.support.identity import CLIENT_ID, Asked, Reply, key_pair
from tests.support.provider_dialect import Dialect, Grant, is_redeemed_rightly, moved

TENANT: Final = "9188040d-6c67-4c5b-b112-36a304b66dad"


class Keycloak(Dialect):
    """Reached through `oidc`: a realm is an issuer."""

    url = issuer_url = "https://sso.example.com/realms/acme"
    _base = f"{issuer_url}/protocol/openid-connect"
    endpoints = MappingProxyType(
        {
            "authorization_endpoint": f"{_base}/auth",
            "token_endpoint": f"{_base}/token",
            "userinfo_endpoint": f"{_base}/userinfo",
            "jwks_uri": f"{_base}/certs",
            "revocation_endpoint": f"{_base}/revoke",
            "end_session_endpoint": f"{_base}/logout",
        }
    )
    rotates = True
    extra_metadata = MappingProxyType(
        {
            "code_challenge_methods_supported": ["plain", "S256"],
            "backchannel_logout_supported": True,
            "backchannel_logout_session_supported": True,
        }
    )

    def person(self) -> dict[str, Any]:
        return {
            **super().person(),
            "jti": "a-jti-of-theirs",
            "typ": "ID",
            "azp": self.client_id,
            "sid": "sid-1",
            "realm_access": {"roles": ["admin"]},
        }

    def userinfo(self) -> dict[str, Any]:
        return {**Dialect.person(self), "groups": ["/staff"]}

    def logout_token(self, *, typ: str = "logout+jwt", **changes: Any) -> str:
        now = int(SystemClock().now_s())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 120,
            "jti": f"logout-{next(self._number)}",
            "sub": "user-1",
            "sid": "sid-1",
            "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
            **changes,
        }
        kept = {name: value for name, value in claims.items() if value is not None}
        headers = {"kid": "rsa-1", "typ": typ}
        return jwt.encode(kept, self.private, algorithm="RS256", headers=headers)


class Google(Dialect):
    """A refresh token only with access_type=offline and consent; `hd` names the organisation."""

    type = "google"
    issuer_url = "https://accounts.google.com"
    endpoints = MappingProxyType(
        {
            "authorization_endpoint": "https://accounts.google.com/o/oauth2/v2/auth",
            "token_endpoint": "https://oauth2.googleapis.com/token",
            "userinfo_endpoint": "https://openidconnect.googleapis.com/v1/userinfo",
            "revocation_endpoint": "https://oauth2.googleapis.com/revoke",
            "jwks_uri": "https://www.googleapis.com/oauth2/v3/certs",
        }
    )
    auth_methods = ("client_secret_post", "client_secret_basic")
    scopes = frozenset({"openid", "profile", "email"})  # offline_access is an error
    extra_metadata = MappingProxyType({"code_challenge_methods_supported": ["plain", "S256"]})

    def grants_refresh(self, query: Mapping[str, str]) -> bool:
        return query.get("access_type") == "offline" and "consent" in query.get("prompt", "")

    def person(self) -> dict[str, Any]:
        return {
            "azp": CLIENT_ID,
            "sub": "110169484474386276334",
            "hd": "example.com",
            "email": "ada@example.com",
            "email_verified": True,
            "name": "Ada Example",
        }


class Azure(Dialect):
    """Many tenants behind one address; people are named by `oid`; groups may be too many to say."""

    type = "azure"
    issuer_url = "https://login.microsoftonline.com/{tenantid}/v2.0"
    _base = "https://login.microsoftonline.com/common"
    endpoints = MappingProxyType(
        {
            "authorization_endpoint": f"{_base}/oauth2/v2.0/authorize",
            "token_endpoint": f"{_base}/oauth2/v2.0/token",
            "jwks_uri": f"{_base}/discovery/v2.0/keys",
            "userinfo_endpoint": "https://graph.microsoft.com/oidc/userinfo",
            "end_session_endpoint": f"{_base}/oauth2/v2.0/logout",
        }
    )
    auth_methods = ("client_secret_post", "private_key_jwt", "client_secret_basic")

    def __init__(self) -> None:
        super().__init__()
        # its keys name no algorithm, and an issuer each
        key = {name: value for name, value in self.published[0].items() if name != "alg"}
        self.published = [{**key, "use": "sig", "issuer": self.issuer_url}]
        self.token_issuer = self.issuer_url.replace("{tenantid}", TENANT)

    def discovery_url(self) -> str:
        return f"{self._base}/v2.0"

    def person(self) -> dict[str, Any]:
        return {
            "iss": self.token_issuer,
            "ver": "2.0",
            "tid": TENANT,
            "oid": "00000000-0000-0000-66f3-3332eca7ea81",
            "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
            "name": "Ada Example",
            "preferred_username": "ada@example.com",
            "email": "ada@example.com",
        }

    def userinfo(self) -> dict[str, Any]:
        return {"sub": self.person()["sub"], "name": "Ada Example", "email": "ada@example.com"}

    def error(self, code: str, status: int = 0) -> Reply:
        body = {
            "error": code,
            "error_description": "AADSTS70008: The provided grant has expired.",
            "error_codes": [70008],
            "timestamp": "2026-01-09 02:02:12Z",
            "trace_id": "255d1aef-8c98-452f-ac51-23d051240864",
            "correlation_id": "fb3d2015-bc17-4bb9-bb85-30c5cf1aaaa7",
        }
        return Reply.of(body, status or 400)

    def access_jwt(self, **changes: Any) -> str:
        """An access token for an API of one's own; its type is that of an ID token."""
        now = int(SystemClock().now_s())
        claims = {
            "aud": "api://gatehouse",
            "iss": f"https://sts.windows.net/{TENANT}/",
            "iat": now,
            "nbf": now,
            "exp": now + 300,
            "tid": TENANT,
            "sub": "AAAA",
            "oid": self.person()["oid"],
            "appid": CLIENT_ID,
            "scp": "api.read",
            "ver": "1.0",
            **changes,
        }
        kept = {name: value for name, value in claims.items() if value is not None}
        headers = {"kid": "rsa-1", "typ": "JWT"}
        return jwt.encode(kept, self.private, algorithm="RS256", headers=headers)


class Okta(Dialect):
    """Thin ID tokens: most about a person comes from userinfo."""

    type = "okta"
    url = issuer_url = "https://acme.okta.com"
    endpoints = MappingProxyType(
        {
            "authorization_endpoint": f"{issuer_url}/oauth2/v1/authorize",
            "token_endpoint": f"{issuer_url}/oauth2/v1/token",
            "userinfo_endpoint": f"{issuer_url}/oauth2/v1/userinfo",
            "jwks_uri": f"{issuer_url}/oauth2/v1/keys",
            "revocation_endpoint": f"{issuer_url}/oauth2/v1/revoke",
            "end_session_endpoint": f"{issuer_url}/oauth2/v1/logout",
        }
    )
    extra_metadata = MappingProxyType({"code_challenge_methods_supported": ["S256"]})

    def person(self) -> dict[str, Any]:
        return {"sub": "00uid4BxXw6I6TV4m0g3", "ver": 1, "jti": "ID.4eAWJOCMB3SX8XewDfVR"}

    def userinfo(self) -> dict[str, Any]:
        return {
            "sub": "00uid4BxXw6I6TV4m0g3",
            "name": "Ada Example",
            "email": "ada@example.com",
            "groups": ["Everyone", "Staff"],
        }


class Auth0(Dialect):
    """Its issuer ends in a slash; bad grants are 403; groups come under a name of one's own."""

    type = "auth0"
    url = "https://acme.eu.auth0.com"
    issuer_url = f"{url}/"
    refusal_status = 403
    endpoints = MappingProxyType(
        {
            "authorization_endpoint": f"{issuer_url}authorize",
            "token_endpoint": f"{issuer_url}oauth/token",
            "userinfo_endpoint": f"{issuer_url}userinfo",
            "jwks_uri": f"{issuer_url}.well-known/jwks.json",
            "revocation_endpoint": f"{issuer_url}oauth/revoke",
        }
    )
    extra_metadata = MappingProxyType({"code_challenge_methods_supported": ["S256", "plain"]})

    def person(self) -> dict[str, Any]:
        return {
            "sub": "auth0|5f7c8ec7c33c6c004bbafe82",
            "name": "Ada Example",
            "email": "ada@example.com",
            "https://acme.example.com/groups": ["staff"],
        }


class Cognito(Dialect):
    """People sign in at another host than the issuer's, which discovery does not tell all of."""

    type = "cognito"
    url = issuer_url = "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEf"
    _base = "https://acme.auth.eu-west-1.amazoncognito.com"
    endpoints = MappingProxyType(
        {
            "authorization_endpoint": f"{_base}/oauth2/authorize",
            "token_endpoint": f"{_base}/oauth2/token",
            "userinfo_endpoint": f"{_base}/oauth2/userInfo",
            "jwks_uri": f"{issuer_url}/.well-known/jwks.json",
            "revocation_endpoint": f"{_base}/oauth2/revoke",
        }
    )
    unlisted = frozenset({"revocation_endpoint"})
    scopes = frozenset({"openid", "email", "phone", "profile"})
    offline_scope = False
    revocable = frozenset({"refresh_token"})

    def person(self) -> dict[str, Any]:
        return {
            "sub": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
            "cognito:groups": ["staff"],
            "cognito:username": "ada",
            "token_use": "id",
            "origin_jti": "o",
            "event_id": "e",
            "name": "Ada Example",
            "email": "ada@example.com",
            "email_verified": True,
        }

    def userinfo(self) -> dict[str, Any]:
        return {
            "sub": self.person()["sub"],
            "name": "Ada Example",
            "email": "ada@example.com",
            "email_verified": "true",  # a text here, a boolean in the ID token
        }


class Gitlab(Dialect):
    """Refresh tokens come unasked, and each works once."""

    type = "gitlab"
    issuer_url = "https://gitlab.com"
    endpoints = MappingProxyType(
        {
            "authorization_endpoint": f"{issuer_url}/oauth/authorize",
            "token_endpoint": f"{issuer_url}/oauth/token",
            "userinfo_endpoint": f"{issuer_url}/oauth/userinfo",
            "jwks_uri": f"{issuer_url}/oauth/discovery/keys",
            "revocation_endpoint": f"{issuer_url}/oauth/revoke",
        }
    )
    scopes = frozenset({"openid", "profile", "email"})
    offline_scope = False
    rotates = True
    extra_metadata = MappingProxyType({"code_challenge_methods_supported": ["plain", "S256"]})

    def person(self) -> dict[str, Any]:
        return {"sub": "4242", "name": "Ada Example", "email": "ada@example.com"}

    def userinfo(self) -> dict[str, Any]:
        return {**self.person(), "nickname": "ada", "groups": ["acme", "acme/ops"]}


class Onelogin(Dialect):
    """The shared address; groups are a scope of their own."""

    type = "onelogin"
    issuer_url = "https://openid-connect.onelogin.com/oidc"
    endpoints = MappingProxyType(
        {
            "authorization_endpoint": f"{issuer_url}/auth",
            "token_endpoint": f"{issuer_url}/token",
            "userinfo_endpoint": f"{issuer_url}/me",
            "jwks_uri": f"{issuer_url}/certs",
            "revocation_endpoint": f"{issuer_url}/token/revocation",
            "end_session_endpoint": f"{issuer_url}/logout",
        }
    )
    scopes = frozenset({"openid", "profile", "email", "groups", "offline_access"})

    def userinfo(self) -> dict[str, Any]:
        return {**self.person(), "groups": ["Staff"]}


class Onelogin2(Onelogin):
    """A subdomain of one's own, where offline_access is unknown."""

    url = issuer_url = "https://acme.onelogin.com/oidc/2"
    endpoints = MappingProxyType(
        {
            name: url.replace(Onelogin.issuer_url, "https://acme.onelogin.com/oidc/2")
            for name, url in Onelogin.endpoints.items()
        }
    )
    scopes = frozenset({"openid", "profile", "email", "groups"})
    offline_scope = False


class Ping(Dialect):
    """The address is called `mail`."""

    type = "ping"
    url = issuer_url = "https://auth.pingone.eu/11111111-2222-3333-4444-555555555555/as"
    endpoints = MappingProxyType(
        {
            "authorization_endpoint": f"{issuer_url}/authorize",
            "token_endpoint": f"{issuer_url}/token",
            "userinfo_endpoint": f"{issuer_url}/userinfo",
            "jwks_uri": f"{issuer_url}/jwks",
            "revocation_endpoint": f"{issuer_url}/revoke",
            "end_session_endpoint": f"{issuer_url}/signoff",
        }
    )
    auth_methods = ("client_secret_basic",)

    def person(self) -> dict[str, Any]:
        return {"sub": "p-1"}

    def userinfo(self) -> dict[str, Any]:
        return {"sub": "p-1", "name": "Ada Example", "mail": "ada@example.com"}


class Apple(Dialect):
    """No userinfo; the callback is a form; the secret is a JWT; the name comes once."""

    type = "apple"
    issuer_url = "https://appleid.apple.com"
    endpoints = MappingProxyType(
        {
            "authorization_endpoint": f"{issuer_url}/auth/authorize",
            "token_endpoint": f"{issuer_url}/auth/token",
            "jwks_uri": f"{issuer_url}/auth/keys",
            "revocation_endpoint": f"{issuer_url}/auth/revoke",
        }
    )
    auth_methods = ("client_secret_post",)
    scopes = frozenset({"openid", "email", "name"})
    offline_scope = False
    extra_metadata = MappingProxyType(
        {"response_modes_supported": ["query", "fragment", "form_post"]}
    )

    def __init__(self) -> None:
        super().__init__()
        self._team_key, _ = key_pair("ES256")
        self.client_secret = self.make_secret()
        self.seen = False

    def make_secret(self, *, algorithm: str = "ES256", **changes: Any) -> str:
        """What an operator makes with the key of their team."""
        now = int(SystemClock().now_s())
        claims = {
            "iss": "TEAM123456",
            "iat": now,
            "exp": now + 180 * 86400,
            "aud": self.issuer_url,
            "sub": CLIENT_ID,
            **changes,
        }
        return jwt.encode(
            claims, self._team_key, algorithm=algorithm, headers={"kid": "KEY1234567"}
        )

    def is_secret(self, given: str) -> bool:
        try:
            claims = jwt.decode(
                given,
                self._team_key.public_key(),
                algorithms=["ES256"],
                audience=self.issuer_url,
                issuer="TEAM123456",
            )
        except jwt.PyJWTError:
            return False
        return bool(claims["sub"] == CLIENT_ID and claims["exp"] - claims["iat"] <= 15777000)

    def check_request(self, query: Mapping[str, str]) -> None:
        assert query["response_mode"] == "form_post"  # with a scope, it insists

    def authorize(self, url: str) -> dict[str, str]:
        assert "+" not in url.partition("?")[2]  # taken literally
        form = super().authorize(url)
        if not self.seen:
            name = {"firstName": "Ada", "lastName": "Example"}
            form["user"] = json.dumps({"name": name, "email": "ada@example.com"})
        self.seen = True
        return form

    def person(self) -> dict[str, Any]:
        return {
            "sub": "001234.0123456789abcdef0123456789abcdef.1234",
            "email": "ada@example.com",
            "email_verified": "true",
            "is_private_email": "false",
            "nonce_supported": True,
        }

    def error(self, code: str, status: int = 0) -> Reply:
        return Reply.of({"error": code}, 400)


class Github(Dialect):
    """OAuth 2.0 and a REST API: no discovery, no ID token, errors with status 200."""

    type = "github"
    issuer_url = "https://github.com"
    api: str = "https://api.github.com"
    scopes = frozenset({"user:email", "read:org"})
    expiring: bool = False  # a GitHub App may have tokens that expire

    def __init__(self) -> None:
        super().__init__()
        self.endpoints = {"authorization_endpoint": f"{self.issuer}/login/oauth/authorize"}
        self.emails: list[dict[str, Any]] = [
            {"email": "old@example.com", "primary": False, "verified": True, "visibility": None},
            {"email": "ada@example.com", "primary": True, "verified": True, "visibility": "public"},
        ]

    def _answer(self, asked: Asked) -> Reply:
        url = f"{urlsplit(self.issuer).scheme}://{asked.headers['host']}{asked.path}"
        special = self.answers.get(url)
        if special is not None:
            return special if isinstance(special, Reply) else special(asked)
        if url == f"{self.issuer}/login/oauth/access_token":
            return self._redeem(asked)
        if not url.startswith(self.api + "/"):
            return Reply(404)
        if not asked.headers.get("user-agent"):
            return self._message(403, "Request forbidden by administrative rules.")
        if url == f"{self.api}/applications/{CLIENT_ID}/token":
            return self._application_token(asked)
        if asked.headers.get("authorization", "").removeprefix("Bearer ") not in self.valid:
            return self._message(401, "Bad credentials")
        if url == f"{self.api}/user":
            return Reply.of(self._user())
        return Reply.of(self.emails) if url == f"{self.api}/user/emails" else Reply(404)

    def _redeem(self, asked: Asked) -> Reply:
        form = asked.form
        answer: dict[str, Any]
        if form.get("client_id") != CLIENT_ID or form.get("client_secret") != self.client_secret:
            answer = {"error": "incorrect_client_credentials", "error_description": "They are."}
        elif form.get("grant_type") == "refresh_token":
            answer = self._refreshed(form.get("refresh_token", ""))
        else:
            grant = self._codes.pop(form.get("code", ""), None)
            if grant is None or not is_redeemed_rightly(grant.query, form):
                answer = {"error": "bad_verification_code", "error_description": "It is."}
            else:
                answer = self._github_tokens(grant)
        if asked.headers.get("accept") == "application/json":
            return Reply.of(answer)
        return Reply(200, urlencode(answer, quote_via=quote_plus).encode(), {})

    def _refreshed(self, spent: str) -> dict[str, Any]:
        grant = self.valid.pop(spent, None)
        if grant is None:
            return {"error": "bad_refresh_token", "error_description": "It is."}
        return self._github_tokens(grant)

    def _github_tokens(self, grant: Grant) -> dict[str, Any]:
        token = f"gho_{next(self._number)}"
        self.valid[token] = grant
        scope = ",".join(sorted(grant.query["scope"].split(" ")))
        answer: dict[str, Any] = {"access_token": token, "token_type": "bearer", "scope": scope}
        if self.expiring:
            refresh = f"ghr_{next(self._number)}"
            self.valid[refresh] = grant
            answer |= {"expires_in": 28800, "refresh_token": refresh}
        return answer

    def _user(self) -> dict[str, Any]:
        return {
            "login": "ada",
            "id": 583231,
            "node_id": "MDQ6VXNlcjU4MzIzMQ==",
            "avatar_url": "https://avatars.githubusercontent.com/u/583231",
            "html_url": "https://github.com/ada",
            "name": "Ada Example",
            "blog": "",
            "email": None,
            "site_admin": False,
            **self.userinfo_changes,
        }

    def _application_token(self, asked: Asked) -> Reply:
        basic = base64.b64encode(f"{CLIENT_ID}:{quote_plus(self.client_secret)}".encode()).decode()
        if asked.headers.get("authorization") != f"Basic {basic}":
            return self._message(401, "Requires authentication")
        token = json.loads(asked.body)["access_token"]
        if token not in self.valid or not token.startswith("gho_"):
            return self._message(404, "Not Found")
        if asked.method == "DELETE":
            del self.valid[token]
            self.revoked.append("access_token")
            return Reply(204)
        return Reply.of({"token": token, "app": {"client_id": CLIENT_ID}, "user": self._user()})

    @staticmethod
    def _message(status: int, text: str) -> Reply:
        body = {"message": text, "documentation_url": "https://docs.github.com/rest"}
        return Reply.of(body, status)


class GithubServer(Github):
    """A GitHub Enterprise Server: the API is under its own name."""

    url = issuer_url = "https://ghe.example.com"
    api = "https://ghe.example.com/api/v3"

    def move_to(self, origin: str) -> None:
        super().move_to(origin)
        self.api = moved(self.api, origin)


OIDC: Final[tuple[type[Dialect], ...]] = (
    Keycloak, Google, Azure, Okta, Auth0, Cognito, Gitlab, Onelogin, Onelogin2, Ping, Apple,
)  # fmt: skip
ALL: Final[tuple[type[Dialect], ...]] = (*OIDC, Github, GithubServer)
