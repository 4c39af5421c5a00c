from __future__ import annotations

import pytest

from gatehouse.common.config.resolve import PROVIDERS, PROVIDERS_WITHOUT_DEFAULT_URL
from gatehouse.common.identity.discovery import ProviderMetadata
from gatehouse.common.identity.errors import MISCONFIGURED, IdentityProviderError
from gatehouse.common.identity.variants import VARIANTS, SignOutRequest, variant_of

TENANT = "9188040d-6c67-4c5b-b112-36a304b66dad"
COMMON = "https://login.microsoftonline.com/common/v2.0"
TEMPLATE = "https://login.microsoftonline.com/{tenantid}/v2.0"


@pytest.mark.parametrize("provider_type", ["hosted", "", "OIDC", "saml"])
def test_other_types_get_a_clear_answer(provider_type: str) -> None:
    with pytest.raises(IdentityProviderError, match="idp_provider must be one of apple") as caught:
        variant_of(provider_type)
    assert caught.value.reason == MISCONFIGURED


def test_every_type_of_the_configuration_is_built() -> None:
    assert {*VARIANTS, "github"} == set(PROVIDERS)
    without_url = {name for name, variant in VARIANTS.items() if not variant.default_url}
    assert without_url == PROVIDERS_WITHOUT_DEFAULT_URL


def test_urls() -> None:
    assert variant_of("oidc").url("") == ""
    assert variant_of("google").url("") == "https://accounts.google.com"
    assert variant_of("gitlab").url("https://git.example.com") == "https://git.example.com"
    assert variant_of("auth0").url("https://x.auth0.com") == "https://x.auth0.com/"
    assert variant_of("auth0").url("https://x.auth0.com/") == "https://x.auth0.com/"
    assert variant_of("azure").url("") == COMMON


SCOPES = {
    "oidc": "openid profile email offline_access",
    "apple": "name email",
    "auth0": "openid profile email offline_access",
    "azure": "openid profile email offline_access",
    "cognito": "openid email profile",
    "gitlab": "openid profile email",
    "google": "openid profile email",
    "okta": "openid profile email offline_access",
    "onelogin": "openid profile email groups offline_access",
    "ping": "openid profile email offline_access",
}


def test_default_scopes() -> None:
    assert {name: " ".join(one.scopes_for("u", ())) for name, one in VARIANTS.items()} == SCOPES


def test_configured_scopes_replace_them_except_where_they_are_fixed() -> None:
    chosen = {name for name, one in VARIANTS.items() if one.scopes_for("u", ("x",)) == ("x",)}
    assert chosen == set(VARIANTS) - {"onelogin"}


def test_onelogin_2_knows_no_offline_access() -> None:
    scopes = variant_of("onelogin").scopes_for("https://acme.onelogin.com/oidc/2/", ("x",))
    assert scopes == ("openid", "profile", "email", "groups")


PARAMS = {
    "azure": {"prompt": "select_account"},
    "google": {"prompt": "select_account consent", "access_type": "offline"},
    "apple": {"response_mode": "form_post"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_request_parameters_are_replaced_and_apples_kept(name: str) -> None:
    variant = variant_of(name)
    kept = PARAMS["apple"] if name == "apple" else {}
    assert variant.params_for(None) == PARAMS.get(name, {})
    assert variant.params_for({}) == kept
    assert variant.params_for({"a": "b"}) == {"a": "b"} | kept


def test_google_issuer_with_and_without_scheme() -> None:
    google = variant_of("google")
    found = "https://accounts.google.com"
    assert google.is_issuer("accounts.google.com", found, {})
    assert google.is_issuer(found, found, {})
    assert not google.is_issuer("accounts.google.com.evil.test", found, {})
    assert not variant_of("oidc").is_issuer("accounts.google.com", found, {})


def test_microsoft_tenant_completes_the_template() -> None:
    azure = variant_of("azure")
    for shared in ("common", "organizations", "consumers"):
        assert azure.is_discovered_issuer(COMMON.replace("common", shared), TEMPLATE)
    assert not azure.is_discovered_issuer("https://evil.test/common/v2.0", TEMPLATE)
    assert not azure.is_discovered_issuer(COMMON, "https://evil.test/{tenantid}/v2.0")
    single = TEMPLATE.replace("{tenantid}", TENANT)
    assert azure.is_discovered_issuer(single, single)
    assert not azure.is_discovered_issuer(single, TEMPLATE)
    assert azure.is_issuer(single, TEMPLATE, {"tid": TENANT})
    assert azure.is_issuer(single, single, {})
    for claims in ({}, {"tid": "x"}, {"tid": 1}, {"tid": TENANT.replace("9", "8", 1)}):
        assert not azure.is_issuer(single, TEMPLATE, claims)
    assert not azure.is_issuer(TEMPLATE, TEMPLATE, {"tid": "{tenantid}"})


@pytest.mark.parametrize(
    ("host", "first"),
    [
        ("login.microsoftonline.com", "https://sts.windows.net"),
        ("login.microsoftonline.us", "https://sts.windows.net"),
        ("login.partner.microsoftonline.cn", "https://sts.chinacloudapi.cn"),
    ],
)
def test_microsoft_access_tokens_of_version_1_name_another_issuer(host: str, first: str) -> None:
    check = variant_of("azure").is_access_issuer
    assert check is not None
    other = TENANT.replace("9", "8", 1)
    for discovered in (f"https://{host}/{TENANT}/v2.0", f"https://{host}/{{tenantid}}/v2.0"):
        assert check(f"{first}/{TENANT}/", discovered, {"tid": TENANT})
        assert check(f"https://{host}/{TENANT}/v2.0", discovered, {"tid": TENANT})
        for issuer, claims in (
            (f"{first}/{TENANT}", {"tid": TENANT}),
            (f"{first}/{TENANT}/", {"tid": other}),
            (f"{first}/{TENANT}/", {}),
            (f"{first}.evil.test/{TENANT}/", {"tid": TENANT}),
        ):
            assert not check(issuer, discovered, claims)
    assert not check(f"{first}/{other}/", f"https://{host}/{TENANT}/v2.0", {"tid": other})
    assert not check(f"{first}/{TENANT}/", f"https://evil.test/{TENANT}/v2.0", {"tid": TENANT})


def test_r40_microsoft_id_tokens_are_no_access_tokens() -> None:
    check = variant_of("azure").is_access_token
    assert check is not None
    assert check({"scp": "api.read"})
    assert check({"idtyp": "app", "roles": ["r"]})
    for claims in ({}, {"scp": ""}, {"scp": ["x"]}, {"roles": ["r"]}, {"idtyp": "user"}):
        assert not check(claims)


def test_ping_mail_is_the_email() -> None:
    adapt = variant_of("ping").adapt_claims
    assert adapt({"mail": "a@b.c", "sub": "s"}) == {"mail": "a@b.c", "sub": "s", "email": "a@b.c"}
    assert adapt({"mail": "x"}) == {"mail": "x"}


@pytest.mark.parametrize("name", ["apple", "cognito"])
def test_flags_written_as_text_are_flags(name: str) -> None:
    adapt = variant_of(name).adapt_claims
    given = {"email_verified": "true", "phone_number_verified": "false", "is_private_email": True}
    assert adapt(given) == {
        "email_verified": True,
        "phone_number_verified": False,
        "is_private_email": True,
    }
    assert adapt({"email_verified": "yes"}) == {"email_verified": "yes"}
    assert variant_of("oidc").adapt_claims({"email_verified": "true"}) == {"email_verified": "true"}


POOL_DOMAIN = "https://acme.auth.eu-west-1.amazoncognito.com"
METADATA = ProviderMetadata(
    issuer="https://idp",
    authorization_endpoint=f"{POOL_DOMAIN}/oauth2/authorize",
    token_endpoint="https://idp/t",
    jwks_uri="https://idp/k",
    userinfo_endpoint=None,
    revocation_endpoint=None,
    end_session_endpoint=None,
    id_token_algorithms=("RS256",),
    token_auth_methods=(),
    supports_s256=False,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "auth0",
            "https://x.auth0.com/v2/logout?client_id=id%26&returnTo=https%3A%2F%2Fa%2F%3Fb%3Dc",
        ),
        (
            "cognito",
            f"{POOL_DOMAIN}/logout?client_id=id%26&logout_uri=https%3A%2F%2Fa%2F%3Fb%3Dc",
        ),
    ],
)
def test_some_sign_out_their_own_way(name: str, expected: str) -> None:
    sign_out = variant_of(name).sign_out_url
    assert sign_out is not None
    request = SignOutRequest(METADATA, "https://x.auth0.com/", "id&", "https://a/?b=c")
    assert sign_out(request) == expected


def test_only_cognito_comes_back_to_one_page() -> None:
    assert [name for name, one in VARIANTS.items() if one.has_fixed_return] == ["cognito"]
