from __future__ import annotations

import base64
import hmac
import itertools
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.signed_url import sign_url, signature_digest, verify_url

KEY = b"k" * 32
OTHER = b"o" * 32
NOW = 1_700_000_000.25
URL = (
    "https://a.example.com/.pomerium/sign_in?pomerium_redirect_uri=https%3A%2F%2Fapp.example.com%2F"
)

VECTOR = (
    "https://pomerium.io?pomerium_expiry=1574118151&pomerium_issued=1574117851"
    "&pomerium_signature=XtvM-Y-oPvoGGV2Q5G0vrQ_CgNeYhVyTG5dHIqLsBOU%3D"
)


def test_known_vector() -> None:
    assert sign_url("https://pomerium.io", b"test-key", now_s=1574117851) == VECTOR
    verify_url(VECTOR, [b"test-key"], now_s=1574117851)


def test_message_by_hand() -> None:
    """`pomerium_expiry` sorts before `pomerium_issued`; no separator, then one space."""
    signed = sign_url("https://h/p?z=1&a=b c".replace(" ", "+"), KEY, now_s=NOW)
    unsigned = "https://h/p?a=b+c&pomerium_expiry=1700000300&pomerium_issued=1700000000&z=1"
    expected = hmac.digest(KEY, f"{unsigned}1700000000 1700000300".encode(), "sha512_256")
    query = dict(parse_qsl(signed.partition("?")[2]))
    assert len(expected) == 32
    assert base64.urlsafe_b64decode(query["pomerium_signature"]) == expected


def test_a_browser_may_reorder_and_respell_but_not_change() -> None:
    signed = sign_url(
        "https://h/p?b=x+y&a=1&a=2&a=0&empty=&u=%C3%BC&bare&p=%2F%3a~_-.%21*'()", KEY, now_s=NOW
    )
    base, _, query = signed.partition("?")
    pairs = query.split("&")
    for order in itertools.islice(itertools.permutations(pairs), 0, 5000, 37):
        values = [pair for pair in order if pair.startswith("a=")]
        reordered = f"{base}?{'&'.join(order)}"
        if values == ["a=1", "a=2", "a=0"]:
            verify_url(reordered, [KEY], now_s=NOW)
        else:
            with pytest.raises(InvalidTokenError):
                verify_url(reordered, [KEY], now_s=NOW)
    verify_url(signed.replace("b=x+y", "b=x%20y"), [KEY], now_s=NOW)
    verify_url(signed.replace("%2F%3A", "/:"), [KEY], now_s=NOW)
    verify_url(signed.replace("%3D", "="), [KEY], now_s=NOW)
    verify_url(signed + "&", [KEY], now_s=NOW)


def test_keys_rotate() -> None:
    signed = sign_url(URL, OTHER, now_s=NOW)
    verify_url(signed, [KEY, OTHER], now_s=NOW)
    for keys in ([KEY], []):
        with pytest.raises(InvalidTokenError, match="signature"):
            verify_url(signed, keys, now_s=NOW)


def test_signing_again_replaces_the_old_signature() -> None:
    again = sign_url(sign_url(URL, KEY, now_s=NOW), KEY, now_s=NOW + 100)
    verify_url(again, [KEY], now_s=NOW + 400)
    assert again == sign_url(URL, KEY, now_s=NOW + 100)


@pytest.mark.parametrize(
    ("offset", "good"),
    [(0, True), (-60, True), (-61, False), (300, True), (359, True), (361, False), (1e9, False),
     (-1e9, False)],
)  # fmt: skip
def test_lifetime_and_leeway(offset: float, good: bool) -> None:
    signed = sign_url(URL, KEY, now_s=1_700_000_000)
    if good:
        verify_url(signed, [KEY], now_s=1_700_000_000 + offset)
    else:
        with pytest.raises(InvalidTokenError, match=r"expired|not valid yet"):
            verify_url(signed, [KEY], now_s=1_700_000_000 + offset)


def _alterations(signed: str) -> dict[str, str]:
    base, _, query = signed.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    changed: dict[str, str] = {}
    for name in ("pomerium_signature", "pomerium_expiry", "pomerium_issued"):
        value = dict(pairs)[name]
        without = [pair for pair in pairs if pair[0] != name]
        changed[f"no {name}"] = f"{base}?{urlencode(without)}"
        for other in (
            "",
            "0",
            "-1",
            "x",
            value + "0",
            value[:-1],
            "0" + value,
            " " + value,
            value + " ",
            "+" + value,
            "1e9",
            "9" * 400,
            "٣",
            value.swapcase() + "!",
        ):
            changed[f"{name}={other[:20]!r}"] = f"{base}?{urlencode([*without, (name, other)])}"
        changed[f"{name} twice"] = f"{signed}&{urlencode([(name, value)])}"
        changed[f"{name} twice, other first"] = f"{base}?{name}=1&{query}"
    changed |= {
        "another path": signed.replace("/sign_in", "/sign_out"),
        "another host": signed.replace("a.example.com", "b.example.com"),
        "host case": signed.replace("a.example.com", "A.example.com"),
        "http": signed.replace("https://", "http://"),
        "port": signed.replace("a.example.com", "a.example.com:443"),
        "more": signed + "&x=1",
        "more blank": signed + "&x",
        "another target": signed.replace("app.example.com", "evil.example.com"),
        "target twice": signed + "&pomerium_redirect_uri=https%3A%2F%2Fevil.example",
        "own key twice": signed + "&gatehouse_login=a&gatehouse_login=b",
        "semicolon": signed + ";x=1",
        "fragment": signed + "#x",
        "broken escape": signed + "&x=%zz",
        "newline": signed + "\n",
        "tab": signed.replace("?", "?\t"),
        "nul": signed + "\x00",
        "unicode": signed + "&ü=1",
        "no query": base,
        "empty": "",
        "8 KB": "A" * 8192,
        "oversized": signed + "&x=" + "a" * 17_000,
        "backwards": signed[::-1],
        "double question mark": signed.replace("?", "??"),
    }
    return changed


SIGNED = sign_url(URL, KEY, now_s=NOW)


@pytest.mark.parametrize(("name", "url"), _alterations(SIGNED).items(), ids=_alterations(SIGNED))
def test_r27_stripped_or_altered_urls_are_refused(name: str, url: str) -> None:
    with pytest.raises(InvalidTokenError):
        verify_url(url, [KEY], now_s=NOW)


def test_every_changed_character_is_noticed() -> None:
    for index, character in enumerate(SIGNED):
        other = "A" if character != "A" else "B"
        with pytest.raises(InvalidTokenError):
            verify_url(SIGNED[:index] + other + SIGNED[index + 1 :], [KEY], now_s=NOW)


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8"), max_size=10).map(lambda name: "x" + name),
            st.text(st.characters(codec="utf-8"), max_size=20),
        ),
        max_size=8,
    )
)
def test_whatever_is_signed_verifies(pairs: list[tuple[str, str]]) -> None:
    signed = sign_url(f"https://h/p?{urlencode(pairs)}", KEY, now_s=NOW)
    verify_url(signed, [KEY], now_s=NOW)
    got = [pair for pair in parse_qsl(signed.partition("?")[2], keep_blank_values=True)
           if not pair[0].startswith("pomerium_")]  # fmt: skip
    assert sorted(got) == sorted(pairs)


@pytest.mark.parametrize(
    "url",
    [
        "https://h/p#fragment",
        "https://h/p?x=%zz",
        "https://h/p q",
        "https://h/p?x=1;y=2",
        "https://h/p?pomerium_a=1&pomerium_a=2",
        "https://h/p?x=" + "a" * 20_000,
        "https://h/p?x=" + "a" * 16_300,  # only the result is too long
        "https://h/ü",
    ],
)
def test_what_could_not_be_verified_is_not_signed(url: str) -> None:
    with pytest.raises(InvalidArgumentError):
        sign_url(url, KEY, now_s=NOW)


def test_digest_names_the_signature_not_its_spelling() -> None:
    digest = signature_digest(SIGNED)
    assert len(digest) == 64
    assert signature_digest(SIGNED.replace("%3D", "=")) == digest
    assert signature_digest(sign_url(URL, OTHER, now_s=NOW)) != digest
