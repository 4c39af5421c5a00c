"""Weak settings are told, with their place, and no secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.config.weaknesses import _postgres
from tests.support.configuration import (
    LOGIN,
    PRIVATE,
    PUBLIC,
    SECRET_TEXT,
    warnings,
    without,
    write,
)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("cookie_same_site: Strict", "cookie_same_site", "have to sign in again (lax)"),
        ("cookie_same_site: none", "cookie_same_site", "pages of other sites"),
        ("cookie_http_only: false", "cookie_http_only", "scripts can read the session cookie"),
        ("idp_pkce: false", "idp_pkce", "redeemed without its verifier"),
        (
            "runtime_flags: {allow_any_sign_out_redirect_uri: true}",
            "runtime_flags.allow_any_sign_out_redirect_uri",
            "may lead to any site",
        ),
        ("idp_provider_url: http://idp.example.com", "idp_provider_url", "is plain http"),
        (
            "routes: [{from: https://a, to: https://b, allowed_users: u, tls_skip_verify: true}]",
            "routes[0].tls_skip_verify",
            "any certificate is accepted",
        ),
        (
            "bearer_token_format: idp_access_token",
            "bearer_token_format",
            "any other application are accepted",
        ),
        (
            (
                "routes: [{from: https://a, to: https://b, allowed_users: u, "
                "bearer_token_format: idp_access_token}]"
            ),
            "routes[0].bearer_token_format",
            "any other application are accepted",
        ),
    ],
)
def test_weak(tmp_path: Path, text: str, key: str, message: str) -> None:
    line = len(without(LOGIN, text.partition(":")[0]).splitlines()) + 1
    (found,) = warnings(tmp_path, f"{without(LOGIN, text.partition(':')[0])}{text}\n")
    assert found.startswith(f"{line}: {key}: ")
    assert message in found


@pytest.mark.parametrize(
    "text",
    [
        "cookie_same_site: lax",
        "idp_provider_url: http://localhost:8444",
        "bearer_token_format: idp_identity_token",
        "idp_access_token_allowed_audiences: [a]\nbearer_token_format: idp_access_token",
        (
            "routes: [{from: https://a, to: https://b, allowed_users: u, "
            "bearer_token_format: idp_access_token, idp_access_token_allowed_audiences: [a]}]"
        ),
        "idp_provider_url: http://127.0.0.1:1",
        "idp_provider_url: http://idp.localhost",
        "routes: [{from: https://a, to: https://b, allowed_users: u, tls_upstream_server_name: c}]",
    ],
)
def test_not_weak(tmp_path: Path, text: str) -> None:
    assert warnings(tmp_path, f"{without(LOGIN, text.partition(':')[0])}{text}\n") == []


SHARED = "https://login.microsoftonline.com/{}/v2.0"
TOKENS = "bearer_token_format: idp_access_token"
ROUTE_TOKENS = f"routes: [{{from: https://a, to: https://b, allowed_users: u, {TOKENS}}}]"


@pytest.mark.parametrize(
    ("url", "text", "key"),
    [
        ("", TOKENS, "bearer_token_format"),
        ("", ROUTE_TOKENS, "routes[0].bearer_token_format"),
        (SHARED.format("common"), TOKENS, "bearer_token_format"),
        (SHARED.format("organizations"), ROUTE_TOKENS, "routes[0].bearer_token_format"),
        (SHARED.format("consumers"), TOKENS, "bearer_token_format"),
        (
            "https://login.microsoftonline.us/common/v2.0",
            f"{TOKENS}\n{ROUTE_TOKENS[:-2]}, idp_access_token_allowed_audiences: [a]}}]",
            "bearer_token_format",  # of our own pages
        ),
    ],
)
def test_r40_no_tenant_but_ones_own_gives_access_tokens(
    tmp_path: Path, url: str, text: str, key: str
) -> None:
    """Whoever has a tenant at Microsoft could write themselves a token, claims and all."""
    provider = f"idp_provider: azure\nidp_provider_url: '{url}'\n"
    login = without(without(LOGIN, "idp_provider_url"), "idp_provider")
    with pytest.raises(ConfigError) as caught:
        warnings(tmp_path, f"{login}{provider}{text}\n")
    (issue,) = caught.value.issues
    assert issue.key == key
    assert "any tenant" in issue.message


@pytest.mark.parametrize("url", [SHARED.format("common"), SHARED.format("1-2")])
def test_access_tokens_for_us_are_welcome_from_any_tenant(tmp_path: Path, url: str) -> None:
    login = without(without(LOGIN, "idp_provider_url"), "idp_provider")
    provider = f"idp_provider: azure\nidp_provider_url: {url}\n"
    limit = "idp_access_token_allowed_audiences: [a]\n"
    assert warnings(tmp_path, f"{login}{provider}{limit}{TOKENS}\n") == []


def test_access_tokens_of_ones_own_tenant_are_doubted_and_taken(tmp_path: Path) -> None:
    login = without(without(LOGIN, "idp_provider_url"), "idp_provider")
    provider = f"idp_provider: azure\nidp_provider_url: {SHARED.format('1-2')}\n"
    (found,) = warnings(tmp_path, f"{login}{provider}{TOKENS}\n")
    assert "any other application are accepted" in found


@pytest.mark.parametrize(
    ("connection", "environ", "hosts", "mode"),
    [
        ("postgresql://u:p@db.example.com/x", {}, ["db.example.com"], "prefer"),
        ("postgres://u:p%40@a:1,b:2/x?sslmode=require", {}, ["a", "b"], "require"),
        ("postgresql:///x?host=/run/pg", {}, ["/run/pg"], "prefer"),
        ("postgresql://%2Frun%2Fpg/x", {}, ["/run/pg"], "prefer"),
        ("postgresql://[::1]:5432/x", {}, ["[::1]"], "prefer"),
        ("host=db port=1 sslmode = 'verify-full'", {}, ["db"], "verify-full"),
        (r"password='a\' host=evil' host=db", {}, ["db"], "prefer"),
        ("dbname=x", {"PGHOST": "db", "PGSSLMODE": "disable"}, ["db"], "disable"),
        ("dbname=x", {}, [""], "prefer"),
    ],
)
def test_connection_strings(
    connection: str, environ: dict[str, str], hosts: list[str], mode: str
) -> None:
    assert _postgres(connection, environ) == (hosts, mode)


@pytest.mark.parametrize(
    ("connection", "weak"),
    [
        ("postgresql://u:hunter2@db.example.com/x", True),
        ("postgresql://u:hunter2@db.example.com/x?sslmode=verify-ca", True),
        ("postgresql://u:hunter2@db.example.com/x?sslmode=verify-full", False),
        ("postgresql://u:hunter2@localhost/x", False),
        ("postgresql://u:hunter2@[::1]:5432/x", False),
        ("postgresql://u:hunter2@localhost,db.example.com/x", True),
        ("host=10.0.0.1 password=hunter2", True),
        ("host=127.0.0.1 password=hunter2", False),
    ],
)
def test_the_way_to_the_database(tmp_path: Path, connection: str, weak: bool) -> None:
    text = f"databroker_storage_type: postgres\ndatabroker_storage_connection_string: {connection}"
    found = warnings(tmp_path, f"{LOGIN}{text}\n")
    assert any("is the database (sslmode=verify-full" in line for line in found) is weak
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(("mode", "weak"), [(0o644, True), (0o640, False), (0o600, False)])
def test_secrets_in_a_file_for_all_to_read(tmp_path: Path, mode: int, weak: bool) -> None:
    path = write(tmp_path, without(LOGIN, "certificate") + PRIVATE)
    path.chmod(mode)
    _, found = load_and_resolve(path, {}, random_secret=lambda: b"r" * 32)
    told = [str(issue) for issue in found if "every user" in str(issue)]
    assert bool(told) is weak
    if weak:
        (line,) = told
        assert line.startswith(f"{path}:3: warning: shared_secret: ")
        assert (
            "every user of this machine can read the file (mode 0644), which holds shared_secret, "
            in line
        )
        assert line.endswith("idp_client_secret (chmod 600, or the _file form of the keys)")
        assert SECRET_TEXT not in line


def test_secrets_from_elsewhere_may_stand_beside_a_readable_file(tmp_path: Path) -> None:
    path = write(tmp_path, PUBLIC)
    path.chmod(0o644)
    environ = {"SHARED_SECRET": SECRET_TEXT, "COOKIE_SECRET": SECRET_TEXT}
    _, found = load_and_resolve(path, environ, random_secret=lambda: b"r" * 32)
    assert [issue for issue in found if "every user" in issue.message] == []


def test_secrets_of_routes_count(tmp_path: Path) -> None:
    text = "\nroutes:\n- {from: https://a, to: 'http://b', idp_client_secret: x}\n"
    path = write(tmp_path, without(LOGIN, "shared", "cookie", "idp_client_secret", "cert") + text)
    path.chmod(0o644)
    environ = {"IDP_CLIENT_SECRET": "x"}
    _, found = load_and_resolve(path, environ, random_secret=lambda: b"r" * 32)
    (line,) = (str(issue) for issue in found if "every user" in issue.message)
    assert "which holds routes[0].idp_client_secret (chmod" in line
