"""What Google is asked, and what is made of its answer."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from gatehouse.authorize.core.google_identity import (
    TOKEN_URL,
    identity_token,
    metadata_url,
    parse_account,
    token_form,
)
from gatehouse.authorize.core.identity_headers import Tokens
from gatehouse.authorize.core.route_plan import Plans, compile_plans
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolved import ResolvedRoute
from gatehouse.common.config.routes import parse_to
from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.keys import derive_signing_key, sign_jwt, verify_jwt
from tests.support.check import Desk, handle_token, resolved_settings, route, set_headers
from tests.support.policy import policy_of

NOW_S = 1_800_000_000.0
PUBLIC = policy_of("allow: {or: [{accept: true}]}")
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: Any) -> str:
    raw: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return raw.decode()


def account(**changes: Any) -> str:
    values = {
        "type": "service_account",
        "client_email": "proxy@project.iam.gserviceaccount.com",
        "private_key": pem(KEY),
        "private_key_id": "key-1",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    return json.dumps({name: v for name, v in {**values, **changes}.items() if v is not None})


def test_an_account_is_json_or_base64_of_it() -> None:
    text = account()
    for form in (text, f"  {text}\n", base64.b64encode(text.encode()).decode()):
        found = parse_account(form)
        assert found.email == "proxy@project.iam.gserviceaccount.com"
        assert "PRIVATE" not in repr(found)
    assert parse_account(account(token_uri=None)).token_url == TOKEN_URL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("eA==", "not a JSON object"),
        (account(client_email=None), "client_email"),
        (account(private_key=None), "private_key"),
        (account(private_key="hunter2"), "RSA key"),
        (account(private_key=pem(ec.generate_private_key(ec.SECP256R1()))), "RSA key"),
        (account(token_uri="http://token.example.com/"), "https"),
        (account(token_uri=7), "https"),
    ],
)
def test_what_is_no_account(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        parse_account(text)
    assert "hunter2" not in str(caught.value)


def test_the_account_states_for_whom_it_wants_a_token() -> None:
    found = parse_account(account())
    form = parse_qs(token_form(found, "https://app.run.app", NOW_S))
    assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    claims = verify_jwt(form["assertion"][0], [found.key])
    assert claims == {
        "iss": found.email,
        "sub": found.email,
        "aud": "https://oauth2.googleapis.com/token",
        "iat": NOW_S,
        "exp": NOW_S + 3600,
        "target_audience": "https://app.run.app",
    }


def test_the_metadata_server_is_asked_for_an_audience() -> None:
    url = urlsplit(metadata_url("metadata.google.internal", "https://a.run.app/?x&y"))
    assert (url.scheme, url.netloc) == ("http", "metadata.google.internal")
    assert url.path == "/computeMetadata/v1/instance/service-accounts/default/identity"
    assert parse_qs(url.query) == {"audience": ["https://a.run.app/?x&y"], "format": ["full"]}


def test_a_token_is_renewed_long_before_it_ends() -> None:
    key = derive_signing_key(b"k" * 32)
    token = identity_token(sign_jwt({"exp": NOW_S + 3600}, key), NOW_S)
    assert (token.renew_at_s, token.ends_at_s) == (NOW_S + 2700, NOW_S + 3540)
    token = identity_token(sign_jwt({"exp": NOW_S + 400}, key), NOW_S)
    assert (token.renew_at_s, token.ends_at_s) == (NOW_S + 300, NOW_S + 340)


@pytest.mark.parametrize("exp", [None, "x", True, NOW_S, NOW_S + 60, NOW_S - 1])
def test_a_token_without_a_future_is_none(exp: Any) -> None:
    claims = {} if exp is None else {"exp": exp}
    with pytest.raises(InvalidTokenError):
        identity_token(sign_jwt(claims, derive_signing_key(b"k" * 32)), NOW_S)
    with pytest.raises(InvalidTokenError):
        identity_token("<html>", NOW_S)


# The headers


def desk(*, google: bool = True, **keys: Any) -> Desk:
    one = dataclasses.replace(
        route(PUBLIC, enable_google_cloud_serverless_authentication=google, **keys),
        upstreams=(parse_to("https://first.run.app"), parse_to("https://last.run.app:8443/x")),
    )
    return Desk(resolved_settings(one))


def told(one: Desk, token: str = "t1", **request: Any) -> dict[str, str]:
    return set_headers(one.check(tokens=Tokens(serverless=token), **request))


def test_the_audience_is_the_last_upstream() -> None:
    (plan,) = desk().decider.plans.routes.values()
    assert plan.headers.serverless_audience == "https://last.run.app"
    (plan,) = desk(google=False).decider.plans.routes.values()
    assert not plan.headers.serverless_audience


def test_the_token_goes_in_its_own_header_and_where_there_is_room_in_authorization() -> None:
    headers = told(desk())
    assert headers["x-serverless-authorization"] == "Bearer t1"
    assert headers["authorization"] == "Bearer t1"


@pytest.mark.parametrize("value", ["Bearer mine", "Basic eA==", "Pomerium x,Bearer mine"])
def test_the_clients_authorization_is_left_alone(value: str) -> None:
    headers = told(desk(), headers={"authorization": value})
    assert headers["x-serverless-authorization"] == "Bearer t1"
    assert "authorization" not in headers


@pytest.mark.parametrize("prefix", ["Pomerium ", "Bearer Pomerium-"])
def test_credentials_for_us_are_not_for_the_upstream(prefix: str) -> None:
    value = f"{prefix}{handle_token(b's' * 32, 's1', use='api')}"
    assert told(desk(), headers={"authorization": value})["authorization"] == "Bearer t1"


def test_the_routes_authorization_is_left_alone() -> None:
    headers = told(desk(set_request_headers={"Authorization": "Basic ours"}))
    assert headers["authorization"] == "Basic ours"
    assert headers["x-serverless-authorization"] == "Bearer t1"


def test_without_token_the_clients_own_does_not_pass_for_it() -> None:
    one = desk()
    response = one.check(tokens=Tokens(), headers={"x-serverless-authorization": "Bearer forged"})
    assert "x-serverless-authorization" not in set_headers(response)
    assert "x-serverless-authorization" in response.ok_response.headers_to_remove
    response = one.check(tokens=Tokens(serverless="t1"))
    assert "x-serverless-authorization" not in response.ok_response.headers_to_remove


def test_a_renewed_token_is_sent_at_once() -> None:
    one = desk()
    assert told(one, "t1")["x-serverless-authorization"] == "Bearer t1"
    assert told(one, "t2")["x-serverless-authorization"] == "Bearer t2"


def test_an_account_of_no_use_is_said_at_load() -> None:
    one = route(PUBLIC, enable_google_cloud_serverless_authentication=True)
    key = "google_cloud_serverless_authentication_service_account"

    def compiled(here: ResolvedRoute, text: str) -> Plans:
        keys: dict[str, Any] = {key: text}
        return compile_plans(resolved_settings(here, **keys))

    with pytest.raises(ConfigError) as caught:
        compiled(one, "{}")
    assert [issue.key for issue in caught.value.issues] == [key]
    assert compiled(route(PUBLIC), "{}").google_account is None
    assert compiled(one, account()).google_account is not None
