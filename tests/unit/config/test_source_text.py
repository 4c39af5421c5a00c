"""Keys that take text get what stands in the file, though YAML reads it as something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gatehouse.common.config.model import Settings
from tests.support.configuration import LOGIN, load, resolved

# What people write without quotes: hex, versions, ids, dates, times, words that were booleans.
UNQUOTED = (
    *("50494E47", "504F4E47", "0x1F", "0o17", "0b11", "1_000", "1e3", "1.10", ".5", "+1", "007"),
    *(
        "12345678901234567890123",
        "1.0",
        "-0",
        "2024-01-01",
        "12:30",
        "on",
        "yes",
        "no",
        "y",
        "1e9999",
    ),
)
TCP = """
routes:
- from: https://a.example.com
  to: http://a
  allow_any_authenticated_user: true
  health_checks:
  - timeout: 10s
    interval: 60s
    healthy_threshold: 1
    unhealthy_threshold: 2
    tcp_health_check:
      send:
        text: 50494E47
      receive:
        text: 504F4E47
"""


def settings(folder: Path, text: str) -> Settings:
    return load(folder, text).settings


def test_the_example_of_the_reference_documentation(tmp_path: Path) -> None:
    text = TCP.replace("receive:\n        text", "receive:\n      - text")
    (route,) = resolved(tmp_path, LOGIN + text)[0].routes
    checker = route.settings.health_checks[0].tcp_health_check
    assert checker is not None
    assert checker.send is not None
    assert checker.send.text == "50494E47"
    assert [part.text for part in checker.receive] == ["504F4E47"]


@pytest.mark.parametrize("text", UNQUOTED)
def test_every_kind_of_text(tmp_path: Path, text: str) -> None:
    found = settings(
        tmp_path,
        f"""
        installation_id: {text}
        idp_client_id: {text}
        idp_client_secret: {text}
        ssh_host_keys: [{text}]
        idp_scopes: [{text}]
        programmatic_redirect_domain_whitelist: {text}
        idp_request_params: {{k: {text}}}
        set_response_headers: {{x-a: {text}}}
        certificate_authority_file: {text}
        routes:
        - name: {text}
          from: {text}
          to: {text}
          set_request_headers: {{x-a: {text}}}
          prefix: {text}
          redirect: {{host_redirect: {text}}}
          response: {{status: 200, body: {text}}}
          allowed_users: [{text}]
          idp_client_secret: {text}
        """,
    )
    (route,) = found.routes
    assert route.redirect is not None
    assert route.response is not None
    assert route.idp_client_secret is not None
    got: list[Any] = [
        *(found.installation_id, found.idp_client_id, found.idp_client_secret.get_secret_value()),
        *(found.ssh_host_keys[0].get_secret_value(), *found.idp_scopes),
        *(
            *found.programmatic_redirect_domain_whitelist,
            *(found.idp_request_params or {}).values(),
        ),
        *((found.set_response_headers or {}).values()),
        *(found.certificate_authority_file, route.name, route.from_, *route.to),
        *(*route.set_request_headers.values(), route.prefix, route.redirect.host_redirect),
        *(route.response.body, *route.allowed_users, route.idp_client_secret.get_secret_value()),
    ]
    assert got == [text] * len(got)


def test_numbers_stay_numbers_where_numbers_are_meant(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        """
        xff_num_trusted_hops: 0x2
        otel_traces_sampler_arg: 1e-1
        decision_cache_bytes: 1_000
        routes:
        - from: https://a
          to: http://a, 0x1
          allowed_idp_claims: {level: [0x1F, 1.10]}
        """,
    )
    assert found.xff_num_trusted_hops == 2
    assert found.otel_traces_sampler_arg == 0.1
    assert found.decision_cache_bytes == 1000
    assert found.routes[0].allowed_idp_claims == {"level": [31, 1.1]}
    assert json.loads(found.model_dump_json())["routes"][0]["allowed_idp_claims"] == {
        "level": [31, 1.1]
    }
