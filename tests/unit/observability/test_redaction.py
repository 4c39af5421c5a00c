"""Names and shapes of secrets, and what must stay readable."""

from __future__ import annotations

import pytest

from gatehouse.common.observability.redaction import (
    REDACTED,
    TEXT_LIMIT,
    is_secret_name,
    redact,
    redact_text,
)

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "name",
    [
        "authorization", "Authorization", "proxy-authorization", "cookie", "Set-Cookie", "cookies",
        "password", "client_secret", "shared_secret", "cookie-secret", "secrets",
        "idp_client_secret",
        "token", "access_token", "refresh_token", "id_token", "csrf_token", "oauth_token", "tokens",
        "jwt", "gatehouse-jwt", "x-pomerium-jwt-assertion", "x-pomerium-authorization", "assertion",
        "x-pomerium-jwt-assertion-for", "signing_key", "private-key", "code_verifier", "api_key",
        "x-api-key", "databroker_storage_connection_string", "credentials", "bearer",
    ],
)  # fmt: skip
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "service", "session-id", "session_id", "user", "email", "request-id", "nonce", "key",
        "path",
        "cookie_name", "token_count", "authority", "code", "reason", "route-id", "secret_name",
        "dropped_tokens_count", "expires_at", "passwords_seen",
    ],
)  # fmt: skip
def test_other_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "text",
    [
        JWT,
        f"token {JWT} was refused",
        f"Authorization: Bearer {JWT}",
        "Authorization: Bearer abcdefghijkl",
        "Authorization: Pomerium abcdefghijkl",
        "Authorization: Bearer Pomerium-abcdefghijkl",
        f"Bearer Pomerium-{JWT}",
        f"Pomerium {JWT}",
        "bearer abcdefghijkl1",
        "x-pomerium: bearer " + "abcdefghijkl" * 2,
        "basic YWRtaW46aHVudGVyMg==",
        "GET /cb?code=abcdefghijkl&state=zzzz",
        "https://idp/token?client_secret=abcdefghijkl",
        "grant_type=refresh_token&refresh_token=abcdefghijkl",
        "https://a/.pomerium/callback/?pomerium_session_encrypted=abcdefghijkl&x=1",
        "?pomerium_signature=abcdefghijkl",
        "postgres://gate:abcdefghijkl@db:5432/x",
        "host=db user=gate password=abcdefghijkl dbname=x",
        "cookie: _pomerium=abcdefghijkl; other=1",
        "-----BEGIN EC PRIVATE KEY-----\nabcdefghijkl\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nabcdefghijkl",
    ],
)
def test_secrets_in_text(text: str) -> None:
    cleaned = redact_text(text)
    assert REDACTED in cleaned
    for secret in ("abcdefghijkl", "YWRtaW46aHVudGVyMg", JWT, "zzzz"):
        assert secret not in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "status code=UNAVAILABLE",
        "peer answered UNAVAILABLE: connection refused",
        "https://app.example.com/path?x=1&y=2",
        "basic authentication failed",
        "health of pomerium-databroker is watched",
        "bearer tokens are not accepted here",
        "routes[2].from: http://x is not https",
        "postgres://db:5432/x",
        "user@example.com",
        "0123456789abcdef0123456789abcdef",
    ],
)
def test_plain_text_stays(text: str) -> None:
    assert redact_text(text) == text


def test_names_matter_at_every_depth() -> None:
    value = {"a": [{"headers": {"Cookie": "x=1", "accept": "*/*"}}]}
    assert redact(value) == {"a": [{"headers": {"Cookie": REDACTED, "accept": "*/*"}}]}


def test_empty_secrets_are_shown_as_empty() -> None:
    assert redact({"token": "", "password": None}) == {"token": "", "password": None}


def test_bounded() -> None:
    assert len(redact_text("x" * 1_000_000)) == TEXT_LIMIT + 1
    nested: dict[str, object] = {}
    nested["self"] = nested
    assert "nested too deep" in str(redact(nested))


@pytest.mark.parametrize(
    "text",
    [
        "eyJ" * 5000,
        "eyJ-" * 4000,
        "bearer " * 2000,
        "cookie:" * 2000,
        "a://b:" * 2000,
        "token=" * 2000,
        "Bearer " + "a" * 15_000,
        "://" * 5000,
        "a" * 16_000,
    ],
)
@pytest.mark.timeout(5)
def test_hostile_text_takes_no_time(text: str) -> None:
    for _ in range(20):
        redact_text(text)
