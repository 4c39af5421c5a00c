"""The identity client against a provider that lies, fails, stalls and changes its mind."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote_plus

import httpx
import jwt
import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.identity.errors import (
    ACCESS_REFUSED,
    GRANT_REFUSED,
    ID_TOKEN_REFUSED,
    MISCONFIGURED,
    RESPONSE,
    SUBJECT_CHANGED,
    IdentityProviderError,
)
from gatehouse.common.identity.provider import Provider, make_provider
from gatehouse.common.identity.transport import MAX_BODY_BYTES, ProviderTransport
from tests.support.clock import FakeClock
from tests.support.identity import (
    ACCESS_TOKEN,
    CLIENT_ID,
    CLIENT_SECRET,
    REDIRECT_URI,
    Asked,
    HostileProvider,
    Reply,
    at_hash,
    failed,
    hostile_provider,
    key_pair,
    provider_settings,
    refused,
    sign_in,
)

UNAVAILABLE = "identity-provider-unavailable"
GZIP_BOMB = gzip.compress(b"0" * 20 * MAX_BODY_BYTES)
DISCOVERY = "/.well-known/openid-configuration"


async def test_the_provider_is_fine_until_told_otherwise(
    client: Provider, idp: HostileProvider
) -> None:
    identity = await sign_in(client)
    assert identity.user_id == "user-1"
    assert identity.name == "From Userinfo"
    assert identity.claims["groups"] == ["a", "b"]
    (asked,) = [one for one in idp.asked if one.path == "/token"]
    assert asked.form == {
        "grant_type": "authorization_code",
        "redirect_uri": REDIRECT_URI,
        "code": "code",
        "code_verifier": "verifier",
    }
    joined = f"{quote_plus(CLIENT_ID)}:{quote_plus(CLIENT_SECRET)}"
    assert asked.headers["authorization"] == "Basic " + base64.b64encode(joined.encode()).decode()
    await sign_in(client)
    assert idp.count(DISCOVERY) == 1
    assert idp.count("/jwks") == 1


# --- ID tokens ---


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"iss": "https://evil.example"}, "token-issuer"),
        ({"iss": None}, "token-issuer"),
        ({"aud": "another-client"}, "token-audience"),
        ({"aud": None}, "token-audience"),
        ({"aud": [CLIENT_ID, "another"]}, "token-audience"),
        ({"azp": "another-client"}, "token-audience"),
        ({"sub": None}, "token-subject"),
        ({"exp": None}, "token-times"),
        ({"exp": 1_600_000_000}, "token-expired"),
        ({"iat": 4_000_000_000}, "token-not-yet-valid"),
        ({"iat": None}, "token-times"),
        ({"nbf": 4_000_000_000}, "token-not-yet-valid"),
        ({"nonce": "other"}, "token-nonce"),
        ({"nonce": None}, "token-nonce"),
        ({"at_hash": at_hash("another token")}, "token-access-token"),
    ],
)
async def test_r38_claims_of_the_id_token_are_checked(
    client: Provider, idp: HostileProvider, changes: dict[str, Any], check: str
) -> None:
    idp.claims_changes = changes
    error = await refused(client)
    assert (error.reason, error.fields["check"]) == (ID_TOKEN_REFUSED, check)
    assert idp.count("/userinfo") == 0


def _hs256(idp: HostileProvider, key: bytes) -> str:
    head = {"alg": "HS256", "typ": "JWT", "kid": "key-1"}
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in (head, idp.id_claims())
    ]
    mac = hmac.digest(key, b".".join(parts), "sha256")
    return b".".join([*parts, base64.urlsafe_b64encode(mac).rstrip(b"=")]).decode()


def _cut(idp: HostileProvider) -> str:
    return idp.id_token()[:-8]


def _other_claims(idp: HostileProvider) -> str:
    head, _, signature = idp.id_token().split(".")
    claims = base64.urlsafe_b64encode(json.dumps({**idp.id_claims(), "sub": "admin"}).encode())
    return f"{head}.{claims.rstrip(b'=').decode()}.{signature}"


def _signed_by(algorithm: str, **headers: Any) -> Any:
    def make(idp: HostileProvider) -> str:
        private, _ = key_pair(algorithm)
        return jwt.encode(
            idp.id_claims(), private, algorithm=algorithm, headers={"kid": "key-1", **headers}
        )

    return make


FORGERIES = {
    "none": lambda idp: jwt.encode(idp.id_claims(), "", "none", headers={"kid": "key-1"}),
    "HS256 with the client secret": lambda idp: _hs256(idp, CLIENT_SECRET.encode()),
    "HS256 with the published key": lambda idp: _hs256(idp, json.dumps(idp.published[0]).encode()),
    "foreign key under a known kid": _signed_by("ES256"),
    "foreign key under an unknown kid": _signed_by("ES256", kid="key-2"),
    "P-384": _signed_by("ES384"),
    "an algorithm not in the discovery document": _signed_by("PS256"),
    "RSA under an EC kid": _signed_by("RS256"),
    "its own key in the header": _signed_by("ES256", jwk=key_pair("ES256")[1]),
    "a link to its own keys": _signed_by("ES256", jku="https://evil.example/jwks"),
    "cut off": _cut,
    "claims replaced": _other_claims,
    "another type": lambda idp: jwt.encode(
        idp.id_claims(), idp.private, "ES256", headers={"kid": "key-1", "typ": "at+jwt"}
    ),
    "logout token": lambda idp: jwt.encode(
        idp.id_claims(), idp.private, "ES256", headers={"kid": "key-1", "typ": "logout+jwt"}
    ),
    "two dots": lambda _idp: "..",
    "opaque": lambda _idp: "opaque-token",
    "8 KB": lambda _idp: "a" * 8192,
    "200 KB of dots": lambda _idp: "." * 200_000,
    "NUL": lambda idp: idp.id_token() + "\x00",
    "JSON serialisation": lambda _idp: '{"payload":"e30","signatures":[]}',
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_r37_forged_id_tokens_are_refused(
    client: Provider, idp: HostileProvider, name: str
) -> None:
    idp.token_changes = {"id_token": FORGERIES[name](idp)}
    error = await refused(client)
    assert error.reason == ID_TOKEN_REFUSED
    assert not error.ends_session
    assert "eyJ" not in f"{error} {error.fields} {error.public_message}"


@pytest.mark.parametrize(
    "algorithm",
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"],
)
async def test_every_asymmetric_algorithm_works(
    client: Provider, idp: HostileProvider, algorithm: str
) -> None:
    idp.algorithm = algorithm
    idp.private, public = key_pair(algorithm)
    idp.published = [public]
    idp.metadata_changes = {"id_token_signing_alg_values_supported": [algorithm]}
    digest = "sha256" if algorithm == "EdDSA" else f"sha{algorithm[-3:]}"
    idp.claims_changes = {"at_hash": at_hash(ACCESS_TOKEN, digest)}
    assert (await sign_in(client)).user_id == "user-1"


async def test_r37_only_algorithms_of_the_discovery_document(
    client: Provider, idp: HostileProvider
) -> None:
    """The key would fit and the signature is good."""
    idp.private, public = key_pair("RS256")
    idp.published = [public]
    idp.algorithm = "PS256"
    error = await refused(client)
    assert error.fields["check"] == "token-algorithm"
    idp.algorithm = "RS256"
    assert (await sign_in(client)).user_id == "user-1"


async def test_rotated_keys_are_fetched_and_unknown_ones_not_again_and_again(
    idp: HostileProvider, http: httpx.AsyncClient
) -> None:
    clock = FakeClock(SystemClock().now_s())
    client = make_provider(provider_settings(idp.issuer), http, clock, SystemRng())
    await sign_in(client)
    idp.private, public = key_pair("ES256", "key-2")
    idp.header_changes = {"kid": "key-2"}
    clock.monotonic += 11
    for _ in range(5):
        assert (await refused(client)).fields["check"] == "token-key"
    assert idp.count("/jwks") == 2  # the first sign-in, and one more for five unknown tokens
    idp.published = [public]
    clock.monotonic += 11
    assert (await sign_in(client)).user_id == "user-1"
    assert idp.count("/jwks") == 3
    # the old key is gone
    idp.private, _ = key_pair("ES256", "key-1")
    idp.header_changes = {}
    clock.monotonic += 11
    assert (await refused(client)).fields["check"] == "token-key"


@pytest.mark.parametrize("name", [None, "key-1"], ids=["unnamed", "of-the-same-name"])
async def test_a_key_that_changed_without_a_new_name_is_fetched(
    idp: HostileProvider, http: httpx.AsyncClient, name: str | None
) -> None:
    clock = FakeClock(SystemClock().now_s())
    client = make_provider(provider_settings(idp.issuer), http, clock, SystemRng())
    idp.private, public = key_pair("ES256", name)
    idp.header_changes, idp.published = {"kid": name}, [public]
    assert (await sign_in(client)).user_id == "user-1"
    idp.private, public = key_pair("ES256", name)
    idp.published = [public]
    clock.monotonic += 11
    assert (await sign_in(client)).user_id == "user-1"
    assert idp.count("/jwks") == 2
    # Of others' tokens the provider hears no more often than that.
    idp.private, _ = key_pair("ES256", name)
    for _ in range(5):
        assert (await refused(client)).fields["check"] == "token-signature"
    assert idp.count("/jwks") == 2


async def test_a_token_without_kid_is_tried_with_every_fitting_key(
    client: Provider, idp: HostileProvider
) -> None:
    idp.header_changes = {"kid": None}
    idp.published = [key_pair("RS256", "r")[1], key_pair("ES256", None)[1], *idp.published]
    assert (await sign_in(client)).user_id == "user-1"


async def test_keys_that_cannot_be_had_are_no_refusal(
    client: Provider, idp: HostileProvider
) -> None:
    for answer in (Reply(503), Reply.of([]), Reply.of({"keys": 1}), Reply(body=b"<html>")):
        idp.answers["/jwks"] = answer
        await failed(client)
    del idp.answers["/jwks"]
    assert (await sign_in(client)).user_id == "user-1"


async def test_a_missing_id_token_is_a_configuration_mistake(
    client: Provider, idp: HostileProvider
) -> None:
    idp.token_changes = {"id_token": None}
    error = await failed(client)
    assert error.reason == MISCONFIGURED
    assert "openid" in str(error)


# --- claims ---


async def test_claims_named_like_ours_are_only_data(client: Provider, idp: HostileProvider) -> None:
    forged = {
        "jti": "chosen-session-id",
        "idp_id": "another-provider",
        "databroker_server_version": 1,
        "databroker_record_version": 2,
        "use": "api",
        "id": "x",
        "user_id": "admin",
    }
    idp.claims_changes = forged
    idp.userinfo_changes = {**forged, "iss": "https://evil.example", "oid": "admin", "aud": "x"}
    identity = await sign_in(client)
    assert identity.user_id == identity.subject == "user-1"
    assert identity.claims["jti"] == ["chosen-session-id"]
    assert identity.claims["iss"] == [idp.issuer]
    assert identity.claims["aud"] == [CLIENT_ID]
    assert "oid" not in identity.claims
    assert "jti" not in identity.user_claims
    fields = set(identity.__dataclass_fields__)
    assert fields == {
        "user_id", "subject", "name", "email", "claims", "user_claims", "id_token", "tokens",
    }  # fmt: skip


async def test_oid_of_the_id_token_is_the_user_id(client: Provider, idp: HostileProvider) -> None:
    idp.claims_changes = {"oid": "object-1"}
    idp.userinfo_changes = {"oid": "object-2"}
    identity = await sign_in(client)
    assert (identity.user_id, identity.subject) == ("object-1", "user-1")
    assert identity.claims["oid"] == ["object-1"]


@pytest.mark.parametrize("subject", ["user-2", "USER-1", "", None, ["user-1"], 1])
async def test_userinfo_about_someone_else_is_refused(
    client: Provider, idp: HostileProvider, subject: object
) -> None:
    idp.userinfo_changes = {"sub": subject}
    assert (await refused(client)).reason == SUBJECT_CHANGED


async def test_r41_email_must_be_one_plain_address(client: Provider, idp: HostileProvider) -> None:
    idp.userinfo_changes = {"email": "a@evil.com@corp.com"}
    identity = await sign_in(client)
    assert identity.email == ""
    assert identity.claims["email"] == ["a@evil.com@corp.com"]


async def test_a_provider_without_userinfo_can_be_used(
    client: Provider, idp: HostileProvider
) -> None:
    idp.metadata_changes = {"userinfo_endpoint": None}
    identity = await sign_in(client)
    assert identity.name == "From Token"
    assert await client.userinfo(ACCESS_TOKEN, subject="user-1") == {}
    assert idp.count("/userinfo") == 0


async def test_signed_userinfo_is_verified(client: Provider, idp: HostileProvider) -> None:
    def reply(claims: dict[str, Any], key: Any) -> Reply:
        payload = json.dumps(claims).encode()
        token = jwt.PyJWS().encode(payload, key, "ES256", headers={"kid": "key-1"})
        return Reply(200, token.encode(), {"Content-Type": "application/jwt; charset=utf-8"})

    good = {"sub": "user-1", "name": "Signed", "iss": idp.issuer, "aud": CLIENT_ID}
    idp.answers["/userinfo"] = reply(good, idp.private)
    assert (await sign_in(client)).name == "Signed"
    for claims, key in (
        (good, key_pair("ES256")[0]),
        ({**good, "iss": "https://evil.example"}, idp.private),
        ({**good, "iss": 1}, idp.private),
        ({**good, "aud": "other"}, idp.private),
    ):
        idp.answers["/userinfo"] = reply(claims, key)
        assert (await failed(client)).reason == RESPONSE
    idp.answers["/userinfo"] = Reply(200, b"\xff", {"Content-Type": "application/jwt"})
    assert (await failed(client)).reason == RESPONSE


# --- failures of transport and protocol ---


@pytest.mark.parametrize("path", ["/token", "/userinfo"])
@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(500), UNAVAILABLE),
        (Reply(503, b"<html>busy</html>"), UNAVAILABLE),
        (Reply.of({"error": "invalid_grant"}, 503), UNAVAILABLE),
        (Reply.of({}, 429, Retry_After="30"), UNAVAILABLE),
        (Reply.of({"error": "temporarily_unavailable"}, 400), UNAVAILABLE),
        (Reply.of({"error": "invalid_client"}, 400), MISCONFIGURED),
        (Reply(200, b"<html>"), RESPONSE),
        (Reply(200, b""), RESPONSE),
        (Reply(200, b"[]"), RESPONSE),
        (Reply(200, b'{"access_token":"a","access_token":"b"}'), RESPONSE),
        (Reply(200, b"{" + b'"a":{' * 5000), RESPONSE),
        (Reply(204), RESPONSE),
        (Reply(404), RESPONSE),
        (Reply(302, b"", {"Location": "https://evil.example/"}), RESPONSE),
        (Reply(307, b"", {"Location": "/token2"}), RESPONSE),
        (Reply(200, b"x" * (MAX_BODY_BYTES + 1)), RESPONSE),
        (Reply(200, GZIP_BOMB, {"Content-Encoding": "gzip"}), RESPONSE),
        (Reply(200, b"not gzip", {"Content-Encoding": "gzip"}), RESPONSE),
        (Reply(200, gzip.compress(b"{}" * 100)[:-9], {"Content-Encoding": "gzip"}), RESPONSE),
        (Reply(200, b"x", {"Content-Encoding": "br"}), RESPONSE),
    ],
)  # fmt: skip
async def test_trouble_is_never_taken_for_a_refusal(
    client: Provider, idp: HostileProvider, path: str, reply: Reply, reason: str
) -> None:
    idp.answers[path] = reply
    error = await failed(client)
    assert error.reason == reason
    assert all(one.path in {DISCOVERY, "/jwks", "/token", "/userinfo"} for one in idp.asked)
    if reply.status == 429:
        assert error.retry_after_s == 30


async def test_refusals_are_told_apart(client: Provider, idp: HostileProvider) -> None:
    idp.answers["/token"] = Reply.of({"error": "invalid_grant"}, 400)
    assert (await refused(client)).reason == GRANT_REFUSED
    del idp.answers["/token"]
    for status in (401, 403):
        idp.answers["/userinfo"] = Reply(status)
        error = await refused(client)
        assert (error.reason, error.ends_session) == (ACCESS_REFUSED, True)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b" " * (MAX_BODY_BYTES - 1) + b"{}"),
        Reply(
            200, gzip.compress(b" " * (MAX_BODY_BYTES - 1) + b"{}"), {"Content-Encoding": "gzip"}
        ),
    ],
    ids=["plain", "gzip"],
)
async def test_r29_answers_over_the_limit_are_not_read(
    client: Provider, idp: HostileProvider, reply: Reply
) -> None:
    """Both would be valid JSON."""
    idp.answers["/token"] = reply
    with pytest.raises(IdentityProviderError, match="more than"):
        await sign_in(client)


async def test_compressed_answers_are_understood(client: Provider, idp: HostileProvider) -> None:
    body = gzip.compress(json.dumps({"sub": "user-1", "name": "Zipped"}).encode())
    idp.answers["/userinfo"] = Reply(200, body, {"Content-Encoding": "gzip"})
    assert (await sign_in(client)).name == "Zipped"


async def test_a_provider_that_is_down(http: httpx.AsyncClient) -> None:
    async with hostile_provider() as gone:
        issuer = gone.issuer
    client = make_provider(provider_settings(issuer), http, SystemClock(), SystemRng())
    error = await failed(client)
    assert (error.reason, error.code.name) == (UNAVAILABLE, "UNAVAILABLE")
    with pytest.raises(IdentityProviderError):
        await client.authorization_url(
            redirect_uri=REDIRECT_URI, state="s", nonce="n", code_challenge="c"
        )


async def test_discovery_is_tried_again_until_it_works(
    client: Provider, idp: HostileProvider
) -> None:
    for answer, reason in (
        (Reply(503), UNAVAILABLE),
        (Reply(404), MISCONFIGURED),
        (Reply(301, b"", {"Location": f"{idp.issuer}/elsewhere"}), RESPONSE),
        (Reply(200, b"<html>"), RESPONSE),
        (Reply.of({"issuer": "https://evil.example"}), MISCONFIGURED),
    ):
        idp.answers[DISCOVERY] = answer
        assert (await failed(client)).reason == reason
    del idp.answers[DISCOVERY]
    assert (await sign_in(client)).user_id == "user-1"
    assert idp.count(DISCOVERY) == 6


async def test_a_stalling_provider_is_given_up(
    idp: HostileProvider, http: httpx.AsyncClient
) -> None:
    """One byte at a time keeps every read short: the limit is on the whole."""
    idp.answers["/token"] = Reply(drip=True)
    transport = ProviderTransport(http, timeout_s=0.2)
    with pytest.raises(IdentityProviderError, match=r"0\.2 s"):
        async with asyncio.timeout(20):
            await transport.get(f"{idp.issuer}/token")


async def test_cookies_of_one_login_do_not_reach_the_next(
    client: Provider, idp: HostileProvider, http: httpx.AsyncClient
) -> None:
    def with_cookie(asked: Asked) -> Reply:
        headers = {"Content-Type": "application/json", "Set-Cookie": "user=first; Path=/"}
        return Reply(200, json.dumps(idp.tokens()).encode(), headers)

    idp.answers["/token"] = with_cookie
    await sign_in(client)
    await sign_in(client)
    assert [one for one in idp.asked if "cookie" in one.headers] == []
    assert len(http.cookies.jar) == 0


@pytest.mark.parametrize("path", [DISCOVERY, "/jwks", "/userinfo"])
async def test_a_question_cut_short_is_asked_once_more(
    client: Provider, idp: HostileProvider, http: httpx.AsyncClient, path: str
) -> None:
    """A connection that was kept may end just as it is used."""

    def cut_once(_asked: Asked) -> Reply:
        del idp.answers[path]
        return Reply(cut=True)

    idp.answers[path] = cut_once
    assert (await sign_in(client)).user_id == "user-1"
    assert idp.count(path) == 2
    idp.answers[path] = Reply(cut=True)
    other = make_provider(provider_settings(idp.issuer), http, SystemClock(), SystemRng())
    assert (await failed(other)).reason == UNAVAILABLE
    assert idp.count(path) == 4


async def test_a_code_is_never_sent_twice(client: Provider, idp: HostileProvider) -> None:
    """It may have been redeemed; a second try could make the provider revoke what it gave."""
    idp.answers["/token"] = Reply(cut=True)
    assert (await failed(client)).reason == UNAVAILABLE
    with pytest.raises(IdentityProviderError):
        await client.refresh("refresh-token", subject="user-1")
    assert idp.count("/token") == 2


@pytest.mark.parametrize("path", ["/token", "/userinfo", "/jwks", "/revoke"])
async def test_r60_no_answer_leads_the_client_anywhere(
    client: Provider, idp: HostileProvider, path: str
) -> None:
    """A provider that is taken over must not make us ask inside our own network."""
    for status in (301, 302, 303, 307, 308):
        idp.answers[path] = Reply(status, b"", {"Location": f"{idp.issuer}/inside"})
        asks: dict[str, Callable[[], Awaitable[object]]] = {
            "/revoke": lambda: client.revoke(access_token="a", refresh_token="r")
        }
        with pytest.raises(IdentityProviderError):
            await asks.get(path, lambda: sign_in(client))()
    assert idp.count("/inside") == 0


async def test_a_clock_that_is_wrong_is_named_as_what_it_is(
    idp: HostileProvider, http: httpx.AsyncClient
) -> None:
    for offset_s, says in ((-301.0, "iat is in the future"), (331.0, "is expired")):
        clock = FakeClock(SystemClock().now_s() + offset_s)
        client = make_provider(provider_settings(idp.issuer), http, clock, SystemRng())
        assert says in str(await refused(client))
    for offset_s in (-290.0, 325.0):
        clock = FakeClock(SystemClock().now_s() + offset_s)
        client = make_provider(provider_settings(idp.issuer), http, clock, SystemRng())
        assert (await sign_in(client)).user_id == "user-1"
