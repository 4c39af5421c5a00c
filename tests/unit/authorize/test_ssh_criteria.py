"""Who gets in over SSH, by name, key and certificate."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import SSHCertificateType

from gatehouse.authorize.core.check_request import SSHLogin
from tests.support.policy import evaluate, example_identity, request_facts
from tests.support.ssh import (
    AUTHORITY,
    CERTIFIED_AT_S,
    OTHER_AUTHORITY,
    USER_KEY,
    blob_of,
    certificate,
    line_of,
)

OK, REFUSED = "ssh-publickey-ok", "ssh-publickey-unauthorized"


def reasons(policy: str, who: str = "nobody", **facts: Any) -> set[str]:
    evaluation, _ = evaluate(policy, example_identity(who), request_facts(**facts))
    return set(evaluation.allow.reasons)


def login(line: str, name: str = "a") -> dict[str, Any]:
    return {"ssh": SSHLogin(name, blob_of(line)), "now_s": CERTIFIED_AT_S}


@pytest.mark.parametrize(
    "written",
    [
        "{key}",
        "{key} ann@laptop",
        'no-pty,command="echo \\"hi there\\"" {key} ann',
    ],
)
def test_a_key_is_known_by_itself_alone(written: str) -> None:
    key = line_of(USER_KEY)
    text = written.format(key=key).replace("'", "''")
    policy = f"allow: {{and: [{{ssh_publickey: ['{text}']}}]}}"
    assert reasons(policy, **login(key)) == {OK}
    assert reasons(policy, **login(line_of(AUTHORITY))) == {REFUSED}
    assert reasons(policy) == {REFUSED}


CA = f"allow: {{and: [{{ssh_ca: '{line_of(AUTHORITY)}'}}]}}"
NOW = int(CERTIFIED_AT_S)


def test_a_certificate_of_the_authority_gets_in() -> None:
    assert reasons(CA, **login(certificate(AUTHORITY))) == {OK}
    assert reasons(CA, **login(certificate(AUTHORITY, principals=("x", "a")))) == {OK}


@pytest.mark.parametrize(
    "line",
    [
        line_of(AUTHORITY),
        certificate(OTHER_AUTHORITY),
        certificate(AUTHORITY, principals=("b",)),
        certificate(AUTHORITY, principals=()),
        certificate(AUTHORITY, kind=SSHCertificateType.HOST),
        certificate(AUTHORITY, valid=(NOW + 1, NOW + 60)),
        certificate(AUTHORITY, valid=(NOW - 60, NOW)),
        certificate(AUTHORITY, options={"force-command": "true"}),
        certificate(AUTHORITY, options={"made-up": "x"}),
    ],
)
def test_r62_other_certificates_do_not(line: str) -> None:
    assert reasons(CA, **login(line)) == {REFUSED}


def test_r62_a_certificate_that_was_changed_does_not() -> None:
    whole = blob_of(certificate(AUTHORITY))
    for place in range(0, len(whole), 7):
        changed = bytes([*whole[:place], whole[place] ^ 1, *whole[place + 1 :]])
        refused = reasons(CA, ssh=SSHLogin("a", changed), now_s=CERTIFIED_AT_S)
        assert refused == {REFUSED}, place
    for junk in (b"", b"\0", whole[:40], whole * 200):
        assert reasons(CA, ssh=SSHLogin("a", junk), now_s=CERTIFIED_AT_S) == {REFUSED}


def test_names_and_sessions() -> None:
    by_email = "allow: {and: [{ssh_username_matches_email: true}]}"
    by_claim = "allow: {and: [{ssh_username_matches_claim: level}]}"
    a: dict[str, Any] = {"ssh": SSHLogin("a", b"")}
    assert reasons(by_email, "s1", ssh=SSHLogin("b", b"")) == {"ssh-username-unauthorized"}
    assert reasons(by_email, "nobody", **a) == {"user-unauthenticated"}
    assert reasons(by_claim, "s1", ssh=SSHLogin("7", b"")) == {"ssh-username-unauthorized"}
    assert reasons(by_claim, "nobody", **a) == {"user-unauthenticated"}
    assert reasons("allow: {or: [{ssh_username: {is: a}}]}", **a) == {"ssh-username-ok"}
