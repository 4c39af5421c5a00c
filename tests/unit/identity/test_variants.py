from __future__ import annotations

import pytest

from gatehouse.common.identity.errors import MISCONFIGURED, IdentityProviderError
from gatehouse.common.identity.variants import VARIANTS, variant_of

TENANT = "9188040d-6c67-4c5b-b112-36a304b66dad"
COMMON = "https://login.microsoftonline.com/common/v2.0"
TEMPLATE = "https://login.microsoftonline.com/{tenantid}/v2.0"


@pytest.mark.parametrize(
    "provider_type", ["apple", "github", "cognito", "hosted", "", "OIDC", "saml"]
)
def test_other_types_get_a_clear_answer(provider_type: str) -> None:
    with pytest.raises(IdentityProviderError, match="idp_provider must be one of") as caught:
        variant_of(provider_type)
    assert caught.value.reason == MISCONFIGURED
    known = provider_type in {"apple", "github", "cognito", "hosted"}
    assert ("not available yet" in str(caught.value)) is known


def test_urls() -> None:
    assert variant_of("oidc").url("") == ""
    assert variant_of("google").url("") == "https://accounts.google.com"
    assert variant_of("gitlab").url("https://git.example.com") == "https://git.example.com"
    assert variant_of("auth0").url("https://x.auth0.com") == "https://x.auth0.com/"
    assert variant_of("auth0").url("https://x.auth0.com/") == "https://x.auth0.com/"
    assert variant_of("azure").url("") == COMMON


def test_every_type_asks_for_openid() -> None:
    for variant in VARIANTS.values():
        assert "openid" in variant.scopes


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


def test_ping_mail_is_the_email() -> None:
    adapt = variant_of("ping").adapt_userinfo
    assert adapt({"mail": "a@b.c", "sub": "s"}) == {"mail": "a@b.c", "sub": "s", "email": "a@b.c"}
    assert adapt({"mail": "x"}) == {"mail": "x"}


def test_auth0_signs_out_its_own_way() -> None:
    sign_out = variant_of("auth0").sign_out_url
    assert sign_out is not None
    assert sign_out("https://x.auth0.com/", "id&", "https://a/?b=c") == (
        "https://x.auth0.com/v2/logout?client_id=id%26&returnTo=https%3A%2F%2Fa%2F%3Fb%3Dc"
    )
