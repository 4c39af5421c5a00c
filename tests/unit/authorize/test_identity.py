"""Who somebody is to policy and to upstreams: which record counts where (spec: policy, inputs)."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gatehouse.common.databroker.records import record_of
from gatehouse.common.jose.keys import derive_signing_key, load_signing_keys, verify_jwt
from gatehouse.pb.databroker_pb2 import Record
from gatehouse.pb.session_pb2 import Session
from tests.support.check import (
    SECRET,
    Desk,
    handle_token,
    is_allowed,
    resolved_settings,
    route,
    set_headers,
    status_of,
)
from tests.support.policy import (
    NOW_S,
    World,
    device_records,
    directory_user_record,
    policy_of,
    service_account_record,
    session_record,
    user_record,
)

PUBLIC = policy_of("allow: {or: [{accept: true}]}")
ASSERTION = "x-pomerium-jwt-assertion"


def allows(world: World, policy: str, session: str = "s") -> bool:
    one = Desk(resolved_settings(route(policy_of(policy))), world)
    return is_allowed(one.check(headers=one.cookie(session)))


def claims(world: World, session: str = "s", **keys: Any) -> dict[str, Any]:
    one = Desk(resolved_settings(route(PUBLIC, pass_identity_headers=True), **keys), world)
    answer = one.check(headers=one.cookie(session))
    return verify_jwt(set_headers(answer)[ASSERTION], [derive_signing_key(SECRET)])


@pytest.mark.parametrize(
    ("directory", "for_policy", "for_upstreams"),
    [
        ({"email": "d@corp.example"}, "d@corp.example", "d@corp.example"),
        ({"email": ""}, "u@corp.example", ""),
        ({}, "u@corp.example", "u@corp.example"),
        (None, "u@corp.example", "u@corp.example"),
    ],
)
def test_which_email_counts(
    directory: dict[str, Any] | None, for_policy: str, for_upstreams: str
) -> None:
    known = [] if directory is None else [directory_user_record("u", **directory)]
    world = World(session_record("s", "u"), user_record("u", "u@corp.example"), *known)
    assert allows(world, f"allow: {{or: [{{email: {for_policy}}}]}}")
    assert claims(world)["email"] == for_upstreams


def test_the_users_claims_shadow_the_sessions_for_policy_alone() -> None:
    world = World(
        session_record("s", "u", claims={"dept": ["session"], "only": ["session"]}),
        user_record("u", claims={"dept": ["user"]}),
    )
    assert allows(world, "allow: {and: [{claim/dept: user}, {claim/only: session}]}")
    assert not allows(world, "allow: {or: [{claim/dept: session}]}")
    assert claims(world, jwt_claims_headers=["dept", "only"])["dept"] == "session"


def test_a_name_of_several_parts_is_joined_and_the_sessions_comes_first() -> None:
    world = World(
        session_record("s", "u", claims={"name": ["Ada", "King"]}),
        session_record("t", "u"),
        user_record("u", claims={"name": ["Countess", 7]}),
    )
    assert claims(world)["name"] == "Ada,King"
    assert claims(world, "t")["name"] == "Countess,7"


# Claims


NESTED = World(
    session_record(
        "s",
        "u",
        claims={
            "a.b": ["flat"],
            "a/b": ["slash"],
            "x": [{"y": "nested"}],
            "twice": ["v", "v"],
            "one": ["v"],
            "list": [["v", "w"]],
            "level": [7, 1.5],
            "flag": [False],
            "nothing": [None],
            "empty": [],
        },
    )
)


@pytest.mark.parametrize(
    ("criterion", "holds"),
    [
        # The exact name; a nested value is never found by its path.
        ("claim/a.b: flat", True),
        ("claim/a/b: slash", True),
        ("claim/a/b: flat", False),
        ("claim/x.y: nested", False),
        ("claim/x/y: nested", False),
        ("claim/x: {has: {y: nested}}", True),
        ("claim/A.b: flat", False),
        ("claim/a: flat", False),
        # has, is, exclude
        ("claim/one: v", True),
        ("claim/one: {is: v}", True),
        ("claim/twice: v", True),
        ("claim/twice: {is: v}", False),
        ("claim/one: {exclude: v}", False),
        ("claim/one: {exclude: w}", True),
        ("claim/one: {has: v, exclude: v}", False),
        ("claim/one: {}", True),
        ("claim/empty: {is: v}", False),
        ("claim/empty: {exclude: v}", True),
        ("claim/missing: {exclude: v}", True),
        ("claim/missing: v", False),
        # Only a nested list equals a list.
        ("claim/list: [v, w]", True),
        ("claim/list: [w, v]", False),
        ("claim/list: v", False),
        ("claim/twice: [v, v]", False),
        # By type
        ("claim/level: 7", True),
        ("claim/level: 7.0", True),
        ("claim/level: '7'", False),
        ("claim/level: true", False),
        ("claim/level: 1.5", True),
        ("claim/flag: false", True),
        ("claim/flag: 0", False),
        ("claim/flag: 'false'", False),
        ("claim/nothing: null", True),
        ("claim/nothing: ''", False),
    ],
)
def test_what_a_claim_matches(criterion: str, holds: bool) -> None:
    assert allows(NESTED, f"allow: {{or: [{{{criterion}}}]}}") is holds


# Service accounts


def test_a_service_account_has_its_users_data_and_no_claims_of_its_own() -> None:
    world = World(
        service_account_record("sa", "u"),
        user_record("u", "u@corp.example", claims={"team": ["core"]}),
        directory_user_record("u", group_ids=["g"]),
    )
    policy = """
    allow: {and: [
      {user: u}, {domain: corp.example}, {groups: g}, {claim/team: core},
      {claim/sub: {exclude: u}}]}
    """
    one = Desk(resolved_settings(route(policy_of(policy))), world)
    token = handle_token(SECRET, "sa", use="api")
    assert is_allowed(one.check(headers={"x-pomerium-authorization": token}))


# Impersonation


def impersonating(target: Record | None, **changes: Any) -> World:
    """ "boss" stands for the session `target`."""
    records = [target] if target is not None else []
    return World(
        session_record("s", "boss", impersonate="t", **changes),
        user_record("boss", "boss@corp.example", claims={"who": ["boss"]}),
        user_record("u", "u@corp.example", claims={"who": ["u"]}),
        directory_user_record("boss", group_ids=["bosses"]),
        directory_user_record("u", group_ids=["staff"]),
        *device_records("dc", approved_by="x"),
        *records,
    )


AS_U = """
allow: {and: [{user: u}, {email: u@corp.example}, {groups: staff}, {claim/who: u}, {claim/c: t},
  {device: {approved: true}}]}
"""


def test_everything_is_that_of_the_person_whose_place_was_taken_but_the_session_id() -> None:
    world = impersonating(session_record("t", "u", claims={"c": ["t"]}, devices={"any": "dc"}))
    assert allows(world, AS_U)
    found = claims(world)
    assert (found["sub"], found["email"], found["groups"]) == ("u", "u@corp.example", ["staff"])
    assert found["sid"] == "s"


@pytest.mark.parametrize(
    ("changes", "target", "allowed"),
    [
        ({}, {}, True),
        ({"expires_at_s": NOW_S}, {}, False),
        ({}, {"expires_at_s": NOW_S}, False),
        ({}, {"expires_at_s": None}, True),
        # Whose tokens can be renewed is asked of the real session alone.
        ({}, {"token_expires_at_s": NOW_S - 1}, True),
        ({"token_expires_at_s": NOW_S - 1}, {}, False),
        ({"token_expires_at_s": NOW_S - 1, "refresh_token": "r"}, {}, True),
    ],
)
def test_both_sessions_must_hold(
    changes: dict[str, Any], target: dict[str, Any], allowed: bool
) -> None:
    world = impersonating(session_record("t", "u", **target), **changes)
    policy = policy_of("allow: {or: [{user: u}]}")
    one = Desk(resolved_settings(route(policy)), world)
    assert status_of(one.check(headers=one.cookie("s"))) == (200 if allowed else 302)


def test_for_headers_a_place_that_is_gone_is_nobodys() -> None:
    for target in (None, session_record("t", "u", expires_at_s=NOW_S)):
        found = claims(impersonating(target))
        assert (found["sub"], found["email"], found["groups"]) == ("", "", [])


# Devices


def test_of_several_credentials_of_a_type_the_first_counts() -> None:
    session = Session(id="s", user_id="u")
    session.device_credentials.add(type_id="other", id="good")
    session.device_credentials.add(type_id="any", id="bad")
    session.device_credentials.add(type_id="any", id="good")
    records = (*device_records("bad"), *device_records("good", approved_by="x"))
    world = World(record_of(session, "s"), *records)
    assert not allows(world, "allow: {or: [{device: {approved: true}}]}")
    assert allows(world, "allow: {or: [{device: {is: bad}}]}")
    assert not allows(world, "allow: {or: [{device: {is: good}}]}")
    assert allows(world, "allow: {or: [{device: {is: good, type: other, approved: true}}]}")


@pytest.mark.parametrize(
    ("approved", "means"),
    [
        *(("true", True), ("1", True), ("'x'", True), ("[]", True), ("{}", True)),
        *(("false", False), ("0", False), ("''", False), ("null", False)),
    ],
)
def test_what_counts_as_approved(approved: str, means: bool) -> None:
    policy = f"allow: {{or: [{{device: {{approved: {approved}}}}}]}}"
    for credential, is_approved in (("yes", True), ("no", False)):
        world = World(
            session_record("s", "u", devices={"any": credential}),
            *device_records("yes", approved_by="x"),
            *device_records("no"),
        )
        assert allows(world, policy) is (is_approved is means)


def test_without_a_condition_a_device_criterion_is_true_for_everybody() -> None:
    one = Desk(resolved_settings(route(policy_of("allow: {or: [{device: {}}]}"))), World())
    assert is_allowed(one.check())


# What else an upstream is told


def test_the_routing_key_is_the_digest_of_the_session_id_and_nobody_gets_one() -> None:
    """A key for all without a session would lead them all to one upstream."""
    keys: dict[str, Any] = {"load_balancing_policy": "RING_HASH", "pass_identity_headers": False}
    one = Desk(resolved_settings(route(PUBLIC, **keys)), World(session_record("s", "u")))
    found = set_headers(one.check(headers=one.cookie("s")))
    assert found == {"x-pomerium-routing-key": hashlib.sha256(b"s").hexdigest()}
    assert set_headers(one.check()) == {}


def test_a_routes_own_authorization_joins_the_one_for_kubernetes() -> None:
    plain = route(PUBLIC, set_request_headers={"Authorization": "Basic ours"})
    one = dataclasses.replace(plain, kubernetes_service_account_token="sa-token")
    world = World(session_record("s", "u"), user_record("u", "u@corp.example"))
    desk = Desk(resolved_settings(one), world)
    found = set_headers(desk.check(headers=desk.cookie("s")))
    assert found["authorization"] == "Bearer sa-token,Basic ours"


def test_an_rsa_key_signs_by_its_own_algorithm() -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    keys = load_signing_keys(pem)
    settings = resolved_settings(route(PUBLIC, pass_identity_headers=True), signing_keys=keys)
    token = set_headers(Desk(settings).check())[ASSERTION]
    header = jwt.get_unverified_header(token)
    assert header == {"alg": "RS256", "kid": keys[0].kid, "typ": "JWT"}
    options: Any = {"verify_exp": False, "verify_aud": False, "verify_iat": False}
    assert jwt.decode(token, private.public_key(), ["RS256"], options=options)["sub"] == ""
