"""Runs Django OAuth Toolkit: `python -m tests.support.django_server PORT DIRECTORY`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import django
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from werkzeug.serving import make_server

from tests.support.django_provider import (
    CLIENTS,
    EMAIL,
    PASSWORD,
    REDIRECT_URI,
    SIGNED_OUT,
    USER,
)

LOGIN_PAGE: Final = (
    '<form method="post">{% csrf_token %}{{ form.as_p }}'
    '<input type="hidden" name="next" value="{{ next }}"><button>Sign in</button></form>'
)


def _settings(port: int, directory: Path, pem: str) -> dict[str, Any]:
    loaders = [
        ("django.template.loaders.locmem.Loader", {"registration/login.html": LOGIN_PAGE}),
        "django.template.loaders.app_directories.Loader",
    ]
    return {
        "ALLOWED_HOSTS": ["127.0.0.1"],
        "SECRET_KEY": "x" * 50,
        "ROOT_URLCONF": "tests.support.django_site",
        "DATABASES": {
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(directory / "db")}
        },
        "INSTALLED_APPS": [
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "oauth2_provider",
        ],
        "MIDDLEWARE": [
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": loaders,
                    "context_processors": ["django.template.context_processors.request"],
                },
            }
        ],
        "LOGIN_URL": "/login/",
        "USE_TZ": True,
        "DEFAULT_AUTO_FIELD": "django.db.models.AutoField",
        "PASSWORD_HASHERS": ["django.contrib.auth.hashers.MD5PasswordHasher"],
        "OAUTH2_PROVIDER": {
            "OIDC_ENABLED": True,
            "OIDC_ISS_ENDPOINT": f"http://127.0.0.1:{port}/o",
            "OIDC_RSA_PRIVATE_KEY": pem,
            "OIDC_RP_INITIATED_LOGOUT_ENABLED": True,
            "OAUTH2_VALIDATOR_CLASS": "tests.support.django_site.Validator",
            "SCOPES": {name: name for name in ("openid", "profile", "email", "groups")},
        },
    }


def _populate() -> None:
    """One person in one group, and the clients. The models exist once Django is set up."""
    people, groups = apps.get_model("auth", "User"), apps.get_model("auth", "Group")
    model = apps.get_model("oauth2_provider", "Application")
    names = {"first_name": "Ada", "last_name": "Example"}
    person = people.objects.create_user(USER, EMAIL, PASSWORD, **names)
    person.groups.add(groups.objects.create(name="staff"))
    for client_id, secret in CLIENTS.items():
        model.objects.create(
            name=client_id,
            client_id=client_id,
            client_secret=secret,
            client_type="confidential",
            authorization_grant_type="authorization-code",
            redirect_uris=REDIRECT_URI,
            post_logout_redirect_uris=SIGNED_OUT,
            algorithm="RS256",
        )


def main(port: int, directory: Path) -> None:
    """Serve until the process is ended."""
    os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"  # plain HTTP, on this machine
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    settings.configure(**_settings(port, directory, pem))
    django.setup()
    call_command("migrate", verbosity=0)
    _populate()
    make_server("127.0.0.1", port, get_wsgi_application(), threaded=True).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
