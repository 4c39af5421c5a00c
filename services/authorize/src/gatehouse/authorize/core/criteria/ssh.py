"""Criteria about logins over SSH. A request over HTTP has the user name "" and no key."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
)

from gatehouse.authorize.core.check_request import RequestFacts, SSHLogin
from gatehouse.authorize.core.criteria.facts import (
    UNAUTHENTICATED,
    Compiled,
    Result,
    plain,
)
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.policy.ast import Criterion
from gatehouse.common.policy.matchers import parse_string_matcher
from gatehouse.common.policy.matching import string_predicate
from gatehouse.common.policy.ssh_keys import key_type, parse_ssh_keys

_MAX_KEY: Final = 16 * 1024  # bytes


def ssh_username(criterion: Criterion) -> Compiled:
    """The user name that is asked for."""
    matches = string_predicate(parse_string_matcher(criterion.data))
    return plain("ssh-username", lambda facts, _identity: matches(_username(facts)))


def ssh_username_matches_email(criterion: Criterion) -> Compiled:
    """The user name is what the email has before its `@`; also when both are empty."""
    del criterion
    return _matching_username(lambda name, identity: name == identity.email.partition("@")[0])


def ssh_username_matches_claim(criterion: Criterion) -> Compiled:
    """The user name is one of the values of a claim, by its flattened name."""
    claim = str(criterion.data)
    return _matching_username(lambda name, identity: name in _texts(identity.claims.get(claim, ())))


def ssh_publickey(criterion: Criterion) -> Compiled:
    """The key is one of these."""
    keys = parse_ssh_keys(criterion.data)

    def condition(facts: RequestFacts, identity: Identity) -> bool:
        del identity
        return facts.ssh is not None and facts.ssh.public_key in keys

    return plain("ssh-publickey", condition)


def ssh_ca(criterion: Criterion) -> Compiled:
    """The key is a user certificate of one of these authorities that holds now for this user.

    How long it holds is not said: such decisions are made for each login anew.
    """
    authorities = parse_ssh_keys(criterion.data)

    def condition(facts: RequestFacts, identity: Identity) -> bool:
        del identity
        return facts.ssh is not None and _is_certified(facts.ssh, authorities, facts.now_s)

    return plain("ssh-publickey", condition)


def _username(facts: RequestFacts) -> str:
    return facts.ssh.username if facts.ssh is not None else ""


def _texts(values: tuple[object, ...]) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def _matching_username(condition: Callable[[str, Identity], bool]) -> Compiled:
    passed, failed = (True, "ssh-username-ok"), (False, "ssh-username-unauthorized")

    def test(facts: RequestFacts, identity: Identity) -> Result:
        if condition(_username(facts), identity):
            return passed
        return failed if identity.has_session else UNAUTHENTICATED

    return Compiled(test, (passed, failed, UNAUTHENTICATED))


def _is_certified(login: SSHLogin, authorities: frozenset[bytes], now_s: float) -> bool:
    blob = login.public_key
    kind = key_type(blob)
    if len(blob) > _MAX_KEY or not kind.endswith("-cert-v01@openssh.com"):
        return False
    try:
        certificate = load_ssh_public_identity(kind.encode() + b" " + base64.b64encode(blob))
        if not isinstance(certificate, SSHCertificate):
            return False
        signer = certificate.signature_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        if base64.b64decode(signer.split()[1]) not in authorities:
            return False
        certificate.verify_cert_signature()
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return (
        certificate.type is SSHCertificateType.USER
        # Without principals a certificate would be good for every user.
        and login.username.encode() in certificate.valid_principals
        and certificate.valid_after <= now_s < certificate.valid_before
        and not certificate.critical_options  # none of them is enforced here
    )
