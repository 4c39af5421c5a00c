from __future__ import annotations

import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.jose.compact import (
    base64url_decode,
    base64url_encode,
    parse_compact,
    parse_json_object,
)


def part(text: str | bytes) -> str:
    raw = text.encode() if isinstance(text, str) else text
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def token(header: str = '{"alg":"HS256"}', claims: str = "{}", signature: str = "AAAA") -> str:
    return f"{part(header)}.{part(claims)}.{signature}"


def test_takes_a_token_apart() -> None:
    parsed = parse_compact(token(claims='{"a":[1,{"b":null}]}'))
    assert parsed.header == {"alg": "HS256"}
    assert parsed.claims == {"a": [1, {"b": None}]}
    assert parsed.signature == b"\0\0\0"
    assert parsed.signing_input == token(claims='{"a":[1,{"b":null}]}').rpartition(".")[0].encode()


@pytest.mark.parametrize(
    "bad",
    [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c.d",
        token() + ".",
        token() + "=",
        token() + " ",
        token() + "\n",
        " " + token(),
        token().replace(".", "..", 1),
        token(signature="AAA="),
        token(signature="AA+/"),
        token(signature="AB"),  # stray bits: a second spelling of the byte 0
        token(signature="A"),
        token(signature="ÄÄÄÄ"),
        token(header="[]"),
        token(header='"alg"'),
        token(header="{}"),
        token(header='{"alg":null}'),
        token(header='{"alg":["HS256"]}'),
        token(header='{"alg":"HS256","alg":"none"}'),
        token(header='{"alg":"HS256","jku":"https://evil.example/k"}'),
        token(header='{"alg":"HS256","x5u":"https://evil.example/k"}'),
        token(header='{"alg":"HS256","x5c":[]}'),
        token(header='{"alg":"HS256","jwk":{}}'),
        token(header='{"alg":"HS256","crit":["exp"]}'),
        token(header='{"alg":"HS256","b64":false}'),
        token(header='{"alg":"dir","enc":"A256GCM","zip":"DEF"}'),
        token(claims="[]"),
        token(claims="{"),
        token(claims="{} {}"),
        token(claims='{"sub":"a","sub":"b"}'),
        token(claims='{"x":{"y":1,"y":2}}'),
        token(claims='{"exp":NaN}'),
        token(claims='{"exp":Infinity}'),
        token(claims='{"exp":1e999}'),
        token(claims='{"sub":"\\ud800"}'),
        token(claims='{"n":' + "9" * 5000 + "}"),
        token(claims='{"a":' + "[" * 5000 + "]" * 5000 + "}"),
        part('{"alg":"HS256"}') + "." + part(b'{"a":"\xff"}') + ".AAAA",
        part(b'\xef\xbb\xbf{"alg":"HS256"}') + "." + part("{}") + ".AAAA",
        '{"payload":"e30","signatures":[{"protected":"","signature":""}]}',
    ],
)
def test_r37_refuses_every_other_form(bad: str) -> None:
    with pytest.raises(InvalidTokenError):
        parse_compact(bad)


def test_r29_a_hundred_thousand_dots_cost_nothing() -> None:
    started = time.perf_counter()
    for bad in ("." * 100_000, "a." * 50_000, "A" * 10_000_000):
        with pytest.raises(InvalidTokenError, match="longer"):
            parse_compact(bad)
    with pytest.raises(InvalidTokenError, match="three"):
        parse_compact("." * 10_000)
    assert time.perf_counter() - started < 1


def test_messages_do_not_repeat_the_token() -> None:
    secret = "s3cr3t-in-the-middle"
    for bad in (secret, token(claims=secret), token(header=secret), f"{secret}.{secret}.{secret}"):
        with pytest.raises(InvalidTokenError) as caught:
            parse_compact(bad)
        assert secret not in str(caught.value)
        assert part(secret) not in str(caught.value)


@given(st.binary(max_size=100))
def test_base64url_has_one_spelling(raw: bytes) -> None:
    text = base64url_encode(raw)
    assert base64url_decode(text) == raw
    for other in (text + "=", text + "\n", " " + text):
        with pytest.raises(ValueError):
            base64url_decode(other)


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
        max_size=5,
    )
)
def test_json_objects_survive(value: dict[str, object]) -> None:
    assert parse_json_object(json.dumps(value).encode()) == value
    assert parse_json_object(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.text(max_size=300))
def test_garbage_is_refused_and_nothing_else_is_raised(text: str) -> None:
    with pytest.raises(InvalidTokenError):
        parse_compact(text + "\x00")
