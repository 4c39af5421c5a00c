"""Policies that are valid and do not say what was meant: warnings, with place and remedy."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from gatehouse.common.config.inputs import Inputs
from gatehouse.common.config.resolve_routes import RouteResolver
from tests.support.configuration import (
    LOGIN,
    authority_pem,
    load,
    problems,
    resolved,
    shown,
    warnings,
)

ROUTE = """routes:
- from: https://a.example.com
  to: http://a
"""


def about_policies(folder: Path, text: str) -> list[str]:
    return [
        line for line in warnings(folder, LOGIN + text) if "routes[" in line or "policy[" in line
    ]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (
            "- allow: {or: [{email: {is: [a@b.c, d@e.f]}}]}",
            (
                "15: routes[0].policy[0].allow.or[0].email: is compares with the whole "
                "list, which one text never equals (use in for several values)"
            ),
        ),
        (
            "- allow:\n      and:\n      - http_method: {is: get}",
            (
                '17: routes[0].policy[0].allow.and[0].http_method: "get" never comes: '
                "methods are upper case (write GET)"
            ),
        ),
        (
            "  allow: {or: [{claim/team/name: x}]}",
            (
                "15: routes[0].policy.allow.or[0].claim/team/name: a / after the "
                "first is part of the claim's name, so a nested claim is not found "
                "(write claim/team.name for a nested claim)"
            ),
        ),
    ],
)
def test_hazards_are_told_with_their_line(tmp_path: Path, policy: str, expected: str) -> None:
    assert about_policies(tmp_path, f"{ROUTE}  policy:\n  {policy}\n") == [expected]


def test_what_older_keys_say_counts_too(tmp_path: Path) -> None:
    text = f"{ROUTE}  allowed_idp_claims: {{team/name: [x]}}\n"
    (line,) = about_policies(tmp_path, text)
    assert line.startswith("14: routes[0].allowed_idp_claims: claim/team/name: a / after the first")
    text = (
        f"{ROUTE}  allow_public_unauthenticated_access: true\n"
        "  policy: [{deny: {or: [{email: {is: a@b.c}}]}}]\n"
    )
    (line,) = about_policies(tmp_path, text)
    assert "who is refused depends on the user, so everybody must sign in first" in line


def test_nobody_is_told_once(tmp_path: Path) -> None:
    for policy in ("", "  policy: [{deny: {or: [{source_ip: 10.0.0.0/8}]}}]\n"):
        (line,) = about_policies(tmp_path, ROUTE + policy)
        assert "nobody may use this route" in line


CERTIFICATES = "  policy: [{allow: {or: [{client_certificate: {san_dns: a}}]}}]\n"


@pytest.mark.parametrize(
    ("mtls", "told"),
    [
        ("", True),
        ("downstream_mtls: {ca: CA}\n", False),
        ("downstream_mtls: {ca: CA, enforcement: reject_connection}\n", False),
        ("downstream_mtls: {ca: CA, enforcement: policy}\n", True),
    ],
)
def test_the_default_certificate_rule_counts(tmp_path: Path, mtls: str, told: bool) -> None:
    pem = authority_pem()
    loaded = load(
        tmp_path, mtls.replace("CA", base64.b64encode(pem).decode(), 1) + ROUTE + CERTIFICATES
    )
    inputs = Inputs(loaded, frozenset(), Path.read_bytes)
    RouteResolver(
        settings=loaded.settings,
        services=frozenset(),
        provider=None,
        shared_secrets=(bytes(32),),
        signing_keys=(),
        downstream_mtls=(pem if mtls else None, None),
        inputs=inputs,
    ).resolve()
    lines = [shown(issue) for issue in inputs.warnings]
    assert any("not whether it is trusted" in line for line in lines) is told


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            "  policy: [{allow: {or: [{claim/Team: x}]}}]\n",
            (
                "14: routes[0].policy[0].allow.or[0].claim/team: keys of a file are read in lower "
                "case: 'claim/Team' becomes claim/team"
            ),
        ),
        (
            "  policy: [{allow: {or: [{Claim/team: x}]}}]\n",
            "",
        ),
        (
            "  allowed_idp_claims: {memberOf: [x]}\n",
            (
                "14: routes[0].allowed_idp_claims.memberof: keys of a file are read in lower case: "
                "'memberOf' becomes allowed_idp_claims.memberof"
            ),
        ),
        ("  Policy: [{Allow: {Or: [{claim/team: x}]}}]\n", ""),
        ("  set_request_headers: {X-A: b}\n  allowed_users: [a]\n", ""),
    ],
)
def test_claims_that_lost_their_capitals(tmp_path: Path, keys: str, expected: str) -> None:
    lines = about_policies(tmp_path, ROUTE + keys)
    assert [line[: len(expected)] for line in lines] == ([expected] if expected else [])


def test_the_environment_keeps_the_letters_of_claims(tmp_path: Path) -> None:
    routes = '[{"from": "https://a.example.com", "to": "http://a", "policy": '
    routes += '[{"allow": {"or": [{"claim/Team": "x"}]}}]}]'
    environ = {"ROUTES": base64.b64encode(routes.encode()).decode()}
    found, issues = resolved(tmp_path, LOGIN, environ)
    (criterion,) = found.routes[0].policy.criteria()
    assert criterion.sub_path == "Team"
    assert [shown(issue) for issue in issues if "lower case" in issue.message] == []


def test_groups_told_in_the_assertion(tmp_path: Path) -> None:
    text = f"{LOGIN}{ROUTE}  allowed_users: [a]\n"
    plain = resolved(tmp_path, text)[0]
    assert plain.settings.jwt_groups_filter == ()
    assert plain.routes[0].settings.jwt_groups_filter == ()
    of_all = resolved(tmp_path, f"jwt_groups_filter: [a, b]\n{text}")[0]
    assert of_all.settings.jwt_groups_filter == ("a", "b")
    of_one = resolved(tmp_path, f"{text}  jwt_groups_filter: c\n")[0]
    assert of_one.routes[0].settings.jwt_groups_filter == ("c",)
    checksums = {found.routes[0].checksum for found in (plain, of_all, of_one)}
    assert len(checksums) == 3
    assert {found.routes[0].id for found in (plain, of_all, of_one)} == {plain.routes[0].id}
    assert problems(tmp_path, f"jwt_groups_filter: {{}}\n{text}") != []
