"""Paths and claims of the Django provider: loaded by its process alone, once Django is set up."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.views import LoginView
from django.urls import include, path
from oauth2_provider.oauth2_validators import OAuth2Validator

urlpatterns = [
    path("login/", LoginView.as_view()),
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
]


class Validator(OAuth2Validator):  # type: ignore[misc]
    """The toolkit says nothing but `sub` by itself."""

    oidc_claim_scope = OAuth2Validator.oidc_claim_scope | {"groups": "groups"}

    def get_additional_claims(self) -> dict[str, Any]:
        return {
            "name": lambda request: request.user.get_full_name(),
            "email": lambda request: request.user.email,
            "groups": lambda request: [one.name for one in request.user.groups.all()],
        }
