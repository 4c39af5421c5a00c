from __future__ import annotations

import base64
from urllib.parse import urlencode

import pytest

from gatehouse.common.errors import Code
from gatehouse.common.jose.aead import seal
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.pages.refusal import RefusedRequestError
from gatehouse.common.session.cookies import clear_cookie
from gatehouse.common.session.handle import Handle, encode_handle
from gatehouse.common.session.login_binding import cookie_name, new_login_binding
from gatehouse.proxy.core.callback import Restart, read_callback, used_already
from gatehouse.proxy.core.pages_view import pages_view
from tests.support.clock import SeededRng
from tests.support.redirect_corpus import hostile_targets
from tests.support.sign_in import query_of
from tests.support.web_settings import APP, SHARED, settings

NOW = 1_800_000_000.0
VIEW = pages_view(settings())
BINDING = new_login_binding(SeededRng(1))
HOLDER = [f"{cookie_name('_pomerium')}={BINDING.nonce}"]


def token(use="route", key=SHARED):
    handle = Handle("s1", "u1", "i", 1, 2, "a", (APP,), int(NOW), use)
    return encode_handle(handle, key)


def sealed(text=None, key=SHARED):
    made = seal(key, (text or token()).encode(), nonce=SeededRng(2).token_bytes(24))
    return base64.urlsafe_b64encode(made).decode()


def params(**changes):
    values = {
        "pomerium_session_encrypted": sealed(),
        "pomerium_redirect_uri": f"https://{APP}/page?a=b",
        "gatehouse_login": BINDING.digest,
    }
    return {name: value for name, value in (values | changes).items() if value is not None}


def read(given=None, cookies=HOLDER, view=VIEW):
    given = params() if given is None else given
    url = sign_url(f"https://{APP}/.pomerium/callback/?{urlencode(given)}", SHARED, now_s=NOW)
    return read_callback(view, given, cookies, host=APP, url=url, now_s=NOW)


def refused(*args, **kwargs):
    with pytest.raises(RefusedRequestError) as caught:
        read(*args, **kwargs)
    assert caught.value.status == 400
    assert caught.value.canonical_code is Code.INVALID_ARGUMENT
    return caught.value


def test_the_browser_that_asked_gets_the_session():
    accepted = read()
    assert accepted.location == f"https://{APP}/page?a=b"
    (session,) = accepted.set_cookies  # other tabs may still need the binding
    assert session.startswith(f"_pomerium={token()}; Path=/; Expires=")
    assert "; Max-Age=50400;" in session  # a browser's clock may be wrong
    assert "Secure" in session
    assert "HttpOnly" in session
    assert "Domain" not in session


def test_r31_a_callback_burns_its_binding_for_every_callback_of_that_sign_in():
    """Whoever has seen the sign-in URL could have another callback made for the same browser."""
    first = read()
    assert first.lease_name.startswith("gatehouse/callback/")
    assert len(first.lease_name) == len("gatehouse/callback/") + 64
    assert BINDING.digest not in first.lease_name
    assert read(params(pomerium_redirect_uri=f"https://{APP}/")).lease_name == first.lease_name
    # the sign-in URL, the way to the provider and back, the callback URL
    assert first.lease_s >= 7 * 60 + 900 + 7 * 60
    other = new_login_binding(SeededRng(3), BINDING.nonce)
    assert read(params(gatehouse_login=other.digest)).lease_name != first.lease_name


def test_r30_a_programs_callback_url_has_one_lease_for_as_long_as_it_is_valid():
    first = read(programmatic(), cookies=[])
    assert read(programmatic(), cookies=[]).lease_name == first.lease_name
    other = read(programmatic(pomerium_redirect_uri="http://127.0.0.1:8000/"), cookies=[])
    assert other.lease_name != first.lease_name
    assert first.lease_s >= 300 + 60 + 60


def test_r31_another_sign_ins_callback_gives_no_session_and_begins_anew():
    """Two tabs sent to sign in at once, or an attacker's link: the browser's own cookie decides."""
    other = new_login_binding(SeededRng(9)).nonce
    cookies = [f"{cookie_name('_pomerium')}={other}"]
    assert read(cookies=cookies) == Restart(f"https://{APP}/page?a=b")
    for target in hostile_targets(APP):
        error = refused(params(pomerium_redirect_uri=target), cookies=cookies)
        assert error.reason == "redirect-target", target


@pytest.mark.parametrize(
    "cookies",
    [
        [],
        [f"{cookie_name('_pomerium')}="],
        [*HOLDER, f"{cookie_name('_pomerium')}={new_login_binding(SeededRng(9)).nonce}"],
        [f"_pomerium_login_binding={BINDING.nonce}"],
        [f"_pomerium_login_{BINDING.digest[:16]}={BINDING.nonce}"],
        [f"_pomerium={token()}"],
    ],
)
def test_r31_another_browser_gets_nothing(cookies):
    assert refused(cookies=cookies).reason == "login-binding"


@pytest.mark.parametrize("digest", [None, "", "x", "d" * 64, BINDING.digest[:-1], "../../x"])
def test_r31_a_callback_without_its_binding_is_refused(digest):
    assert refused(params(gatehouse_login=digest)).reason == "login-binding"


def test_r26_the_browser_is_sent_nowhere_else():
    for target in hostile_targets(APP):
        assert refused(params(pomerium_redirect_uri=target)).reason == "redirect-target", target


def test_r26_a_program_is_not_sent_anywhere_else_either():
    loopback = {"https://127.0.0.1/", "https://[::1]/"}
    for target in set(hostile_targets(APP)) - loopback:
        error = refused(programmatic(pomerium_redirect_uri=target), cookies=[])
        assert error.reason == "redirect-target", target


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "AAAA",
        "%%%",
        "é",
        sealed(key=b"x" * 32),
        sealed(text="not a token"),
        sealed(text=token(key=b"x" * 32)),
        sealed(text=token(use="authenticate")),
        sealed(text=token(use="api")),
        sealed()[:-4],
        "A" + sealed()[1:],
    ],
)
def test_r49_a_session_that_does_not_open_is_refused(value):
    assert refused(params(pomerium_session_encrypted=value)).reason == "callback-session"


def programmatic(**changes):
    values = {
        "pomerium_session_encrypted": sealed(text=token(use="api")),
        "pomerium_redirect_uri": "http://127.0.0.1:8000/cb?x=1#part",
        "pomerium_programmatic": "true",
        "gatehouse_login": None,
    }
    return params(**(values | changes))


def test_a_program_gets_its_token_and_the_browser_no_cookie():
    accepted = read(programmatic(), cookies=[])
    assert accepted.set_cookies == ()
    assert accepted.location == (f"http://127.0.0.1:8000/cb?x=1&pomerium_jwt={token(use='api')}")
    assert query_of(accepted.location)["x"] == "1"


def test_r31_a_programs_callback_cannot_carry_a_browsers_session():
    assert refused(programmatic(pomerium_session_encrypted=sealed()), cookies=[])


def test_a_programs_address_is_checked_again():
    for target in ("https://evil.example.net/", f"https://{APP}/", "ftp://localhost/"):
        error = refused(programmatic(pomerium_redirect_uri=target), cookies=[])
        assert error.reason == "redirect-target"


def test_a_used_link_leads_on_to_the_application():
    error = used_already(read())
    assert (error.status, error.reason) == (400, "callback-replayed")
    assert [link.href for link in error.links] == [f"https://{APP}/page?a=b"]
    assert used_already(read(programmatic(), cookies=[])).links == ()


def test_the_cookie_follows_the_settings():
    view = pages_view(
        settings(
            cookie_name="_gate",
            cookie_domain="example.com",
            cookie_http_only=False,
            cookie_same_site="lax",
        )
    )
    cookies = [f"{cookie_name('_gate')}={BINDING.nonce}"]
    (session,) = read(cookies=cookies, view=view).set_cookies
    assert session.startswith("_gate=")
    assert "Domain=example.com" in session
    assert "SameSite=Lax" in session
    assert "HttpOnly" not in session


def test_session_cookies_of_another_scope_give_way_to_the_new_one():
    """A browser would send them first, and the sign-in would never end."""
    for domain, others in (("", ["example.com", APP]), ("example.com", ["", APP])):
        view = pages_view(settings(cookie_domain=domain))
        *cleared, session = read(cookies=[*HOLDER, "_pomerium=old"], view=view).set_cookies
        assert session.startswith(f"_pomerium={token()}; Path=/;")
        assert cleared == [clear_cookie("_pomerium", domain=other) for other in others]
        assert len(read(view=view).set_cookies) == 1
