from __future__ import annotations

from typing import Any

import pytest

from gatehouse.common.jose.signed_url import verify_url
from gatehouse.common.pages.refusal import RefusedRequestError
from gatehouse.common.session.sign_out_binding import is_meant
from gatehouse.pb.session_pb2 import Session
from gatehouse.proxy.core.pages_view import pages_view
from gatehouse.proxy.core.sign_in_links import (
    clear_route_cookie,
    confirm_path,
    is_cross_site,
    is_front_channel_logout,
    programmatic_login_url,
    sign_out_url,
)
from tests.support.redirect_corpus import hostile_targets
from tests.support.sign_in import query_of
from tests.support.web_settings import APP, IDP_ID, SHARED, provider, route, settings

NOW = 1_800_000_000.0
VIEW = pages_view(settings())


def login(target, view=VIEW, host=APP):
    params = {} if target is None else {"pomerium_redirect_uri": target}
    return programmatic_login_url(view, params, host=host, now_s=NOW)


def refused(call, *args, **kwargs):
    with pytest.raises(RefusedRequestError) as caught:
        call(*args, **kwargs)
    return caught.value.status


def test_a_program_gets_a_signed_sign_in_url():
    url = login("http://localhost:8080/cb")
    verify_url(url, (SHARED,), now_s=NOW)
    assert url.startswith("https://authenticate.example.com/.pomerium/sign_in?")
    query = query_of(url)
    assert query["pomerium_redirect_uri"] == "http://localhost:8080/cb"
    assert query["pomerium_callback_uri"] == f"https://{APP}/.pomerium/callback/"
    assert query["pomerium_programmatic"] == "true"
    assert query["pomerium_idp_id"] == IDP_ID
    assert "gatehouse_login" not in query


def test_r26_a_program_elsewhere_gets_none():
    view = pages_view(settings(programmatic_redirect_domain_whitelist=["cli.example.com"]))
    assert login("https://cli.example.com/x", view)
    for target in hostile_targets("cli.example.com"):
        if target.startswith(("http://cli.example.com/",)):
            continue  # a program's own address may be plain http
        assert refused(login, target, view) == (400 if target else 404), target


def test_without_an_address_or_without_sign_in_there_is_no_such_page():
    assert refused(login, None) == 404
    assert refused(login, "http://localhost/", pages_view(settings(authenticate_url=""))) == 404


def test_the_provider_is_the_routes():
    view = pages_view(
        settings(
            routes=(
                route("https://*.example.com", idp=provider(idp_id="wild")),
                route(f"https://{APP}", idp=provider(idp_id="own")),
                route("https://plain.example.org"),
            )
        )
    )
    for host, idp in (
        (APP, "own"),
        (f"{APP}:8443", "own"),
        ("x.example.com", "wild"),
        ("plain.example.org", IDP_ID),
    ):
        assert query_of(login("http://localhost/", view, host))["pomerium_idp_id"] == idp


@pytest.mark.parametrize(
    ("site", "same_origin", "is_other"),
    [
        ("same-origin", True, False),
        ("same-site", True, False),
        ("none", True, False),
        ("cross-site", True, True),
        (None, True, False),
        (None, False, True),
    ],
)
def test_r34_another_site_is_known_as_one(site, same_origin, is_other):
    assert is_cross_site(sec_fetch_site=site, same_origin=same_origin) is is_other


@pytest.mark.parametrize(
    ("params", "sid", "counts"),
    [
        ({"iss": "https://idp.example.com", "sid": "s"}, "s", True),
        ({"iss": "https://idp.example.com/", "sid": "s"}, "s", True),
        ({"iss": "https://idp.example.com"}, "s", False),
        ({"iss": "https://idp.example.com", "sid": "t"}, "s", False),
        ({"iss": "https://idp.example.com", "sid": ""}, "", False),
        ({"iss": "https://evil.example.net", "sid": "s"}, "s", False),
        ({"iss": "https://idp.example.com/other", "sid": "s"}, "s", False),
        ({"iss": "", "sid": "s"}, "s", False),
        ({"sid": "s"}, "s", False),
    ],
)
def test_r34_a_front_channel_logout_names_the_provider_and_its_session(params, sid, counts):
    session = Session(idp_session_id=sid)
    session.id_token.issuer = "https://idp.example.com"
    assert is_front_channel_logout(params, session) is counts


def test_r34_a_session_that_no_provider_named_is_ended_by_none():
    assert not is_front_channel_logout({"iss": "", "sid": ""}, Session())
    assert not is_front_channel_logout({"iss": "", "sid": "s"}, Session(idp_session_id="s"))


def test_r34_a_sign_out_link_is_for_one_session():
    one = sign_out_url(VIEW, {}, session_id="s1", now_s=NOW)
    nobodys = sign_out_url(VIEW, {}, session_id="", now_s=NOW)
    assert one is not None
    assert nobodys is not None
    digest = query_of(one)["gatehouse_sign_out"]
    assert is_meant(digest, "s1")
    assert not is_meant(digest, "s2")
    assert "gatehouse_sign_out" not in query_of(nobodys)
    assert not is_meant("", "s1")


@pytest.mark.parametrize("host", [f"evil@{APP}", f"{APP}:x", f"{APP}:1:2", f"{APP}/", ""])
def test_r08_our_pages_answer_to_plain_hosts_only(host):
    assert VIEW.canonical_host(host) is None
    assert VIEW.canonical_host(APP) == APP
    assert VIEW.canonical_host(f"{APP}:443") == APP


def target_of(params, **keys):
    url = sign_out_url(pages_view(settings(**keys)), params, session_id="s", now_s=NOW)
    assert url is not None
    verify_url(url, (SHARED,), now_s=NOW)
    assert url.startswith("https://authenticate.example.com/.pomerium/sign_out?")
    return query_of(url).get("pomerium_redirect_uri")


def test_r26_the_target_of_a_sign_out_is_the_operators():
    asked = {"pomerium_redirect_uri": "https://evil.example.net/"}
    bye = "https://www.example.com/bye"
    assert target_of({}) is None
    assert target_of(asked) is None
    assert target_of(asked, signout_redirect_url=bye) == bye
    anything: dict[str, Any] = {"runtime_flags": {"allow_any_sign_out_redirect_uri": True}}
    assert target_of(asked, **anything) == "https://evil.example.net/"
    assert target_of({}, signout_redirect_url=bye, **anything) == bye
    view = pages_view(settings(**anything))
    for target in ("javascript:x", "//evil", "https://a@b", "https:///x", "https://a\\b"):
        params = {"pomerium_redirect_uri": target}
        assert refused(sign_out_url, view, params, session_id="", now_s=NOW) == 400


def test_without_sign_in_there_is_nowhere_to_sign_out():
    view = pages_view(settings(authenticate_url=""))
    assert sign_out_url(view, {}, session_id="s", now_s=NOW) is None


def test_the_confirmation_leads_to_this_host():
    assert confirm_path({}) == "/.pomerium/sign_out"
    assert confirm_path({"pomerium_redirect_uri": "https://x/?a=b&c", "iss": "y"}) == (
        "/.pomerium/sign_out?pomerium_redirect_uri=https%3A%2F%2Fx%2F%3Fa%3Db%26c"
    )


def test_r35_the_route_cookie_is_really_deleted():
    view = pages_view(settings(cookie_name="__Secure-gate", cookie_domain="example.com"))
    line = clear_route_cookie(view)
    assert line.startswith("__Secure-gate=; Path=/; Domain=example.com; Expires=Thu, 01 Jan 1970")
    assert "Max-Age=0" in line
    assert "Secure" in line.split("; ")
