"""Credentials made to deceive, and those whose time is over."""

from __future__ import annotations

import base64
import hmac
from urllib.parse import quote

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gatehouse.authorize.core.credentials import Credential, HandleReader, Place
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.ids import SERVICE_ACCOUNT, SESSION, USER
from gatehouse.common.jose.hs256 import encode_hs256
from gatehouse.common.jose.keys import derive_signing_key, verify_jwt
from gatehouse.common.rpc.credentials import ServiceCredentials
from tests.support.check import (
    SECRET,
    Desk,
    handle_token,
    is_allowed,
    provider,
    resolved_settings,
    route,
    set_headers,
    status_of,
)
from tests.support.clock import FakeClock
from tests.support.policy import (
    NOW_S,
    World,
    policy_of,
    service_account_record,
    session_record,
    user_record,
)

U1 = policy_of("allow: {or: [{user: u1}]}")


def desk(policy=U1, **keys) -> Desk:
    return Desk(resolved_settings(route(policy, **keys)))


def service_token(**changes) -> str:
    claims = {"jti": "sa1", "sub": "u1", "iat": NOW_S, "nbf": NOW_S, "use": "api"}
    return encode_hs256({**claims, **changes}, SECRET)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 200),
        ({"exp": NOW_S + 60}, 200),
        ({"exp": NOW_S - 60}, 401),
        ({"nbf": NOW_S + 3600}, 401),
        ({"exp": "soon"}, 401),
        ({"use": "route"}, 200),
        ({"use": None}, 401),
        ({"jti": "other"}, 401),
    ],
)
def test_r38_tokens_of_service_accounts_keep_their_times(changes, status) -> None:
    one = desk()
    headers = {"authorization": f"Bearer Pomerium-{service_token(**changes)}"}
    assert status_of(one.check(headers=headers)) == status
    # What is remembered of a token is judged again each time.
    one.now_s += 7200
    later = 401 if "exp" in changes or status == 401 else 200
    if "nbf" not in changes:
        assert status_of(one.check(headers=headers)) == later


def test_a_service_account_is_no_cookie() -> None:
    one = desk()
    assert status_of(one.check(headers={"cookie": f"_pomerium={service_token()}"})) == 302


# Tokens made to confuse


def es256(header: dict[str, object], claims: dict[str, object]) -> str:
    key = derive_signing_key(SECRET)
    return jwt.encode(claims, key.private_key, algorithm="ES256", headers=header)


def forged_tokens() -> list[str]:
    public = derive_signing_key(SECRET).private_key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = {"jti": "s1", "sub": "u1", "iat": int(NOW_S), "use": "api"}
    good = encode_hs256(claims, SECRET)
    head, body, signature = good.split(".")

    def part_of(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def part(text: str) -> str:
        return part_of(text.encode())

    confused = hmac.digest(pem, f"{head}.{body}".encode(), "sha256")

    unsigned = part('{"alg":"none","typ":"JWT"}')
    other = part('{"alg":"HS512","typ":"JWT"}')
    nested = part('{"alg":"HS256","typ":"JWT","cty":"JWT"}')
    twice = part('{"jti":"s2","jti":"s1","use":"api"}')
    return [
        f"{unsigned}.{body}.",
        f"{unsigned}.{body}.{signature}",
        f"{other}.{body}.{signature}",
        f"{head}.{body}.{part_of(confused)}",  # the public key as a secret
        es256({"typ": "JWT"}, claims),  # a signing key of ours, for another purpose
        es256({"typ": "JWT", "jwk": {"kty": "oct", "k": part("k" * 32)}}, claims),
        encode_hs256(claims, SECRET, typ="gatehouse-service"),
        f"{head}.{twice}.{signature}",
        f"{head}.{body}",
        f"{good}.{signature}",
        f"{head}.{body}.{signature[:-4]}",
        f"{nested}.{part(good)}.{signature}",
        good + "A" * 20_000,
        " " + good,
    ]


@pytest.mark.parametrize("token", forged_tokens())
@pytest.mark.parametrize("carrier", ["authorization", "cookie", "query"])
def test_r37_forged_handles_are_no_session(token: str, carrier: str) -> None:
    one = desk()
    if carrier == "authorization":
        response = one.check(headers={"authorization": f"Pomerium {token}"})
    elif carrier == "cookie":
        response = one.check(headers={"cookie": f"_pomerium={token}"})
    else:
        response = one.check(path=f"/?pomerium_session={quote(token)}")
    assert status_of(response) in {302, 401}


def test_r40_a_session_of_one_provider_opens_no_route_of_another() -> None:
    settings = resolved_settings(
        route(U1, idp=provider("idp-a")),
        route(U1, route_id="b" * 16, idp=provider("idp-b")),
    )
    one = Desk(settings)
    headers = one.cookie("s1", idp_id="idp-a")
    assert is_allowed(one.check(headers=headers))
    assert status_of(one.check(headers=headers, route_id="b" * 16)) == 302


@pytest.mark.parametrize(
    ("hosts", "elsewhere"),
    [
        (("app.example.com",), False),
        (("authenticate.example.com", "app.example.com:8443"), False),
        (("other.example.com",), True),
        (("app.example.com.example.net", "app.example.co", "[", ""), True),
        ((), True),
    ],
)
def test_r28_a_cookie_counts_on_its_own_hosts_alone_where_that_is_set(hosts, elsewhere) -> None:
    for is_set in (False, True):
        made = Desk(resolved_settings(route(U1), cookie_audience=is_set))
        answer = made.check(headers=made.cookie("s1", audience=hosts))
        assert is_allowed(answer) is not (elsewhere and is_set)
        token = handle_token(SECRET, "s1", idp_id="idp-1", use="api", audience=hosts)
        assert is_allowed(made.check(headers={"x-pomerium-authorization": token}))


def test_r28_an_assertion_for_one_host_is_none_for_another() -> None:
    one = desk(U1, pass_identity_headers=True)
    token = set_headers(one.check(headers=one.cookie("s1"), host="a.example.com"))[
        "x-pomerium-jwt-assertion"
    ]
    other = set_headers(one.check(headers=one.cookie("s1"), host="b.example.com"))[
        "x-pomerium-jwt-assertion"
    ]
    keys = (derive_signing_key(SECRET),)
    assert verify_jwt(token, keys)["aud"] == "a.example.com"
    assert verify_jwt(other, keys)["aud"] == "b.example.com"


def test_r44_deleted_users_accounts_and_sessions_are_out_at_once() -> None:
    world = World(
        session_record("s", "u1"),
        user_record("u1", "a@example.com"),
        service_account_record("sa", "u1"),
    )
    policy = policy_of("allow: {or: [{email: a@example.com}, {user: u1}]}")
    one = Desk(resolved_settings(route(policy)), world)
    domain = policy_of("allow: {or: [{domain: example.com}]}")
    token = handle_token(SECRET, "sa", use="api")
    program = {"authorization": f"Pomerium {token}"}
    assert is_allowed(one.check(headers=one.cookie("s")))
    assert is_allowed(one.check(headers=program))
    del world.records[str(SERVICE_ACCOUNT), "sa"]
    assert status_of(one.check(headers=program)) == 401
    by_email = Desk(resolved_settings(route(domain)), world)
    assert is_allowed(by_email.check(headers=by_email.cookie("s")))
    del world.records[str(USER), "u1"]
    assert status_of(by_email.check(headers=by_email.cookie("s"))) == 403
    del world.records[str(SESSION), "s"]
    assert status_of(by_email.check(headers=by_email.cookie("s"))) == 302


def test_r16_headers_that_carry_identity_overwrite_the_clients() -> None:
    """Whatever the client says of `Connection`, ours are set and not appended."""
    one = desk(U1, pass_identity_headers=True)
    response = one.check(
        headers={
            **one.cookie("s1"),
            "connection": "close, X-Pomerium-Jwt-Assertion",
            "x-pomerium-jwt-assertion": "mine",
        }
    )
    actions = {option.header.key: option.append_action for option in response.ok_response.headers}
    assert actions["x-pomerium-jwt-assertion"] == 2  # OVERWRITE_IF_EXISTS_OR_ADD
    assert set_headers(response)["x-pomerium-jwt-assertion"] != "mine"


def test_r18_the_session_is_found_on_whatever_cookie_line_and_never_told_upstream() -> None:
    one = desk(U1, pass_identity_headers=True)
    token = handle_token(SECRET, "s1", idp_id="idp-1")
    for lines in (
        [("cookie", f"_pomerium={token}"), ("cookie", "a=b")],
        [("cookie", "a=b"), ("cookie", f"c=d; _pomerium={token}")],
    ):
        response = one.check(lines=lines)
        assert is_allowed(response)
        assert token not in str(response)


@pytest.mark.parametrize("lost", [b"", b"s" * 31])
def test_r49_a_lost_secret_is_none_that_everybody_knows(lost: bytes) -> None:
    """Without a secret nothing is believed; one that is cut short is an error, and so a 503."""
    claims = {"jti": "s1", "sub": "u1", "iat": int(NOW_S), "use": "route"}
    head, body, _ = encode_hs256(claims, SECRET).split(".")
    for key in (lost, bytes(32)):
        mac = hmac.digest(key, f"{head}.{body}".encode(), "sha256")
        token = f"{head}.{body}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
        credential = Credential(Place.COOKIE, token)
        assert HandleReader(()).read(credential, NOW_S) is None
        assert HandleReader((SECRET,)).read(credential, NOW_S) is None
        with pytest.raises(InvalidArgumentError, match="at least 32 bytes"):
            HandleReader((lost,)).read(credential, NOW_S)


def test_r39_tokens_between_services_are_no_handles() -> None:
    one = desk()
    credentials = ServiceCredentials("proxy", lambda: (SECRET,), FakeClock(NOW_S))
    for _, token in credentials.metadata("authorize"):
        assert status_of(one.check(headers={"authorization": f"Pomerium {token}"})) == 401
