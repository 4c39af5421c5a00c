from __future__ import annotations

import pytest

from gatehouse.authenticate.core import sign_out
from gatehouse.authenticate.core.view import view_of
from gatehouse.common.jose.signed_url import verify_url
from gatehouse.common.pages.refusal import RefusedRequestError
from tests.support.redirect_corpus import hostile_targets
from tests.support.sign_in import query_of
from tests.support.web_settings import APP, SHARED, settings

NOW = 1_800_000_000.0
VIEW = view_of(settings(signout_redirect_url="https://www.example.com/bye"))


def confirmed(target, view=VIEW):
    url = sign_out.confirm_url(view, {"pomerium_redirect_uri": target}, [], now_s=NOW)
    verify_url(url, (SHARED,), now_s=NOW)
    return query_of(url).get("pomerium_redirect_uri")


def test_r26_the_confirmation_page_is_no_open_redirect():
    for target in hostile_targets(APP):
        assert confirmed(target) is None, target


def test_known_targets_are_kept():
    assert confirmed(f"https://{APP}/x") == f"https://{APP}/x"
    assert confirmed("https://www.example.com/bye") == "https://www.example.com/bye"
    assert confirmed("https://www.example.com/other") is None


def test_an_operator_may_allow_any_target_but_never_a_malformed_one():
    view = view_of(settings(runtime_flags={"allow_any_sign_out_redirect_uri": True}))
    assert confirmed("https://elsewhere.example.org/", view) == "https://elsewhere.example.org/"
    assert confirmed("javascript:alert(1)", view) is None
    assert confirmed("https://a@b/", view) is None


def test_a_signed_target_is_trusted_for_its_host_and_not_for_its_form():
    read = sign_out.read(VIEW, {"pomerium_redirect_uri": "https://elsewhere.example.org/"}, [])
    assert read.target == "https://elsewhere.example.org/"
    assert read.handle is None
    for target in ("javascript:alert(1)", "//evil", "https://a@b/", "https://a\\b/"):
        with pytest.raises(RefusedRequestError) as caught:
            sign_out.read(VIEW, {"pomerium_redirect_uri": target}, [])
        assert caught.value.status == 400


def test_where_the_browser_ends():
    plain = view_of(settings())
    nothing = sign_out.SignOut(None, "")
    asked = sign_out.SignOut(None, "https://x.example.com/")
    assert sign_out.next_url(plain, nothing, None) == (
        "https://authenticate.example.com/.pomerium/signed_out"
    )
    assert sign_out.next_url(VIEW, nothing, None) == "https://www.example.com/bye"
    assert sign_out.next_url(VIEW, asked, None) == "https://x.example.com/"
    assert sign_out.next_url(VIEW, asked, "https://idp/logout") == "https://idp/logout"
