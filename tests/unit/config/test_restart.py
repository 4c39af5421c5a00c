"""What a reload may not change, and how the message says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatehouse.common.config.restart import restart_needed
from tests.support.configuration import LOGIN, resolved

SPLIT = "databroker_service_url: http://d\nauthorize_service_url: http://z\n"


@pytest.mark.parametrize(
    ("text", "key", "before", "after"),
    [
        ("insecure_server: true", "insecure_server", "false", "true"),
        ("services: proxy", "services", "all", "proxy"),
        ("services: proxy, authorize", "services", "all", "authorize,proxy"),
        ("grpc_address: '127.0.0.1:9'", "grpc_address", ":5443", "127.0.0.1:9"),
        ("grpc_insecure: false", "grpc_insecure", "true", "false"),
        ("authorize_workers: 2", "authorize_workers", "1", "2"),
        ("health_check_addr: ':1'", "health_check_addr", "127.0.0.1:28080", ":1"),
        ("health_check_systemd_disabled: true", "health_check_systemd_disabled", "false", "true"),
        (
            "runtime_flags: {config_hot_reload: false}",
            "runtime_flags.config_hot_reload",
            "true",
            "false",
        ),
        (
            "runtime_flags: {set_envoy_concurrency_to_go_max_procs: false}",
            "runtime_flags.set_envoy_concurrency_to_go_max_procs",
            "true",
            "false",
        ),
        ("envoy_admin_profile_path: /tmp/p", "envoy_admin_profile_path", "/dev/null", "/tmp/p"),
    ],
)
def test_each_is_named_with_both_values(
    tmp_path: Path, text: str, key: str, before: str, after: str
) -> None:
    first = resolved(tmp_path, LOGIN + SPLIT)[0]
    new = resolved(tmp_path, f"{LOGIN}{SPLIT}{text}\n")[0]
    (issue,) = restart_needed(first, new)
    assert str(issue) == (
        f"error: {key}: cannot change while running: {before} is in force, {after} is asked for "
        f"(restart the process, or set {before} again; until then nothing of this is taken up)"
    )


def test_all_else_may_change(tmp_path: Path) -> None:
    first = resolved(tmp_path, LOGIN)[0]
    new = resolved(tmp_path, f"{LOGIN}address: ':8443'\nlog_level: debug\ncodec_type: http2\n")[0]
    assert restart_needed(first, new) == ()
