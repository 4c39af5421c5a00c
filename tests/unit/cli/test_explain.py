"""The commands that ask a policy without a request."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gatehouse.cli.explain import explain, facts_of
from gatehouse.cli.policy_test import policy_test
from gatehouse.common.policy.errors import PolicyError
from tests.support.clock import FakeClock
from tests.support.configuration import authority_pem

CONFIG = """
shared_secret: c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U=
authenticate_service_url: https://authenticate.example.com
idp_provider: oidc
idp_provider_url: https://idp.example.com
idp_client_id: client
idp_client_secret: secret
routes:
  - name: app
    from: https://app.example.com
    to: http://127.0.0.1:1
    policy: {allow: {and: [{domain: example.com}, {http_method: GET}]}}
  - from: https://hours.example.com
    to: http://127.0.0.1:1
    policy: {allow: {or: [{time_of_day: {timezone: UTC, after: "9:00", before: "17:00"}}]}}
"""


def config_file(directory: Path, text: str = CONFIG) -> Path:
    path = directory / "config.yaml"
    path.write_text(text)
    return path


def run_explain(
    directory: Path, route: str = "app", *, text: str = CONFIG, **options: Any
) -> tuple[int, str]:
    stream = io.StringIO()
    console = Console(file=stream, width=300)
    facts = options.pop("facts", {})
    status = explain(
        config_file(directory, text),
        {},
        route=route,
        facts=facts,
        console=console,
        clock=FakeClock(),
        **options,
    )
    return status, stream.getvalue()


def test_people_see_the_outcome_its_parts_and_the_way_in(tmp_path: Path) -> None:
    status, text = run_explain(tmp_path, facts={"email": "a@other.com"})
    assert status == 0
    assert text.startswith("denied 403")
    assert "domain-unauthorized" in text
    assert 'email = "a@other.com"' in text
    assert "It would be allowed with:" in text
    assert "allow.and[0].domain: domain-ok instead of domain-unauthorized" in text


@pytest.mark.parametrize("route", ["app", "https://app.example.com/", "0"])
def test_a_route_is_named_in_several_ways(tmp_path: Path, route: str) -> None:
    status, text = run_explain(tmp_path, route, facts={"email": "a@example.com"})
    assert (status, text.split()[0]) == (0, "allowed")


@pytest.mark.parametrize(
    "address", ["https://app.example.com:8443/", "https://App.example.com/some/where?x=y"]
)
def test_a_route_is_named_by_an_address_from_the_browser(tmp_path: Path, address: str) -> None:
    status, text = run_explain(tmp_path, address, facts={"email": "a@example.com"})
    assert (status, text.split()[0]) == (0, "allowed")


@pytest.mark.parametrize(
    "address", ["https://app.example.com@evil.example/", "https://other.example.com/", "https://["]
)
def test_an_address_of_no_host_of_ours_names_no_route(tmp_path: Path, address: str) -> None:
    assert run_explain(tmp_path, address)[0] == 2


def test_an_address_does_not_say_which_of_several_routes_of_a_host_is_meant(tmp_path: Path) -> None:
    text = CONFIG.replace(
        "  - from: https://hours",
        "  - {from: 'https://app.example.com', prefix: /b, to: 'http://b'}\n  - from: https://hours",
    )
    assert run_explain(tmp_path, "https://app.example.com/b", text=text)[0] == 2


def test_an_unknown_route_lists_those_there_are(tmp_path: Path) -> None:
    status, text = run_explain(tmp_path, "nope")
    assert status == 2
    assert "https://hours.example.com" in text


def test_time_is_now_unless_it_is_said(tmp_path: Path) -> None:
    status, text = run_explain(tmp_path, "1", facts={})  # 08:00 UTC by the clock
    assert (status, text.split()[0]) == (0, "denied")
    assert "Time alone may change this at 2027-01-15T09:00:00+00:00." in text
    _, text = run_explain(tmp_path, "1", facts={"time": "2027-01-15T12:00:00Z"})
    assert text.split()[0] == "allowed"


def test_programs_get_json(tmp_path: Path) -> None:
    status, text = run_explain(tmp_path, facts={}, as_json=True)
    found = json.loads(text)
    assert status == 0
    assert found["outcome"] == "sign-in"
    assert found["operators"][0]["criteria"][0]["reason"] == "user-unauthenticated"


def test_the_default_certificate_rule_is_part_of_the_policy(tmp_path: Path) -> None:
    """Where certificates are asked for, a request has none unless the facts say otherwise."""
    ca = base64.b64encode(authority_pem()).decode()
    config = f"{CONFIG}downstream_mtls: {{ca: {ca}}}\n"
    for facts, outcome in (
        ({}, "denied 495"),
        ({"certificate": "invalid"}, "denied 495"),
        ({"certificate": "valid"}, "allowed"),
    ):
        who = {"email": "a@example.com", **facts}
        status, text = run_explain(tmp_path, facts=who, text=config)
        assert (status, text.startswith(outcome)) == (0, True), text
    unenforced = config.replace("downstream_mtls: {", "downstream_mtls: {enforcement: policy, ")
    _, text = run_explain(tmp_path, facts={"email": "a@example.com"}, text=unenforced)
    assert text.startswith("allowed")

    cases = tmp_path / "cases.yaml"
    cases.write_text(
        "{config: config.yaml, route: app, cases: ["
        "{facts: {email: a@example.com}, expect: 495},"
        "{facts: {email: a@example.com, certificate: valid}, expect: allowed}]}"
    )
    config_file(tmp_path, config)
    assert policy_test(cases, {}, console=Console(file=io.StringIO())) == 0


@pytest.mark.parametrize("facts", [{"usr": "x"}, {"time": "noon"}])
def test_wrong_facts_and_wrong_files_are_2(tmp_path: Path, facts) -> None:
    assert run_explain(tmp_path, facts=facts)[0] == 2
    assert explain(tmp_path / "none.yaml", {}, route="app", facts={}) == 2


def test_options_become_facts() -> None:
    assert facts_of(
        user="u1",
        groups="g1, g2",
        claims=["level=7", "dept=x", 'roles=["a"]'],
        path="/a",
        facts='{"devices": {"any": {"id": "d"}}}',
    ) == {
        "user": "u1",
        "path": "/a",
        "groups": ["g1", "g2"],
        "claims": {"level": 7, "dept": "x", "roles": ["a"]},
        "devices": {"any": {"id": "d"}},
    }
    assert facts_of() == {}
    for wrong in ({"claims": ["x"]}, {"facts": "["}, {"facts": "[]"}):
        with pytest.raises(PolicyError):
            facts_of(**wrong)


CASES = """
policy:
  allow: {and: [{domain: example.com}, {http_method: {in: [GET, HEAD]}}]}
cases:
  - name: colleagues read
    facts: {email: ann@example.com}
    expect: allowed
  - name: others do not
    facts: {email: eve@evil.example}
    expect: {outcome: denied, status: 403, reasons: [domain-unauthorized]}
  - name: nobody knows before they sign in
    expect: sign-in
  - name: another policy
    policy: {allow: {or: [{accept: true}]}}
    expect: 200
"""


def run_cases(directory: Path, text: str, **options: Any) -> tuple[int, str]:
    path = directory / "cases.yaml"
    path.write_text(text)
    stream = io.StringIO()
    status = policy_test(path, {}, console=Console(file=stream, width=200), **options)
    return status, stream.getvalue()


def test_cases_that_hold_pass(tmp_path: Path) -> None:
    assert run_cases(tmp_path, CASES) == (0, "4 passed, 0 failed\n")


def test_a_failure_shows_what_was_expected_and_what_came(tmp_path: Path) -> None:
    text = CASES.replace("expect: allowed", "expect: {outcome: denied, reasons: [x]}")
    status, printed = run_cases(tmp_path, text)
    assert status == 1
    assert "fail  colleagues read (" in printed
    assert "cases.yaml:5)" in printed
    assert "- outcome: denied" in printed
    assert "+ outcome: allowed" in printed
    assert "- reasons: ['x']" in printed
    assert "+ reasons: ['domain-ok', 'http-method-ok']" in printed
    assert "3 passed, 1 failed" in printed


def test_verbose_explains_failures(tmp_path: Path) -> None:
    status, printed = run_cases(tmp_path, CASES.replace("200", "403"), verbose=True)
    assert status == 1
    assert "pass  colleagues read" in printed
    assert "1. allow or: true" in printed


def test_cases_may_be_about_a_route_of_a_configuration(tmp_path: Path) -> None:
    config_file(tmp_path)
    text = """
    config: config.yaml
    route: app
    cases: [{facts: {email: a@example.com}, expect: {allow: true, deny: false}}]
    """
    assert run_cases(tmp_path, text)[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not YAML"),
        ("[]", "expected an object"),
        ("cases: []", "cases: expected a list of one case or more"),
        ("cases: [{expect: allowed}]", "cases[0]: there is no policy"),
        ("{policy: {}, cases: [{}]}", "cases[0]: the case expects nothing"),
        ("{policy: {}, cases: [{expect: yes please}]}", "cases[0].expect.outcome: expected one of"),
        ("{policy: {}, cases: [{expect: {}}]}", "cases[0].expect: the case expects nothing"),
        ("{policy: {}, cases: [{expect: {reasons: x}}]}", "expect.reasons: expected a list"),
        ("{policy: {}, cases: [{expects: 1}]}", "cases[0]: unknown key expects"),
        ("{policy: {}, case: []}", "unknown key case"),
        ("{policy: {}, cases: [{facts: {usr: x}, expect: allowed}]}", "unknown fact: usr"),
        ("{policy: {alow: {}}, cases: [{expect: 403}]}", "policy.alow: invalid rules in policy"),
        (
            "{policy: {allow: {or: [{day_of_week: mon}]}}, cases: [{expect: 403}]}",
            "cases[0].facts: the policy depends on the time",
        ),
        ("{config: none.yaml, route: app, cases: [{expect: 403}]}", "config: the configuration"),
        ("{config: c, cases: [{expect: 403}]}", "config and route belong together"),
    ],
)
def test_files_that_cannot_be_used_are_2_and_say_why(tmp_path: Path, text, message) -> None:
    status, printed = run_cases(tmp_path, text)
    assert status == 2
    assert message in printed


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("policy:\n  allow:\n    or:\n      - domian: x\ncases:\n  - expect: allowed\n", 4),
        ("policy: {}\ncases:\n  - expect: 403\n  - facts: {usr: x}\n    expect: 403\n", 4),
        ("policy: {}\ncases:\n  - expect: 403\n    facts: {ip: 5}\n", 4),
        ("policy:\n  - [\n", 3),
    ],
)
def test_what_is_wrong_in_a_file_has_its_line(tmp_path: Path, text: str, line: int) -> None:
    status, printed = run_cases(tmp_path, text)
    assert status == 2
    assert f"cases.yaml:{line}: " in printed


def test_a_missing_file_is_2(tmp_path: Path) -> None:
    stream = io.StringIO()
    missing = tmp_path / "none.yaml"
    assert policy_test(missing, {}, console=Console(file=stream, soft_wrap=True)) == 2
    assert stream.getvalue() == f"{missing}: No such file or directory\n"
