"""A wrong key of a route hides neither its other mistakes nor makes up any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolve import load_and_resolve
from tests.support.configuration import CERTIFICATE, KEY, LOGIN, RANDOM

CHECK = {"timeout": "1s", "interval": "1s", "unhealthy_threshold": 1, "healthy_threshold": 1}
CLIENT = {"tls_client_cert_file": "{}/cert.pem", "tls_client_key_file": "{}/key.pem"}
SOUND: tuple[dict[str, Any], ...] = (
    {
        "to": ["http://a,1", "http://b,2"],
        "path": "/x",
        "prefix_rewrite": "/y",
        "allowed_users": ["a@b.c"],
        "timeout": "5s",
        "idle_timeout": "5s",
        "load_balancing_policy": "RING_HASH",
        "ring_hash_lb_config": {"minimum_ring_size": 4},
        "health_checks": [{**CHECK, "http_health_check": {"path": "/"}}],
        "outlier_detection": {"interval": "1s"},
        "set_request_headers": {"X": "y"},
        "allow_websockets": True,
    },
    {
        "to": "h2c://a",
        "regex": "/a(.*)",
        "regex_rewrite_pattern": "(a)",
        "regex_rewrite_substitution": "\\1",
        "host_path_regex_rewrite_pattern": "(a)",
        "host_path_regex_rewrite_substitution": "\\1",
        "policy": [{"allow": {"and": [{"email": {"is": "a@b.c"}}]}}],
        "health_checks": [{**CHECK, "grpc_health_check": {}}],
    },
    {"to": "https://a", "allow_any_authenticated_user": True, "tls_skip_verify": True, **CLIENT},
    {"redirect": {"path_redirect": "/x"}, "allow_public_unauthenticated_access": True},
    {"response": {"status": 200, "body": "x"}, "allow_public_unauthenticated_access": True},
)
CASES = [(number, key) for number, keys in enumerate(SOUND) for key in ("from", *keys)]


def errors_of(folder: Path, route: dict[str, Any]) -> list[str]:
    for name, pem in (("cert.pem", CERTIFICATE), ("key.pem", KEY)):
        (folder / name).write_bytes(pem)
    file = folder / "config.yaml"
    written = {
        key: value.format(folder) if key in CLIENT and isinstance(value, str) else value
        for key, value in route.items()
    }
    file.write_text(LOGIN.replace("/tls/", f"{folder}/") + yaml.safe_dump({"routes": [written]}))
    try:
        load_and_resolve(file, {}, random_secret=lambda: RANDOM)
    except ConfigError as error:
        return [issue.key for issue in error.issues]
    return []


@pytest.mark.parametrize("wrong", [[[]], {"no": {"such": []}}], ids=["list", "map"])
@pytest.mark.parametrize(("number", "key"), CASES)
def test_nothing_is_said_of_the_sound_keys_beside_a_wrong_one(
    tmp_path: Path, number: int, key: str, wrong: Any
) -> None:
    route = {"from": "https://app.example.com", **SOUND[number]}
    assert errors_of(tmp_path, route) == []
    found = errors_of(tmp_path, {**route, key: wrong})
    assert found or isinstance(wrong, dict)  # of a map's unknown keys there is a warning
    assert all(each.startswith(f"routes[0].{key}") for each in found), found


def test_all_mistakes_of_a_route_are_told_at_once(tmp_path: Path) -> None:
    route = {
        "from": "app.example.com",
        "to": "a:80",
        "path": "/x",
        "prefix": "/y",
        "timeout": 30,
        "allowed_users": {"a": 1},
        "host_rewrite": "http://a",
        "regex_rewrite_pattern": "(",
    }
    assert sorted(errors_of(tmp_path, route)) == [
        "routes[0].allowed_users",
        "routes[0].from",
        "routes[0].host_rewrite",
        "routes[0].prefix",
        "routes[0].regex_rewrite_pattern",
        "routes[0].timeout",
        "routes[0].to",
    ]
