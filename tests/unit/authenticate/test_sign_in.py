from __future__ import annotations

import base64
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from gatehouse.authenticate.core import sign_in
from gatehouse.authenticate.core.state import SignInRequest
from gatehouse.authenticate.core.view import view_of
from gatehouse.common.jose.aead import open_sealed
from gatehouse.common.jose.signed_url import verify_url
from gatehouse.common.pages.refusal import RefusedRequestError
from gatehouse.common.session.handle import Handle, decode_handle, encode_handle
from gatehouse.pb.session_pb2 import Session
from tests.support.clock import SeededRng
from tests.support.redirect_corpus import EVIL, hostile_targets
from tests.support.sign_in import query_of
from tests.support.web_settings import APP, IDP_ID, SHARED, provider, route, settings

NOW = 1_800_000_000.0
VIEW = view_of(settings())
DIGEST = "d" * 64
PARAMS = {
    "pomerium_redirect_uri": f"https://{APP}/page?x=1",
    "pomerium_idp_id": IDP_ID,
    "gatehouse_login": DIGEST,
}
HANDLE = Handle(
    session_id="session-1",
    user_id="user-1",
    idp_id=IDP_ID,
    server_version=7,
    record_version=9,
    issuer="authenticate.example.com",
    audience=("authenticate.example.com",),
    issued_at=int(NOW) - 100,
    use="authenticate",
)


def cookie_header(set_cookies):
    """What a browser sends back: cleared cookies are gone."""
    pairs = [line.partition(";")[0] for line in set_cookies if "Max-Age=0" not in line]
    return ["; ".join(pairs)]


def departed(request=None, view=VIEW, now_s=NOW, seed=0, cookies=()):
    request = request or sign_in.read_request(view, PARAMS)
    return sign_in.leave(view, request, cookies, now_s=now_s, rng=SeededRng(seed))


def back(departure, params=None, cookies=None, view=VIEW, now_s=NOW + 10):
    return sign_in.read_callback(
        view,
        {"code": "the-code", "state": departure.state} if params is None else params,
        cookie_header(departure.set_cookies) if cookies is None else cookies,
        now_s=now_s,
    )


def refusal(call, *args, **kwargs):
    with pytest.raises(RefusedRequestError) as caught:
        call(*args, **kwargs)
    return caught.value


# -- the request


def test_a_sign_in_url_says_what_it_is_for():
    request = sign_in.read_request(
        VIEW,
        PARAMS | {"pomerium_additional_hosts": "b.example.com", "pomerium_traceparent": "tp"},
    )
    assert request == SignInRequest(
        redirect_uri=f"https://{APP}/page?x=1",
        idp_id=IDP_ID,
        additional_hosts="b.example.com",
        login_digest=DIGEST,
        traceparent="tp",
    )


@pytest.mark.parametrize("field", ["pomerium_redirect_uri", "pomerium_callback_uri"])
def test_r26_no_spelling_of_a_foreign_target_is_accepted(field):
    targets = hostile_targets(APP)
    assert len(targets) > 300
    good_callback = {"pomerium_callback_uri": f"https://{APP}/.pomerium/callback/"}
    sign_in.read_request(VIEW, PARAMS | good_callback)
    for target in targets:
        if field == "pomerium_callback_uri" and not target:
            continue  # left out, not hostile
        error = refusal(sign_in.read_request, VIEW, PARAMS | good_callback | {field: target})
        assert error.status == 400, target


def test_r26_a_callback_must_be_a_callback():
    for path in ("/", "/.pomerium/callback", "/x/.pomerium/callback/", "/.pomerium/callback/?a=b"):
        params = PARAMS | {"pomerium_callback_uri": f"https://{APP}{path}"}
        assert refusal(sign_in.read_request, VIEW, params).status == 400


def test_a_program_may_be_anywhere_but_its_callback_is_a_route():
    programmatic = {
        "pomerium_redirect_uri": "http://localhost:8080/cb",
        "pomerium_programmatic": "true",
    }
    callback = {"pomerium_callback_uri": f"https://{APP}/.pomerium/callback/"}
    assert sign_in.read_request(VIEW, PARAMS | programmatic | callback).programmatic
    assert refusal(sign_in.read_request, VIEW, PARAMS | programmatic).status == 400
    foreign = {"pomerium_callback_uri": f"https://{EVIL}/.pomerium/callback/"}
    assert refusal(sign_in.read_request, VIEW, PARAMS | programmatic | foreign).status == 400


def test_wildcard_routes_and_ports_are_served():
    view = view_of(settings(routes=(route("https://*.apps.example.com"),)))
    for host in ("a.apps.example.com", "b.apps.example.com:8443", "A.APPS.EXAMPLE.COM"):
        params = PARAMS | {"pomerium_redirect_uri": f"https://{host}/"}
        sign_in.read_request(view, params)
    for host in ("apps.example.com", "xapps.example.com", f"a.apps.example.com.{EVIL}"):
        params = PARAMS | {"pomerium_redirect_uri": f"https://{host}/"}
        assert refusal(sign_in.read_request, view, params).status == 400


# -- the cookie


def own_cookie(handle=HANDLE, key=SHARED):
    return [f"_pomerium_authenticate={encode_handle(handle, key)}"]


def test_a_handle_for_the_right_provider_is_usable():
    request = sign_in.read_request(VIEW, PARAMS)
    assert sign_in.usable_handle(VIEW, own_cookie(), request) == HANDLE


@pytest.mark.parametrize(
    "cookies",
    [
        [],
        ["_pomerium_authenticate="],
        ["_pomerium_authenticate=!!!"],
        ["_pomerium_authenticate=a.b.c"],
        ["_pomerium_authenticate=" + "A" * 8192],
        ["_pomerium_authenticate=\x00"],
        [own_cookie()[0][:-1]],
        [own_cookie()[0] + "x"],
        own_cookie(key=b"x" * 32),
        own_cookie(replace(HANDLE, use="route")),
        own_cookie(replace(HANDLE, use="api")),
        own_cookie(replace(HANDLE, idp_id="another")),
        [own_cookie()[0], own_cookie(replace(HANDLE, session_id="planted"))[0]],
    ],
)
def test_r49_an_unusable_cookie_is_no_session(cookies):
    request = sign_in.read_request(VIEW, PARAMS)
    assert sign_in.usable_handle(VIEW, cookies, request) is None


def live_session(**changes):
    made = Session(id="session-1", user_id="user-1", idp_id=IDP_ID)
    made.expires_at.FromSeconds(int(NOW) + 100)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_a_session_is_usable_until_it_ends():
    assert sign_in.is_usable(live_session(), HANDLE, NOW)
    assert not sign_in.is_usable(live_session(), HANDLE, NOW + 100)
    assert not sign_in.is_usable(None, HANDLE, NOW)
    assert not sign_in.is_usable(live_session(id="other"), HANDLE, NOW)
    assert not sign_in.is_usable(live_session(idp_id="other"), HANDLE, NOW)


def test_an_old_access_token_ends_a_session_that_cannot_be_refreshed():
    session = live_session()
    session.oauth_token.expires_at.FromSeconds(int(NOW) - 1)
    assert not sign_in.is_usable(session, HANDLE, NOW)
    session.oauth_token.refresh_token = "r"
    assert sign_in.is_usable(session, HANDLE, NOW)
    session.refresh_disabled = True
    assert not sign_in.is_usable(session, HANDLE, NOW)


# -- to the provider and back


def test_the_round_trip_keeps_what_the_sign_in_is_for():
    departure = departed()
    result = back(departure)
    assert result.request == sign_in.read_request(VIEW, PARAMS)
    assert result.code == "the-code"
    assert result.pkce == departure.pkce
    (cleared,) = result.clear_cookies
    assert cleared.startswith("_pomerium_pkce_")
    assert "Max-Age=0" in cleared
    assert "Path=/oauth2/callback" in cleared


def test_r31_the_cookies_of_a_departure_are_strict_and_replace_old_ones():
    cleared, csrf, pkce = departed().set_cookies
    assert cleared.startswith("_pomerium_authenticate=;")
    assert "Max-Age=0" in cleared
    for line in (csrf, pkce):
        assert "; Secure" in line
        assert "; HttpOnly" in line
        assert "; SameSite=Lax" in line
        assert "Domain" not in line
    assert csrf.startswith("__Host-_pomerium_csrf=")
    assert "; Path=/;" in csrf
    assert "; Max-Age=43200" in csrf
    assert "; Path=/oauth2/callback;" in pkce
    assert "; Max-Age=900" in pkce


def test_r35_a_cookie_domain_never_reaches_the_state_cookies():
    view = view_of(settings(cookie_domain="example.com", cookie_same_site="strict"))
    cleared, csrf, pkce = departed(view=view).set_cookies
    assert "Domain=example.com" in cleared
    assert "Secure" in cleared
    assert "Domain" not in csrf + pkce
    assert "SameSite=Lax" in csrf
    assert "SameSite=Lax" in pkce


def test_r35_the_cookies_come_along_with_a_form_post():
    view = view_of(settings(idp=provider(type="apple")))
    _, csrf, pkce = departed(view=view).set_cookies
    assert "SameSite=None" in csrf
    assert "SameSite=None" in pkce


def test_a_browser_keeps_its_csrf_token_for_later_sign_ins():
    first = departed()
    second = departed(cookies=cookie_header(first.set_cookies), seed=1)
    merged = cookie_header((*first.set_cookies, *second.set_cookies))
    latest_csrf = [line for line in second.set_cookies if "_csrf=" in line]
    both = cookie_header([*(line for line in first.set_cookies if "_pkce_" in line), *latest_csrf])
    assert back(first, cookies=both).pkce == first.pkce
    assert back(second, cookies=cookie_header(second.set_cookies)).pkce == second.pkce
    assert merged


def test_r33_parallel_sign_ins_share_no_state():
    first, second = departed(), departed(seed=1)
    assert first.state != second.state
    assert first.pkce != second.pkce
    swapped = cookie_header(
        [line for line in first.set_cookies if "_csrf=" in line]
        + [line for line in second.set_cookies if "_pkce_" in line]
    )
    assert refusal(back, first, cookies=swapped).reason == "pkce-missing"


def test_another_browser_cannot_finish_the_sign_in():
    departure, foreign = departed(), departed(seed=1)
    pkce = [line for line in departure.set_cookies if "_pkce_" in line]
    csrf = [line for line in foreign.set_cookies if "_csrf=" in line]
    assert refusal(back, departure, cookies=[]).reason == "csrf"
    assert refusal(back, departure, cookies=cookie_header(pkce)).reason == "csrf"
    assert refusal(back, departure, cookies=cookie_header([*pkce, *csrf])).reason == "csrf"
    assert refusal(back, departure, cookies=cookie_header(foreign.set_cookies)).status == 400


def test_two_csrf_cookies_are_none():
    departure, foreign = departed(), departed(seed=1)
    cookies = cookie_header(departure.set_cookies) + cookie_header(foreign.set_cookies)
    assert refusal(back, departure, cookies=cookies).reason == "csrf"


def test_r32_without_the_verifier_cookie_nothing_is_exchanged():
    departure = departed()
    csrf = [line for line in departure.set_cookies if "_csrf=" in line]
    error = refusal(back, departure, cookies=cookie_header(csrf))
    assert (error.status, error.reason) == (400, "pkce-missing")
    name = next(line for line in departure.set_cookies if "_pkce_" in line).partition("=")[0]
    for value in ("", "AAAA", departure.state):
        cookies = [*cookie_header(csrf), f"{name}={value}"]
        assert refusal(back, departure, cookies=cookies).reason == "pkce"


def test_a_sign_in_may_take_15_minutes_and_no_longer():
    departure = departed()
    assert back(departure, now_s=NOW + 900.0)
    error = refusal(back, departure, now_s=NOW + 900.0 + 1)
    assert (error.status, error.reason) == (400, "state-expired")
    assert [link.href for link in error.links] == [f"https://{APP}/page?x=1"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("access_denied", 401),
        ("unauthorized_client", 401),
        ("user_cancelled_authorize", 401),
        ("server_error", 400),
        ("<x>", 400),
    ],
)
def test_the_providers_own_refusal_is_passed_on(error, status):
    departure = departed()
    caught = refusal(back, departure, params={"error": error, "state": departure.state})
    assert caught.status == status
    assert [link.href for link in caught.links] == [f"https://{APP}/page?x=1"]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"code": "c"},
        {"state": "s"},
        {"code": "c", "state": ""},
        {"code": "c", "state": "forged"},
        {"code": "", "state": "STATE"},
        {"code": "c", "state": "STATEx"},
    ],
)
def test_a_malformed_callback_is_refused(params):
    departure = departed()
    filled = {name: value.replace("STATE", departure.state) for name, value in params.items()}
    error = refusal(back, departure, params=filled)
    assert error.status == 400


def test_a_forged_state_gives_no_link_to_anywhere():
    departure = departed()
    error = refusal(back, departure, params={"error": "x", "state": departure.state[:-2] + "AA"})
    assert error.links == ()


def test_a_route_that_went_away_meanwhile_is_refused():
    departure = departed()
    gone = view_of(settings(routes=(route("https://other.example.com"),)))
    assert refusal(back, departure, view=gone).reason == "redirect-target"


# -- arriving


def arrived(request=None, handle=HANDLE, view=VIEW):
    request = request or sign_in.read_request(view, PARAMS)
    return sign_in.arrive(view, request, handle, now_s=NOW, rng=SeededRng())


def opened(location, keys=(SHARED,)):
    sealed = base64.urlsafe_b64decode(query_of(location)["pomerium_session_encrypted"])
    return open_sealed(keys, sealed).decode()


def test_the_route_gets_a_signed_callback_with_a_sealed_handle():
    arrival = arrived()
    verify_url(arrival.url, (SHARED,), now_s=NOW)
    parts = urlsplit(arrival.url)
    assert (parts.scheme, parts.netloc, parts.path) == ("https", APP, "/.pomerium/callback/")
    query = query_of(arrival.url)
    assert query["pomerium_redirect_uri"] == f"https://{APP}/page?x=1"
    assert query["gatehouse_login"] == DIGEST
    handle = decode_handle(opened(arrival.url), (SHARED,), allowed_uses=frozenset({"route"}))
    assert handle == replace(
        HANDLE,
        use="route",
        issued_at=int(NOW),
        audience=("authenticate.example.com", APP),
    )


def test_the_own_cookie_is_for_authenticate_only():
    (cookie,) = arrived().set_cookies
    name, _, rest = cookie.partition("=")
    assert name == "_pomerium_authenticate"
    value, *attributes = rest.split("; ")
    handle = decode_handle(value, (SHARED,), allowed_uses=frozenset({"authenticate"}))
    assert handle.session_id == "session-1"
    assert handle.issued_at == int(NOW)
    assert {"Path=/", "Secure", "HttpOnly"} <= set(attributes)
    assert len(value) < 1000


def test_the_hosts_of_a_chain_are_named_where_a_cookie_counts_on_its_hosts_alone():
    hosts = "wiki.example.com,Db.example.com:8443"
    request = SignInRequest(f"https://{APP}/", "", additional_hosts=hosts)
    for counts, further in ((False, ()), (True, ("wiki.example.com", "db.example.com:8443"))):
        view = view_of(settings(cookie_audience=counts))
        named = sign_in.audience(view, request)
        assert named == ("authenticate.example.com", APP, *further)


def test_a_port_is_kept():
    request = SignInRequest("https://app.example.com:8443/", IDP_ID)
    arrival = arrived(request)
    assert arrival.url.startswith("https://app.example.com:8443/.pomerium/callback/?")
    handle = decode_handle(opened(arrival.url), (SHARED,), allowed_uses=frozenset({"route"}))
    assert handle.audience == ("authenticate.example.com", "app.example.com:8443")


def test_a_program_gets_a_handle_that_is_no_cookie():
    params = PARAMS | {
        "pomerium_redirect_uri": "http://localhost:1/cb",
        "pomerium_programmatic": "true",
        "pomerium_callback_uri": f"https://{APP}/.pomerium/callback/",
    }
    arrival = arrived(sign_in.read_request(VIEW, params))
    assert arrival.url.startswith(f"https://{APP}/.pomerium/callback/?")
    assert query_of(arrival.url)["pomerium_programmatic"] == "true"
    handle = decode_handle(opened(arrival.url), (SHARED,), allowed_uses=frozenset({"api"}))
    assert handle.audience == ("authenticate.example.com", "localhost:1", APP)


def test_the_dashboard_is_no_route():
    arrival = arrived(sign_in.dashboard_request(VIEW))
    assert arrival.url == "https://authenticate.example.com/.pomerium/"


def test_keys_can_be_rotated():
    old, new = b"o" * 32, b"n" * 32
    before = view_of(settings(shared=(old,), cookie=(old,)))
    after = view_of(settings(shared=(new, old), cookie=(new, old)))
    departure = departed(view=before)
    assert back(departure, view=after).code == "the-code"
    request = sign_in.read_request(after, PARAMS)
    assert sign_in.usable_handle(after, own_cookie(key=old), request) == HANDLE
    assert opened(arrived(view=after).url, keys=(new,))


# -- hosts


def test_the_authenticate_host_is_known_by_both_names_and_any_port():
    view = view_of(
        settings(
            authenticate_url="https://auth.example.com:8443",
            internal_url="https://auth.internal",
        )
    )
    for host in (
        "auth.example.com",
        "auth.example.com:8443",
        "auth.example.com:1",
        "auth.internal",
    ):
        assert view.canonical_host(host) == "auth.example.com:8443"
    for host in ("", "example.com", "evil.com", "[", "auth.example.com.evil.com", "a b"):
        assert view.canonical_host(host) is None
