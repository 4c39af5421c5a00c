"""The corpus of R26: spellings made by rule, which no reader may take for one of our hosts."""
# ruff: noqa: E501, RUF001 - a table of deliberately confusing text

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.session.redirects import check_redirect

OWN = "app.example.com"
EVIL = "evil.test"


def allowed(host: str) -> bool:
    """One exact host, one wildcard of one label, and loopback."""
    return host in {OWN, "localhost", "127.0.0.1", "::1"} or (
        host.endswith(".wild.example.com") and host.count(".") == 3
    )


GOOD = [
    f"https://{OWN}",
    f"https://{OWN}/",
    f"https://{OWN}:443/",
    f"https://{OWN}:8443/a/b?c=d&e=%2F%2Fevil.test#f",
    f"https://{OWN}/?next=https://evil.test/@x",
    f"https://{OWN}/a//b",
    f"https://{OWN}/@evil.test",
    f"https://{OWN}/a:b@c",
    f"https://{OWN}/%C3%BC%20",
    f"https://{OWN}?q",
    f"https://{OWN}./",
    f"HTTPS://{OWN.upper()}/Path",
    "https://x.wild.example.com/",
    "https://127.0.0.1:9000/cb",
    "https://[::1]:9000/cb",
    "https://[0:0:0:0:0:0:0:1]/",
]


@pytest.mark.parametrize("url", GOOD)
def test_ordinary_targets_are_accepted(url: str) -> None:
    parsed = check_redirect(url, allowed_hosts=allowed)
    assert parsed.geturl().lower() == url.lower()


def _corpus() -> list[str]:
    urls: set[str] = set()
    controls = [chr(code) for code in (0, 1, 8, 9, 10, 11, 12, 13, 27, 31, 32, 127)]
    encoded = [f"%{ord(character):02x}" for character in controls]
    slashes = ["/", "\\", "%2f", "%2F", "%5c", "%5C", "\uff0f", "\u2044", "\u2215", "\u29f5"]

    # no scheme: relative, scheme-relative, and what browsers make of those
    for left, right in product(slashes, repeat=2):
        urls |= {f"{left}{right}{EVIL}", f"{left}{right}{EVIL}/{OWN}", f"{left}{left}{right}{EVIL}"}
    for gap in [*controls, *encoded, ".", "..", ";", "@", ":"]:
        urls |= {f"/{gap}/{EVIL}", f"{gap}//{EVIL}", f"/{gap}{EVIL}", f"\\{gap}/{EVIL}"}

    # slashes after the scheme
    for scheme, separator in product(
        ["https:", "https", ":", "http:", "javascript:", "data:", "file:", "ftp:", "wss:", "about:",
         "vbscript:", "blob:https:", "view-source:https:", "filesystem:https:", "x-y:"],
        ["", "/", "///", "////", "\\\\", "/\\", "\\/", "/%2f", "%2f%2f"],
    ):  # fmt: skip
        urls.add(f"{scheme}{separator}{OWN}/")
    for scheme in (
        "http",
        "javascript",
        "data",
        "file",
        "ftp",
        "wss",
        "ws",
        "ht tps",
        "https\t",
        "",
    ):
        urls.add(f"{scheme}://{OWN}/")

    # userinfo
    for user in (OWN, f"{OWN}:443", f"{OWN}:x", "", ":", "%00", "x", f"{OWN}%2f", f"https://{OWN}"):
        urls |= {
            f"https://{user}@{EVIL}/",
            f"https://{user}@{OWN}/",
            f"https://{user}@{EVIL}@{OWN}/",
        }
    urls |= {
        f"https://{OWN}@",
        f"https://@{OWN}",
        f"https://{EVIL}@{OWN}:443/",
        f"https://{OWN}%40{EVIL}",
    }

    # prefix and suffix tricks
    for trick in (
        f"{OWN}.{EVIL}", f"{EVIL}.{OWN}", f"x{OWN}", f"x.{OWN}", f"{OWN}x", f"{OWN}-x.test",
        f".{OWN}", f"..{OWN}", f"{OWN}..", f"-{OWN}", f"{OWN}-", "app..example.com",
        "example.com", "com", "appexample.com", "app-example.com", "app.example.com.",
        "badwild.example.com", "wild.example.com", "a.b.wild.example.com", ".wild.example.com",
        "*.wild.example.com", "x.wild.example.com.evil.test", "app.example.org", "xn--app.example.com",
        "app。example。com", "app.example．com", "аpp.example.com", "app.exampl\u0435.com",
        "ａpp.example.com", "app.example.com\u200b", "app\u00ad.example.com", "ⓐpp.example.com",
        "app.example.com%00.evil.test", "app.example.com%2eevil.test", "app%2eexample.com",
        "app.example.com%20.evil.test", "app.example.com,evil.test", "app.example.com;evil.test",
        "app.example.com|evil.test", "app.example.com&evil.test", "app.example.com'.evil.test",
        "localhost.evil.test", "notlocalhost", "localhost..", "a" * 64 + ".wild.example.com",
    ):  # fmt: skip
        if trick != f"{OWN}.":  # the trailing dot names the same host
            urls |= {f"https://{trick}/", f"https://{trick}", f"https://{trick}:443/x"}

    # characters between host and path, and anywhere else
    for character in [*controls, "\\", "\x80", "\xa0", "\u2028", "\ufeff", "\ud800"]:
        urls |= {
            f"https://{OWN}{character}{EVIL}/", f"https://{OWN}{character}@{EVIL}/",
            f"https://{EVIL}{character}{OWN}/", f"https://{EVIL}{character}.{OWN}/",
            f"{character}https://{OWN}/", f"https://{OWN}/{character}", f"https://{character}{OWN}/",
            f"ht{character}tps://{OWN}/", f"https:/{character}/{OWN}/", f"https:{character}//{OWN}/",
            f"https://{OWN}/?q={character}", f"https://{OWN}/#{character}",
        }  # fmt: skip
    for delimiter in ("#", "?", "/", ":", "%23", "%3f", "%2f", "%3a", "%5c", "%09", "%0d%0a"):
        urls |= {f"https://{EVIL}{delimiter}{OWN}/", f"https://{EVIL}{delimiter}@{OWN}/"}

    # paths that another reader could take for a host
    for start in ("//", "/\\", "/%2f", "/%5c", "/%09/", "/%00", "/%0a/", "/%0D%0A", "/a/%2e%2e%2f"):
        urls.add(f"https://{OWN}{start}{EVIL}")

    # ports
    for port in ("0", "65536", "99999", "443x", "x", "-1", "+443", "0x1bb", "443:443", "443@evil.test",
                 "4 43", "٤٤٣", "443%00", "000443443", "443.evil.test"):  # fmt: skip
        urls.add(f"https://{OWN}:{port}/")

    # addresses: spellings of loopback and of others that readers disagree on
    for address in (
        "127.1", "127.0.1", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "017700000001",
        "127.0.0.1.", "127.0.0.01", "127.0.0.1.0", "127.0.0.256", "127.0.0.0x1", "1.0x", "0x",
        "127。0。0。1", "①②⑦.0.0.1", "8.8.8.8", "[::]", "[::ffff:127.0.0.1]", "[::1", "::1", "[::1]x",
        "[::1%25lo]", "[::1%lo]", "[]", "[:]", "[g::1]", "[127.0.0.1]", "[1:2:3:4:5:6:7:8:9]",
        "[::1].evil.test", "[::1]evil.test", "[v1.x]", "[[::1]]", "[::1]:99999", "[::1]@evil.test",
    ):  # fmt: skip
        if address != "127.0.0.1.":
            urls |= {f"https://{address}/", f"https://{address}:80/"}

    # repeated or nested
    urls |= {
        "", " ", "https://", "https:///", "https://?", "https://#", "https://:443/", "https://./",
        f"https://{OWN}/" + "a" * 8192, f"https://{'a.' * 200}wild.example.com/", "https",
        f"https://https://{OWN}/", f"https:https://{OWN}/", f"https://{OWN}\n.{EVIL}", EVIL, OWN,
        f"//{OWN}/", f"/{OWN}", "/", "/path", "?q", "#f", f"\\\\{OWN}\\", f"https;//{OWN}/",
        f"https://{OWN}:443:80/", f"<https://{OWN}/>", f'"https://{OWN}/"', f"url:https://{OWN}/",
    }  # fmt: skip
    return sorted(urls)


CORPUS = _corpus()


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) > 500


def test_r26_redirects_only_to_known_hosts() -> None:
    """One test for all, since a failure should list every spelling that slips through."""
    slipped = []
    for url in CORPUS:
        try:
            parsed = check_redirect(url, allowed_hosts=allowed)
        except InvalidArgumentError:
            continue
        slipped.append((url, parsed.netloc))
    assert slipped == []


def test_r26_the_host_check_is_asked_with_a_canonical_name() -> None:
    seen: list[str] = []

    def remember(host: str) -> bool:
        seen.append(host)
        return True

    for url in (f"HTTPS://{OWN.upper()}.:8443/x", "https://[0:0::1]/", "https://127.0.0.1./"):
        check_redirect(url, allowed_hosts=remember)
    assert seen == [OWN, "::1", "127.0.0.1"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_schemes_are_the_callers_choice(scheme: str) -> None:
    url = f"{scheme}://localhost:9000/cb"
    check_redirect(url, allowed_hosts=allowed, schemes=("http", "https"))
    if scheme == "http":
        with pytest.raises(InvalidArgumentError, match="https://"):
            check_redirect(url, allowed_hosts=allowed)


def test_messages_do_not_repeat_the_target() -> None:
    for url in (f"https://{EVIL}/", f"//{EVIL}", f"https://{EVIL}\\", f"http://{EVIL}/"):
        with pytest.raises(InvalidArgumentError) as caught:
            check_redirect(url, allowed_hosts=allowed)
        assert EVIL not in str(caught.value)


@given(
    st.text(max_size=30), st.sampled_from(["", "https://", "https://app.example.com", "//", "/"])
)
def test_nothing_else_is_raised_and_nothing_foreign_accepted(text: str, start: str) -> None:
    try:
        parsed = check_redirect(start + text, allowed_hosts=allowed)
    except InvalidArgumentError:
        return
    assert allowed((parsed.hostname or "").removesuffix("."))
    assert parsed.scheme == "https"


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        check_redirect("https://app.example.com/\udcff", allowed_hosts=allowed)


@pytest.mark.parametrize(
    "host",
    ["127.1", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "127.0.0.256", "1.0x", "a.1"],
)
def test_r26_numeric_spellings_are_refused_whatever_is_allowed(host: str) -> None:
    """A caller with a wide rule must not be asked about a name that browsers read as an address."""
    with pytest.raises(InvalidArgumentError, match="IPv4"):
        check_redirect(f"https://{host}/", allowed_hosts=lambda _host: True)
