from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from gatehouse.common.clock import SystemRng
from gatehouse.common.jose.signed_url import verify_url
from gatehouse.common.pages.refusal import RefusedRequestError
from gatehouse.common.session.login_binding import cookie_name, matches
from gatehouse.proxy.core.pages_view import pages_view
from gatehouse.proxy.core.sign_in_chain import give_cookie, is_asking_for_cookie, next_hop
from tests.support.redirect_corpus import hostile_targets
from tests.support.sign_in import query_of
from tests.support.web_settings import APP, SHARED, route, settings

NOW = 1_800_000_000.0
HOSTS = ("b.example.com", "c.example.com:8443")
VIEW = pages_view(settings(routes=(route(depends_on=list(HOSTS)),)))
FIRST = {
    "pomerium_redirect_uri": f"https://{APP}/page",
    "pomerium_session_encrypted": "sealed",
    "gatehouse_login": "a" * 96,
    "pomerium_additional_hosts": ",".join(HOSTS),
}


def opened(location, host):
    """The parameters of a signed callback URL on `host`."""
    verify_url(location, (SHARED,), now_s=NOW)
    parts = urlsplit(location)
    assert (parts.scheme, parts.netloc, parts.path) == ("https", host, "/.pomerium/callback/")
    return query_of(location)


def give(params, host, view=VIEW, cookies=()):
    return give_cookie(view, params, cookies, host=host, now_s=NOW, rng=SystemRng())


def proceed(params, host, view=VIEW):
    return next_hop(view, params, host=host, now_s=NOW)


def first_round():
    """What the route's host gets back, and the cookie each further host has given."""
    start = proceed(FIRST, APP)
    params, cookies = opened(start.location, HOSTS[0]), []
    for number, host in enumerate(HOSTS):
        assert is_asking_for_cookie(params)
        hop = give(params, host)
        cookies.append(hop.set_cookies[0])
        params = opened(hop.location, (*HOSTS, APP)[number + 1])
    assert not is_asking_for_cookie(params)
    return params, cookies


def test_two_rounds_lead_past_every_host_and_end():
    params, cookies = first_round()
    assert params["gatehouse_login"] == FIRST["gatehouse_login"]  # of the first host's own sign-in
    hop = proceed(params, APP)
    for number, host in enumerate(HOSTS):
        params = opened(hop.location, host)
        assert params["pomerium_session_encrypted"] == "sealed"
        assert params["pomerium_redirect_uri"] == f"https://{APP}/page"
        name, _, value = cookies[number].partition(";")[0].partition("=")
        assert name == cookie_name("_pomerium")
        assert matches(value, params["gatehouse_login"])
        assert "Domain" not in cookies[number]
        hop = proceed(params, host)
        assert (hop is None) is (number == len(HOSTS) - 1)


def test_a_host_that_has_given_a_cookie_before_goes_by_that_one():
    params = opened(proceed(FIRST, APP).location, HOSTS[0])
    (line,) = give(params, HOSTS[0]).set_cookies
    pair = line.partition(";")[0]
    (again,) = give(params, HOSTS[0], cookies=[pair]).set_cookies
    assert again.partition(";")[0] == pair


@pytest.mark.parametrize(
    ("changes", "host"),
    [
        ({"gatehouse_chain_step": "2"}, HOSTS[0]),
        ({"gatehouse_chain_step": "0"}, HOSTS[0]),
        ({"gatehouse_chain_step": "x"}, HOSTS[0]),
        ({}, HOSTS[1]),
        ({}, APP),
        ({"gatehouse_chain_origin": "evil.example.net"}, HOSTS[0]),
        ({"gatehouse_chain_origin": ""}, HOSTS[0]),
        ({"pomerium_additional_hosts": "b.example.com,evil.example.net"}, HOSTS[0]),
        ({"pomerium_additional_hosts": "b.example.com,c@evil.example.net"}, HOSTS[0]),
        ({"pomerium_additional_hosts": ",".join(["b.example.com"] * 6)}, HOSTS[0]),
    ],
)
def test_r26_the_first_round_leads_to_known_hosts_in_their_order(changes, host):
    params = opened(proceed(FIRST, APP).location, HOSTS[0]) | changes
    with pytest.raises(RefusedRequestError) as caught:
        give(params, host)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"gatehouse_chain": "a" * 96},
        {"gatehouse_chain": ",".join(["a" * 96] * 3)},
        {"gatehouse_chain_origin": HOSTS[0]},
        {"pomerium_additional_hosts": "evil.example.net,b.example.com"},
    ],
)
def test_r31_the_second_round_is_as_long_as_the_first_and_begins_where_it_did(changes):
    params, _ = first_round()
    with pytest.raises(RefusedRequestError) as caught:
        proceed(params | changes, APP)
    assert caught.value.status == 400


def test_a_host_that_depends_on_itself_alone_goes_nowhere():
    assert proceed(FIRST | {"pomerium_additional_hosts": APP}, APP) is None
    hop = proceed(FIRST | {"pomerium_additional_hosts": f"{APP},b.example.com"}, APP)
    assert opened(hop.location, HOSTS[0])["pomerium_additional_hosts"] == "b.example.com"


@pytest.mark.parametrize("keys", [{"cookie_domain": "example.com"}, {"cookie_same_site": "strict"}])
def test_one_cookie_for_all_and_a_strict_one_need_no_round(keys):
    view = pages_view(settings(routes=(route(depends_on=list(HOSTS)),), **keys))
    assert proceed(FIRST, APP, view) is None


def test_without_further_hosts_there_is_no_hop():
    assert proceed({"pomerium_redirect_uri": f"https://{APP}/"}, APP) is None


def test_r26_no_spelling_of_a_foreign_host_is_passed() -> None:
    """Hosts, and whole URLs where a host belongs: the next stop is a known host or none."""
    targets = hostile_targets(APP)
    spellings = [*targets, *(target.partition("://")[2] for target in targets)]
    known = {APP, *HOSTS}
    for spelling in spellings:
        for hosts in (spelling, f"b.example.com,{spelling}"):
            try:
                hop = proceed(FIRST | {"pomerium_additional_hosts": hosts}, APP)
            except RefusedRequestError:
                continue
            passed = "" if hop is None else query_of(hop.location)["pomerium_additional_hosts"]
            assert set(passed.split(",") if passed else ()) <= known, spelling
            assert hop is None or urlsplit(hop.location).netloc in known
