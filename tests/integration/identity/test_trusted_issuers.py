"""JWTs of trusted issuers, verified by keys fetched from an issuer that may misbehave."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.identity.errors import IdentityProviderError
from gatehouse.common.identity.jwks import MIN_REFETCH_INTERVAL_S
from gatehouse.common.identity.trusted_issuers import (
    DEFAULT_ALGORITHMS,
    TrustedIssuers,
    TrustedIssuerSettings,
    is_key_url,
)
from tests.support.identity import (
    CLIENT_ID,
    HostileProvider,
    Reply,
    hostile_provider,
    key_pair,
)


class SteadyClock(SystemClock):
    """The machine's clock; the monotonic one stands still until it is moved."""

    def __init__(self) -> None:
        self.at_s = 1000.0

    def monotonic_s(self) -> float:
        return self.at_s


@pytest.fixture
def clock() -> SteadyClock:
    return SteadyClock()


def settings_of(idp: HostileProvider, name: str = "ci", **changes: Any) -> TrustedIssuerSettings:
    values: dict[str, Any] = {
        "name": name,
        "issuer": idp.issuer,
        "jwks_url": "",
        "algorithms": DEFAULT_ALGORITHMS,
        "audiences": (CLIENT_ID, "second"),
    }
    return TrustedIssuerSettings(**(values | changes))


@pytest.fixture
async def issuers(
    idp: HostileProvider, http: httpx.AsyncClient, clock: SteadyClock
) -> TrustedIssuers:
    return TrustedIssuers([settings_of(idp)], http, clock, SystemRng())


async def refused(issuers: TrustedIssuers, raw: str) -> str:
    with pytest.raises(InvalidTokenError) as caught:
        await issuers.verify(raw)
    assert raw not in str(caught.value) or not raw
    return caught.value.reason


async def test_a_good_token(idp: HostileProvider, issuers: TrustedIssuers) -> None:
    token = await issuers.verify(idp.id_token(), {"ci"})
    assert (token.provider, token.subject) == ("ci", "user-1")
    assert token.claims["email"] == "user@example.com"
    await issuers.verify(idp.id_token())
    assert (idp.count("/jwks"), idp.count("/.well-known/openid-configuration")) == (1, 1)


@pytest.mark.parametrize("audience", [CLIENT_ID, [CLIENT_ID], ["other", "second"]])
async def test_one_accepted_audience_is_enough(
    idp: HostileProvider, issuers: TrustedIssuers, audience: Any
) -> None:
    idp.claims_changes = {"aud": audience}
    assert (await issuers.verify(idp.id_token())).provider == "ci"


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "application/at+jwt", None])
async def test_accepted_types(idp: HostileProvider, issuers: TrustedIssuers, typ: Any) -> None:
    idp.header_changes = {"typ": typ}
    assert (await issuers.verify(idp.id_token())).subject == "user-1"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"typ": "dpop+jwt"}, "token-type"),
        ({"typ": "logout+jwt"}, "token-type"),
        ({"kid": "unknown"}, "token-key"),
        ({"jku": "https://evil.test/jwks"}, "token-malformed"),
        ({"jwk": {"kty": "oct"}}, "token-malformed"),
        ({"x5u": "https://evil.test/c"}, "token-malformed"),
        ({"crit": ["exp"]}, "token-malformed"),
    ],
)
async def test_r37_headers(
    idp: HostileProvider, issuers: TrustedIssuers, headers: dict[str, Any], reason: str
) -> None:
    idp.header_changes = headers
    assert await refused(issuers, idp.id_token()) == reason


def _segment(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def test_r37_no_signature_and_confused_algorithms(
    idp: HostileProvider, issuers: TrustedIssuers
) -> None:
    claims = idp.id_claims()
    public = idp.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    none = f"{_segment({'alg': 'none', 'kid': 'key-1'})}.{_segment(claims)}."
    hmac = jwt.PyJWS()  # a symmetric key made of our public one, which is no secret
    key = base64.b64encode(public)
    symmetric = hmac.encode(json.dumps(claims).encode(), key, "HS256", {"kid": "key-1"})
    other, _ = key_pair("ES384")
    curve = jwt.encode(claims, other, algorithm="ES384", headers={"kid": "key-1"})
    stranger, _ = key_pair("ES256")
    forged = jwt.encode(claims, stranger, algorithm="ES256", headers={"kid": "key-1"})
    assert await refused(issuers, none) == "token-algorithm"
    assert await refused(issuers, symmetric) == "token-algorithm"
    assert await refused(issuers, curve) == "token-algorithm"
    assert idp.asked == []  # nothing was fetched for those
    assert await refused(issuers, forged) == "token-signature"


async def test_r37_shapes(idp: HostileProvider, issuers: TrustedIssuers) -> None:
    good = idp.id_token()
    header, body, signature = good.split(".")
    twice = _segment(b'{"iss":"' + idp.issuer.encode() + b'","sub":"a","sub":"b"}')
    for raw in (
        "",
        "a.b",
        f"{good}.{signature}",
        f"{header}.{body}.",
        f"{header}.{twice}.{signature}",
        f"{header}.{body}.{signature}=",
        good[:-2],
        good + "A" * 70_000,
    ):
        with pytest.raises(InvalidTokenError):
            await issuers.verify(raw)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": None}, "token-times"),
        ({"exp": 1}, "token-expired"),
        ({"exp": "4000000000"}, "token-times"),
        ({"exp": True}, "token-times"),
        ({"nbf": 4_000_000_000}, "token-not-yet-valid"),
        ({"iat": 4_000_000_000}, "token-not-yet-valid"),
        ({"iat": 1e300}, "token-times"),
        ({"iss": "https://other.example.com"}, "token-issuer"),
        ({"iss": None}, "token-issuer"),
        ({"aud": "another-app"}, "token-audience"),
        ({"aud": None}, "token-audience"),
        ({"aud": []}, "token-audience"),
        ({"aud": {"0": CLIENT_ID}}, "token-audience"),
        ({"aud": [[CLIENT_ID]]}, "token-audience"),
        ({"sub": None}, "token-subject"),
        ({"sub": ""}, "token-subject"),
        ({"sub": "a\nb"}, "token-subject"),
    ],
)
async def test_r38_claims(
    idp: HostileProvider, issuers: TrustedIssuers, changes: dict[str, Any], reason: str
) -> None:
    # PyJWT refuses to sign some of these, so the signature is made over the bytes.
    claims = {**idp.id_claims(), **changes}
    body = {name: value for name, value in claims.items() if value is not None}
    raw = jwt.PyJWS().encode(json.dumps(body).encode(), idp.private, "ES256", {"kid": "key-1"})
    assert await refused(issuers, raw) == reason


async def test_r40_a_route_takes_tokens_of_its_own_issuers_alone(
    idp: HostileProvider, http: httpx.AsyncClient, clock: SteadyClock
) -> None:
    async with hostile_provider() as other:
        both = [settings_of(idp), settings_of(other, "b")]
        issuers = TrustedIssuers(both, http, clock, SystemRng())
        assert (await issuers.verify(other.id_token())).provider == "b"
        asked = len(idp.asked)
        with pytest.raises(InvalidTokenError):
            await issuers.verify(idp.id_token(), {"b"})
        assert len(idp.asked) == asked  # judged before anything is fetched
        # Signed by one issuer, saying it is of the other.
        other.claims_changes = {"iss": idp.issuer}
        assert await refused(issuers, other.id_token()) == "token-signature"


async def test_the_operators_list_of_algorithms_counts(
    idp: HostileProvider, http: httpx.AsyncClient, clock: SteadyClock
) -> None:
    strict = settings_of(idp, algorithms=("RS256",))
    issuers = TrustedIssuers([strict], http, clock, SystemRng())
    assert await refused(issuers, idp.id_token()) == "token-algorithm"


async def test_keys_are_fetched_again_for_a_new_key_but_not_for_every_token(
    idp: HostileProvider, issuers: TrustedIssuers, clock: SteadyClock
) -> None:
    await issuers.verify(idp.id_token())
    private, public = key_pair("ES256", "key-2")
    idp.private, idp.header_changes = private, {"kid": "key-2"}
    for _ in range(5):
        assert await refused(issuers, idp.id_token()) == "token-key"
    assert idp.count("/jwks") == 1  # within the cooldown
    idp.published.append(public)
    clock.at_s += MIN_REFETCH_INTERVAL_S + 1
    assert (await issuers.verify(idp.id_token())).subject == "user-1"
    assert idp.count("/jwks") == 2


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/jwks", Reply(500)),
        ("/jwks", Reply(200, b"x" * (2 * 1024 * 1024))),
        ("/jwks", Reply(302, headers={"Location": "http://127.0.0.1:9/"})),
        ("/.well-known/openid-configuration", Reply(404)),
        ("/.well-known/openid-configuration", Reply.of({"issuer": "https://other"})),
        ("/.well-known/openid-configuration", Reply(200, b"not json")),
    ],
)
async def test_an_issuer_that_cannot_be_asked_proves_nothing(
    idp: HostileProvider, issuers: TrustedIssuers, path: str, answer: Reply
) -> None:
    idp.answers[path] = answer
    with pytest.raises(IdentityProviderError):
        await issuers.verify(idp.id_token())


@pytest.mark.parametrize("uri", [None, "", "file:///etc/passwd", "http://keys.example.com/", 7])
async def test_a_jwks_uri_must_be_safe(
    idp: HostileProvider, issuers: TrustedIssuers, uri: Any
) -> None:
    idp.metadata_changes = {"jwks_uri": uri}
    with pytest.raises(IdentityProviderError, match="jwks_uri"):
        await issuers.verify(idp.id_token())


async def test_a_given_jwks_url_needs_no_discovery(
    idp: HostileProvider, http: httpx.AsyncClient, clock: SteadyClock
) -> None:
    given = settings_of(idp, jwks_url=f"{idp.issuer}/jwks")
    issuers = TrustedIssuers([given], http, clock, SystemRng())
    assert (await issuers.verify(idp.id_token())).subject == "user-1"
    assert [one.path for one in idp.asked] == ["/jwks"]


async def test_keys_outlive_a_configuration_that_says_the_same(
    idp: HostileProvider, http: httpx.AsyncClient, clock: SteadyClock
) -> None:
    first = TrustedIssuers([settings_of(idp)], http, clock, SystemRng())
    await first.verify(idp.id_token())
    again = TrustedIssuers([settings_of(idp)], http, clock, SystemRng(), previous=first)
    await again.verify(idp.id_token())
    assert idp.count("/jwks") == 1
    narrower = settings_of(idp, audiences=("second",))
    changed = TrustedIssuers([narrower], http, clock, SystemRng(), previous=first)
    assert await refused(changed, idp.id_token()) == "token-audience"


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("https://a.example.com/jwks", True),
        ("http://127.0.0.1:8/jwks", True),
        ("http://localhost/jwks", True),
        ("http://a.example.com/jwks", False),
        ("ftp://127.0.0.1/", False),
        ("https://", False),
        ("https://[", False),
        ("", False),
    ],
)
def test_key_urls(url: str, fine: bool) -> None:
    assert is_key_url(url) is fine
