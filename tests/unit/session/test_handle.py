from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.hs256 import encode_hs256
from gatehouse.common.session.handle import Handle, Use, decode_handle, encode_handle

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
ANY = frozenset({"authenticate", "route", "api"})
ROUTE = frozenset({"route"})

HANDLE = Handle(
    session_id="7b1f4c1e-0000-4000-8000-000000000001",
    user_id="user-1",
    idp_id="idp",
    server_version=18446744073709551615,
    record_version=7,
    issuer="authenticate.example.com",
    audience=("authenticate.example.com", "app.example.com"),
    issued_at=1_700_000_000,
    use="route",
)
CLAIMS: dict[str, Any] = {
    "jti": HANDLE.session_id,
    "sub": "user-1",
    "iss": "authenticate.example.com",
    "aud": ["authenticate.example.com", "app.example.com"],
    "iat": 1_700_000_000,
    "use": "route",
    "idp_id": "idp",
    "databroker_server_version": 18446744073709551615,
    "databroker_record_version": 7,
}


def test_claims_are_those_of_the_specification() -> None:
    token = encode_handle(HANDLE, KEY)
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    payload = token.split(".")[1]
    assert json.loads(base64.urlsafe_b64decode(payload + "==")) == CLAIMS
    assert decode_handle(token, [OTHER, KEY], allowed_uses=ROUTE) == HANDLE
    assert len(token) < 700


@given(
    st.builds(
        Handle,
        session_id=st.uuids().map(str),
        user_id=st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=50),
        idp_id=st.sampled_from(["", "idp"]),
        server_version=st.none() | st.integers(0, 2**64 - 1),
        record_version=st.none() | st.integers(0, 2**64 - 1),
        issuer=st.just("a.example.com"),
        audience=st.lists(st.sampled_from(["a", "b"])).map(tuple),
        issued_at=st.integers(0, 2**32),
        use=st.sampled_from(["authenticate", "route", "api"]),
    )
)
def test_round_trip(handle: Handle) -> None:
    assert decode_handle(encode_handle(handle, KEY), [KEY], allowed_uses=ANY) == handle


@pytest.mark.parametrize("use", ["authenticate", "route", "api"])
def test_one_kind_is_never_accepted_as_another(use: Use) -> None:
    token = encode_hs256({**CLAIMS, "use": use}, KEY)
    for allowed in ({"authenticate"}, {"route"}, {"api"}, {"route", "api"}, set()):
        if use in allowed:
            assert decode_handle(token, [KEY], allowed_uses=frozenset(allowed)).use == use
        else:
            with pytest.raises(InvalidTokenError, match="use"):
                decode_handle(token, [KEY], allowed_uses=frozenset(allowed))


def test_handles_without_use_need_the_callers_word() -> None:
    token = encode_hs256({name: CLAIMS[name] for name in CLAIMS if name != "use"}, KEY)
    with pytest.raises(InvalidTokenError, match="use"):
        decode_handle(token, [KEY], allowed_uses=ANY)
    assert decode_handle(token, [KEY], allowed_uses=ROUTE, unmarked_use="route") == HANDLE
    with pytest.raises(InvalidTokenError, match="use"):
        decode_handle(token, [KEY], allowed_uses=ROUTE, unmarked_use="authenticate")
    marked = encode_hs256({**CLAIMS, "use": "authenticate"}, KEY)
    with pytest.raises(InvalidTokenError, match="use"):
        decode_handle(marked, [KEY], allowed_uses=ROUTE, unmarked_use="route")


@pytest.mark.parametrize(
    "change",
    [
        {"jti": ""},
        {"jti": None},
        {"jti": 7},
        {"jti": "a" * 513},
        {"jti": "a\x00b"},
        {"jti": "a\nb"},
        {"sub": ["user-1"]},
        {"sub": "u\x7f"},
        {"idp_id": 1},
        {"iss": {}},
        {"aud": {"a": 1}},
        {"aud": [1]},
        {"aud": ["a"] * 65},
        {"iat": "now"},
        {"iat": -1},
        {"iat": 10**15},
        {"use": "Route"},
        {"use": ""},
        {"use": None},
        {"use": ["route"]},
        {"databroker_server_version": -1},
        {"databroker_server_version": 2**64},
        {"databroker_server_version": True},
        {"databroker_record_version": "7"},
        {"databroker_record_version": 7.0},
        {"exp": 4_000_000_000},  # cannot be judged without a clock
        {"nbf": 1},
    ],
)
def test_signed_nonsense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidTokenError):
        decode_handle(encode_hs256({**CLAIMS, **change}, KEY), [KEY], allowed_uses=ANY)


def test_jti_is_required() -> None:
    claims = {name: value for name, value in CLAIMS.items() if name != "jti"}
    with pytest.raises(InvalidTokenError, match="no session"):
        decode_handle(encode_hs256(claims, KEY), [KEY], allowed_uses=ANY)


def test_r38_time_limits_are_kept_where_there_is_a_clock() -> None:
    token = encode_hs256({**CLAIMS, "use": "api", "exp": 2_000_000_000, "nbf": 1_700_000_000}, KEY)
    assert decode_handle(token, [KEY], allowed_uses=ANY, now_s=1_800_000_000).use == "api"
    for now_s in (2_000_000_000, 1_699_999_000):
        with pytest.raises(InvalidTokenError, match=r"expired|future"):
            decode_handle(token, [KEY], allowed_uses=ANY, now_s=now_s)


def _malformed_cookies() -> dict[str, str]:
    good = encode_handle(HANDLE, KEY)
    head, claims, signature = good.split(".")
    none_header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return {
        "empty": "",
        "foreign key": encode_handle(HANDLE, OTHER),
        "alg none": f"{none_header}.{claims}.",
        "alg none, old signature": f"{none_header}.{claims}.{signature}",
        "HS384": jwt.encode(CLAIMS, KEY * 2, "HS384"),
        "HS512 with our key": jwt.PyJWS().encode(json.dumps(CLAIMS).encode(), KEY * 2, "HS512"),
        "no signature": f"{head}.{claims}.",
        "two parts": f"{head}.{claims}",
        "swapped parts": f"{claims}.{head}.{signature}",
        "8 KB of a": "a" * 8192,
        "8 KB of dots": "." * 8192,
        "8 KB of JSON": f"{head}.{base64.urlsafe_b64encode(b'{' * 6000).decode()}.{signature}",
        "20 KB": good + "A" * 20_000,
        "NUL": "\x00",
        "NUL inside": good[:50] + "\x00" + good[51:],
        "NUL at the end": good + "\x00",
        "newline at the end": good + "\n",
        "quoted": f'"{good}"',
        "percent-encoded": good.replace(".", "%2E"),
        "standard base64": good.replace("_", "/").replace("-", "+") + "==",
        "unicode": "\u212a" * 100,
        "lone surrogate": "\udc80.\udc80.\udc80",
        "bad base64": "!!!.???.###",
        "gzip": "\x1f\x8b\x08" + "A" * 100,
        "other typ": encode_hs256(CLAIMS, KEY, typ="gatehouse-call"),
        "RPC token": encode_hs256({"exp": 4_000_000_000}, KEY),
        "two tokens": f"{good},{good}",
    }


@pytest.mark.parametrize(
    ("name", "cookie"), _malformed_cookies().items(), ids=list(_malformed_cookies())
)
def test_r49_malformed_cookies_are_refused(name: str, cookie: str) -> None:
    with pytest.raises(InvalidTokenError):
        decode_handle(cookie, [KEY], allowed_uses=ANY, unmarked_use="route")


def test_r49_every_truncation_is_refused() -> None:
    token = encode_handle(HANDLE, KEY)
    for length in range(len(token)):
        with pytest.raises(InvalidTokenError):
            decode_handle(token[:length], [KEY], allowed_uses=ANY, unmarked_use="route")


def test_handles_that_could_not_be_read_are_not_made() -> None:
    for session_id in ("", "a" * 513):
        broken = Handle(session_id, "u", "", None, None, "", (), 0, "route")
        with pytest.raises(InvalidArgumentError):
            encode_handle(broken, KEY)
    with pytest.raises(InvalidArgumentError):
        encode_handle(Handle("s", "u", "", None, None, "", (), 0, "other"), KEY)  # type: ignore[arg-type]
