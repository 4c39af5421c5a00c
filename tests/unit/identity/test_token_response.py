from __future__ import annotations

import json
from typing import Any

import pytest

from gatehouse.common.identity.errors import (
    GRANT_REFUSED,
    MISCONFIGURED,
    RESPONSE,
    IdentityProviderError,
    IdentityRefusedError,
)
from gatehouse.common.identity.token_response import (
    add_form,
    failure,
    is_grant_refusal,
    parse_tokens,
)
from gatehouse.common.identity.transport import ProviderResponse

NOW = 1_700_000_000.0
ANSWER: dict[str, Any] = {"access_token": "a", "token_type": "Bearer"}


def response(status: int, body: object, retry_after_s: float | None = None) -> ProviderResponse:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ProviderResponse(status, "application/json", raw, retry_after_s)


def test_tokens() -> None:
    tokens = parse_tokens({**ANSWER, "expires_in": 60, "refresh_token": "r"}, now_s=NOW)
    assert (tokens.access_token, tokens.refresh_token) == ("a", "r")
    assert tokens.expires_at_s == NOW + 60
    assert "'a'" not in repr(tokens)
    assert "'r'" not in repr(tokens)


@pytest.mark.parametrize(
    ("expires_in", "expires_at_s"),
    [
        (None, None),
        (0, None),
        (-1, None),
        (True, None),
        ("x", None),
        ([], None),
        ("3600", NOW + 3600),
        (59.5, NOW + 59.5),
        (10**30, NOW + 316_224_000),
        ("9" * 50, NOW + 316_224_000),
    ],
)
def test_lifetime(expires_in: object, expires_at_s: float | None) -> None:
    assert (
        parse_tokens({**ANSWER, "expires_in": expires_in}, now_s=NOW).expires_at_s == expires_at_s
    )


def test_the_previous_refresh_token_stays_when_none_comes() -> None:
    for changes in ({}, {"refresh_token": ""}, {"refresh_token": None}):
        tokens = parse_tokens({**ANSWER, **changes}, now_s=NOW, previous_refresh_token="old")
        assert tokens.refresh_token == "old"
    rotated = parse_tokens(
        {**ANSWER, "refresh_token": "new"}, now_s=NOW, previous_refresh_token="old"
    )
    assert rotated.refresh_token == "new"


@pytest.mark.parametrize(
    "changes",
    [
        {"access_token": None},
        {"access_token": ""},
        {"access_token": 1},
        {"access_token": "a b"},
        {"access_token": "a\r\nX: y"},
        {"access_token": "ü"},
        {"access_token": "a" * 70_000},
        {"refresh_token": ["r"]},
        {"refresh_token": "r\n"},
        {"token_type": "DPoP"},
        {"token_type": None},
        {"token_type": 7},
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(IdentityProviderError) as caught:
        parse_tokens({**ANSWER, **changes}, now_s=NOW)
    assert caught.value.reason == RESPONSE


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, {"error": "invalid_grant"}, GRANT_REFUSED),
        (401, {"error": "invalid_token"}, GRANT_REFUSED),
        (403, {"error": "unauthorized_client"}, GRANT_REFUSED),
        (200, {"error": "invalid_grant"}, GRANT_REFUSED),
        (400, {"error": "invalid_client"}, MISCONFIGURED),
        (401, {"error": "invalid_client"}, MISCONFIGURED),
        (400, {"error": "invalid_scope"}, MISCONFIGURED),
        (400, {"error": "invalid_request"}, MISCONFIGURED),
        (400, {"error": "temporarily_unavailable"}, "identity-provider-unavailable"),
        (400, {"error": "server_error"}, "identity-provider-unavailable"),
        (429, {"error": "invalid_grant"}, "identity-provider-unavailable"),
        (500, {"error": "invalid_grant"}, "identity-provider-unavailable"),
        (503, b"<html>", "identity-provider-unavailable"),
        (400, b"<html>", RESPONSE),
        (400, [], RESPONSE),
        (400, {"error": {"code": "invalid_grant"}}, RESPONSE),
        (400, {"error": "x" * 100}, RESPONSE),
        (404, b"", RESPONSE),
    ],
)
def test_only_refusals_of_the_grant_end_sessions(status: int, body: object, reason: str) -> None:
    error = failure("idp/token", response(status, body))
    assert error.reason == reason
    assert isinstance(error, IdentityRefusedError) is (reason == GRANT_REFUSED)
    assert not isinstance(error, IdentityRefusedError) or error.ends_session


def test_descriptions_and_tokens_do_not_reach_messages() -> None:
    body = {"error": "invalid_grant", "error_description": "<b>s3cret</b>", "token": "s3cret"}
    error = failure("idp/token", response(400, body))
    assert "s3cret" not in f"{error} {error.public_message} {error.fields}"


def test_retry_after_is_kept() -> None:
    error = failure("idp/token", response(429, {}, 30))
    assert isinstance(error, IdentityProviderError)
    assert error.retry_after_s == 30


def test_helpers() -> None:
    assert is_grant_refusal(response(400, {"error": "invalid_grant"}))
    assert not is_grant_refusal(response(401, {"error": "invalid_client"}))
    assert add_form("", {"a": "b c&d=ü"}) == "a=b+c%26d%3D%C3%BC"
    assert add_form("x=1", {"a": "b"}) == "x=1&a=b"
