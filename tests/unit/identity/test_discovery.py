from __future__ import annotations

from typing import Any

import pytest

from gatehouse.common.identity.discovery import (
    check_provider_url,
    discovery_url,
    parse_metadata,
)
from gatehouse.common.identity.errors import MISCONFIGURED, RESPONSE, IdentityProviderError

URL = "https://idp.example.com/realms/x"
DOCUMENT: dict[str, Any] = {
    "issuer": URL,
    "authorization_endpoint": f"{URL}/auth",
    "token_endpoint": f"{URL}/token",
    "jwks_uri": f"{URL}/certs",
}


def test_the_least_document() -> None:
    metadata = parse_metadata(DOCUMENT, url=URL)
    assert metadata.issuer == URL
    assert metadata.userinfo_endpoint is None
    assert metadata.revocation_endpoint is None
    assert metadata.end_session_endpoint is None
    assert metadata.id_token_algorithms == ("RS256",)
    assert metadata.token_auth_methods == ()
    assert not metadata.supports_s256


def test_algorithms_are_ours_and_theirs() -> None:
    offered = ["none", "HS256", "ES256", "EdDSA", "RS256", "ES256K", "RS1", 7]
    document = {**DOCUMENT, "id_token_signing_alg_values_supported": offered}
    assert parse_metadata(document, url=URL).id_token_algorithms == ("RS256", "ES256", "EdDSA")


def test_s256_is_read_from_the_document() -> None:
    for listed, expected in ((["S256", "plain"], True), (["plain"], False), ("S256", False)):
        document = {**DOCUMENT, "code_challenge_methods_supported": listed}
        assert parse_metadata(document, url=URL).supports_s256 is expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"issuer": URL + "/"}, MISCONFIGURED),
        ({"issuer": URL.upper()}, MISCONFIGURED),
        ({"issuer": "https://evil.example"}, MISCONFIGURED),
        ({"issuer": None}, MISCONFIGURED),
        ({"issuer": [URL]}, MISCONFIGURED),
        ({"id_token_signing_alg_values_supported": ["none", "HS256"]}, MISCONFIGURED),
        ({"id_token_signing_alg_values_supported": "RS256"}, MISCONFIGURED),
        ({"token_endpoint": None}, RESPONSE),
        ({"token_endpoint": "http://idp.example.com/token"}, RESPONSE),
        ({"token_endpoint": "https://user:pass@idp.example.com/token"}, RESPONSE),
        ({"token_endpoint": "https://idp.example.com:x/token"}, RESPONSE),
        ({"token_endpoint": "https://idp.example.com/token#x"}, RESPONSE),
        ({"token_endpoint": "https://idp.example.com/to ken"}, RESPONSE),
        ({"token_endpoint": "https://idp.example.com/\r\nX: y"}, RESPONSE),
        ({"token_endpoint": "https:///token"}, RESPONSE),
        ({"token_endpoint": "/token"}, RESPONSE),
        ({"token_endpoint": 7}, RESPONSE),
        ({"token_endpoint": "https://h/" + "a" * 3000}, RESPONSE),
        ({"authorization_endpoint": "javascript:alert(1)"}, RESPONSE),
        ({"jwks_uri": "file:///etc/passwd"}, RESPONSE),
        ({"end_session_endpoint": "javascript:alert(1)"}, RESPONSE),
    ],
)
def test_bad_documents_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(IdentityProviderError) as caught:
        parse_metadata({**DOCUMENT, **changes}, url=URL)
    assert caught.value.reason == reason


def test_the_message_says_what_would_be_right() -> None:
    with pytest.raises(IdentityProviderError) as caught:
        parse_metadata({**DOCUMENT, "issuer": URL + "/"}, url=URL)
    assert f"{URL}/" in str(caught.value)
    assert "idp_provider_url" in str(caught.value)


def test_plain_http_only_where_the_operator_chose_it() -> None:
    url = "http://127.0.0.1:8444"
    document = {name: str(value).replace(URL, url) for name, value in DOCUMENT.items()}
    assert parse_metadata(document, url=url).token_endpoint == f"{url}/token"


def test_discovery_url_has_one_slash() -> None:
    for url in (URL, URL + "/"):
        assert discovery_url(url) == f"{URL}/.well-known/openid-configuration"


@pytest.mark.parametrize(
    "url",
    ["", "idp.example.com", "//idp", "ftp://idp", "https://u@idp", "https://idp?x", "https://"],
)
def test_provider_urls_are_checked(url: str) -> None:
    with pytest.raises(IdentityProviderError) as caught:
        check_provider_url(url)
    assert caught.value.reason == MISCONFIGURED
