"""docs/production.md tells who comes from Pomerium what becomes of each key, as `check` does."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from gatehouse.common.config import keys
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolve import load_and_resolve
from tests.support.configuration import SECRET_TEXT

GUIDE: Final = Path(__file__).parents[2] / "docs" / "production.md"
SAYS: Final = {
    "nothing": None,
    "a warning": Severity.WARNING,
    "an error": Severity.ERROR,
}
BASE: Final = {
    "authenticate_service_url": "https://authenticate.example.com",
    "shared_secret": SECRET_TEXT,
    "cookie_secret": SECRET_TEXT,
    "idp_provider": "google",
    "idp_client_id": "id",
    "idp_client_secret": "not-a-real-secret",
    "insecure_server": True,
    "address": ":8080",
}
ROUTE: Final = {
    "from": "https://app.example.com",
    "to": "http://app",
    "allow_any_authenticated_user": True,
}
# For keys whose value is looked at before their use is.
VALUES: Final[dict[str, Any]] = {
    "autocert": True,
    "auto_apply_changesets": True,
    "blob_storage": {"bucket_uri": "s3://bucket"},
    "databroker_cluster_nodes": [{"id": "a", "grpc_address": "http://a:1"}],
    "databroker_internal_service_url": "http://databroker:5443",
    "databroker_raft_bind_address": "127.0.0.1:9000",
    "mcp_allowed_as_metadata_domains": ["example.com"],
    "mcp_allowed_client_id_domains": ["example.com"],
    "ssh_address": ":22",
    "ssh_rls_enabled": True,
    "allowed_groups": ["admins"],
    "mcp": {"server": {}},
    "session_recording": {"enabled": True},
    "upstream_tunnel": {},
}


def rows() -> list[tuple[list[str], str]]:
    """The keys of each row of the table, and what `check` is said to say of them."""
    text = GUIDE.read_text().partition("## Coming from Pomerium")[2]
    cells = re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    return [(re.findall(r"`([^`]+)`", first), says) for first, _, says in cells]


ROWS: Final = rows()
NAMED: Final = [(key, says) for found, says in ROWS for key in found]
LOUD: Final = [(key, says) for key, says in NAMED if SAYS[says] is not None]


def issues_of(folder: Path, **settings: Any) -> tuple[Issue, ...]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**BASE, **settings}))
    path.chmod(0o600)
    try:
        return load_and_resolve(path, {}, random_secret=lambda: bytes(32))[1]
    except ConfigError as error:
        return error.issues


def test_the_table_is_found() -> None:
    assert len(ROWS) > 20
    assert len({key for key, _ in NAMED}) == len(NAMED), "a key stands in two rows"


def test_every_key_that_is_gone_has_a_row() -> None:
    patterns = [key for key, _ in NAMED if not key.startswith("routes.")]
    missing = {
        key
        for key in set(keys.REMOVED) | set(keys.OLDER)
        if not any(fnmatchcase(key, pattern) for pattern in patterns)
    }
    assert missing == set()
    of_routes = {key.removeprefix("routes.") for key, _ in NAMED if key.startswith("routes.")}
    assert set(keys.REMOVED_ROUTE) <= of_routes


def test_keys_of_rows_that_say_nothing_exist() -> None:
    known = {info.alias or name for name, info in Settings.model_fields.items()}
    for key, says in NAMED:
        if SAYS[says] is None:
            assert any(fnmatchcase(name, key) for name in known), key
            assert key not in keys.REMOVED
            assert key not in keys.OLDER


@pytest.mark.parametrize(("key", "says"), LOUD, ids=[key for key, _ in LOUD])
def test_check_says_what_the_row_says(key: str, says: str, tmp_path: Path) -> None:
    if key.startswith("routes.from: "):
        scheme = key.removeprefix("routes.from: ")
        to = f"{scheme.removesuffix('+https')}://inner:22"
        port = "" if scheme == "ssh" else ":22"
        used: dict[str, Any] = {
            "routes": [{**ROUTE, "from": f"{scheme}://app.example.com{port}", "to": to}]
        }
        at = "routes[0].from"
    elif key.startswith("routes."):
        name = key.removeprefix("routes.")
        used, at = {"routes": [{**ROUTE, name: VALUES.get(name, "text")}]}, f"routes[0].{name}"
    else:
        used, at = {key: VALUES.get(key, "text")}, key
    found = [one for one in issues_of(tmp_path, **used) if one.key == at]
    assert {one.severity for one in found} == {SAYS[says]}, found


def test_a_file_of_pomerium_is_read_as_it_is(tmp_path: Path) -> None:
    """What is in use everywhere: nothing to change, nothing to warn of."""
    settings = {
        "grpc_address": ":5443",
        "signing_key": "",
        "idp_scopes": ["openid", "email", "profile"],
        "idp_request_params": {"prompt": "consent"},
        "programmatic_redirect_domain_whitelist": ["localhost", "cli.example.com"],
        "jwt_claims_headers": ["email", "groups", "user"],
        "jwt_issuer_format": "uri",
        "cookie_expire": "12h",
        "cookie_same_site": "lax",
        "timeout_read": "30s",
        "timeout_idle": "5m",
        "default_upstream_timeout": "30s",
        "dns_lookup_family": "V4_ONLY",
        "circuit_breaker_thresholds": {"max_connections": 1000},
        "access_log_fields": ["authority", "method", "path", "duration"],
        "authorize_log_fields": ["request-id", "email", "headers.X-Real-Ip"],
        "metrics_address": ":9902",
        "runtime_flags": {"match_any_incoming_port": True, "config_hot_reload": True},
        "routes": [
            {
                "from": "https://verify.example.com",
                "to": "http://verify:8080",
                "pass_identity_headers": True,
                "cors_allow_preflight": True,
                "timeout": "30s",
                "set_request_headers": {"X-User": "${pomerium.id_token}"},
                "policy": [
                    {"allow": {"or": [{"domain": {"is": "example.com"}}, {"groups": {"has": "a"}}]}}
                ],
            },
            {
                "from": "https://legacy.example.com",
                "to": ["http://one:8080,1", "http://two:8080,3"],
                "allowed_users": ["bob@example.com"],
                "allowed_domains": ["example.com"],
                "allowed_idp_claims": {"family_name": ["Doe"]},
                "lb_policy": "MAGLEV",
                "allow_websockets": True,
            },
        ],
    }
    assert [str(one) for one in issues_of(tmp_path, **settings)] == []
