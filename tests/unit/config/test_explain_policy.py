"""`explain_policy`: read as policies of routes are, and refused where it could not hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatehouse.common.policy.parser import parse_policy
from tests.support.configuration import LOGIN, problems, resolved, warnings

HEAD = LOGIN + "explain_policy:\n"


def told(folder: Path, text: str) -> list[str]:
    return [line for line in warnings(folder, HEAD + text) if "explain_policy" in line]


def test_nobody_may_ask_unless_it_is_set(tmp_path: Path) -> None:
    assert resolved(tmp_path, LOGIN)[0].explain_policy is None
    in_file, _ = resolved(tmp_path, HEAD + "  allow: {or: [{groups: admins}]}\n")
    assert in_file.explain_policy == parse_policy({"allow": {"or": [{"groups": "admins"}]}})
    environ = {"EXPLAIN_POLICY": '[{"allow": {"or": [{"groups": "admins"}]}}]'}
    in_environment, _ = resolved(tmp_path, LOGIN, environ)
    assert in_environment.explain_policy == parse_policy(
        [{"allow": {"or": [{"groups": "admins"}]}}]
    )


@pytest.mark.parametrize(
    "criterion",
    [
        *("http_method: GET", "http_path: /", "cors_preflight: true", "client_certificate: {}"),
        *("invalid_client_certificate: true", "mcp_tool: x", "ssh_username: root"),
        "record: {type: example.com/r, field: a, is: b}",
    ],
)
def test_only_who_asks_from_where_and_when_is_known(tmp_path: Path, criterion: str) -> None:
    text = f"{HEAD}  allow:\n    and:\n    - email: a@example.com\n    - {criterion}\n"
    (problem,) = problems(tmp_path, text)
    line = text.count("\n")
    assert problem.startswith(f"{line}: explain_policy.allow.and[1].")
    assert "cannot hold here: only who asks, from where and when is known" in problem


def test_a_mistake_has_its_line(tmp_path: Path) -> None:
    text = f"{HEAD}  allow:\n    or:\n    - emial: a@example.com\n"
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(f"{text.count(chr(10))}: explain_policy.allow.or[0].emial: unknown")


@pytest.mark.parametrize(
    ("policy", "is_told"),
    [
        ("allow: {or: [{authenticated_user: true}]}", True),
        ("allow: {and: [{accept: true}]}", True),
        ("allow: {or: [{email: a@example.com}, {accept: true}]}", True),
        ("allow: {and: [{authenticated_user: true}, {email: a@example.com}]}", False),
        ("allow: {or: [{email: a@example.com}]}", False),
    ],
)
def test_everybody_is_warned_of(tmp_path: Path, policy: str, is_told: bool) -> None:
    found = told(tmp_path, f"  {policy}\n")
    assert any("whoever is signed in may see" in line for line in found) is is_told


def test_a_claim_that_lost_its_capitals_is_warned_of(tmp_path: Path) -> None:
    (line,) = told(tmp_path, "  allow: {or: [{claim/isAdmin: true}]}\n")
    assert "explain_policy.allow.or[0].claim/isadmin: " in line
