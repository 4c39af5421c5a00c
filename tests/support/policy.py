"""Records, identities and requests to try policies on: the people of the worked examples."""

from __future__ import annotations

import functools
from typing import Any

import yaml
from google.protobuf.struct_pb2 import Struct

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.evaluator import CompiledPolicy, Evaluation, Outcome, decide
from gatehouse.authorize.core.identity import (
    ANONYMOUS,
    Identity,
    Subject,
    resolve_identity,
    subject_lookups,
)
from gatehouse.authorize.core.records import RecordReader
from gatehouse.common.databroker.records import record_of, timestamp_of
from gatehouse.common.ids import DIRECTORY_GROUP, DIRECTORY_USER
from gatehouse.common.policy.ast import Policy
from gatehouse.common.policy.parser import parse_policy
from gatehouse.pb.databroker_pb2 import Record
from gatehouse.pb.device_pb2 import Credential, Enrollment
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import ServiceAccount, User

NOW_S = 1_800_000_000.0


def session_record(
    session_id: str,
    user_id: str = "",
    *,
    claims: dict[str, list[Any]] | None = None,
    expires_at_s: float | None = NOW_S + 3600,
    token_expires_at_s: float | None = None,
    refresh_token: str = "",
    impersonate: str = "",
    access_token: str = "",
    id_token: str = "",
    idp_id: str = "",
    devices: dict[str, str] | None = None,
) -> Record:
    session = Session(id=session_id, user_id=user_id, idp_id=idp_id)
    _fill_claims(session, claims)
    if expires_at_s is not None:
        session.expires_at.CopyFrom(timestamp_of(expires_at_s))
    if token_expires_at_s is not None:
        session.oauth_token.expires_at.CopyFrom(timestamp_of(token_expires_at_s))
    session.oauth_token.refresh_token = refresh_token
    session.oauth_token.access_token = access_token
    session.id_token.raw = id_token
    for type_id, credential_id in (devices or {}).items():
        session.device_credentials.add(type_id=type_id, id=credential_id)
    if impersonate:
        session.impersonate_session_id = impersonate
    return record_of(session, session_id)


def user_record(
    user_id: str, email: str = "", name: str = "", claims: dict[str, list[Any]] | None = None
) -> Record:
    user = User(id=user_id, email=email, name=name)
    _fill_claims(user, claims)
    return record_of(user, user_id)


def service_account_record(
    account_id: str, user_id: str, expires_at_s: float | None = None
) -> Record:
    account = ServiceAccount(id=account_id, user_id=user_id)
    if expires_at_s is not None:
        account.expires_at.CopyFrom(timestamp_of(expires_at_s))
    return record_of(account, account_id)


def directory_user_record(user_id: str, **fields: Any) -> Record:
    return _struct_record(DIRECTORY_USER, user_id, fields)


def directory_group_record(group_id: str, name: str) -> Record:
    return _struct_record(DIRECTORY_GROUP, group_id, {"id": group_id, "name": name})


def device_records(
    credential_id: str, approved_by: str = "", type_id: str = "any"
) -> tuple[Record, Record]:
    """A credential and its enrolment."""
    enrollment_id = f"enrollment-of-{credential_id}"
    return (
        record_of(
            Credential(id=credential_id, type_id=type_id, enrollment_id=enrollment_id),
            credential_id,
        ),
        record_of(Enrollment(id=enrollment_id, approved_by=approved_by), enrollment_id),
    )


class World:
    """Some records, and the identities that follow from them."""

    def __init__(self, *records: Record) -> None:
        self.records = {(record.type, record.id): record for record in records}
        self.reader = RecordReader()
        self._decoded: dict[int, tuple[Record, object]] = {}

    def decoded(self, key: tuple[str, str]) -> object:
        """The same object while the record is the same, as in a replica."""
        record = self.records.get(key)
        if record is None:
            return None
        if id(record) not in self._decoded:
            self._decoded[id(record)] = record, self.reader.decode(record)
        return self._decoded[id(record)][1]

    def subject(self, handle_id: str) -> Subject:
        lookups = subject_lookups(handle_id)
        try:
            key = next(lookups)
            while True:
                key = lookups.send(self.decoded(key))
        except StopIteration as end:
            subject: Subject = end.value
            return subject

    def identity(self, handle_id: str, now_s: float = NOW_S) -> Identity:
        return resolve_identity(self.subject(handle_id), now_s)


@functools.cache
def example_world() -> World:
    """The fixtures of policy.md, worked examples."""
    return World(
        session_record(
            "s1",
            "u1",
            claims={
                "family_name": ["Smith"],
                "roles": ["a", "b"],
                "level": [7],
                "admin": [True],
                "dept": ["sess"],
                "org.team": ["core"],
            },
        ),
        user_record("u1", "a@example.com", claims={"dept": ["user"]}),
        directory_user_record("u1", group_ids=["g1", "g2"]),
        session_record("s2"),
        session_record("imp", "boss", impersonate="s1"),
        session_record("impx", "boss", impersonate="deleted"),
        user_record("boss", "boss@example.com"),
        service_account_record("sa1", "u1"),
        session_record("s3", "u3"),
        user_record("u3", "bob"),
        session_record("s4", "u4"),
        user_record("u4", "Eve@Example.com"),
        directory_user_record("u4", email="eve@corp.example"),
        session_record("d1", "u1", devices={"any": "dc1"}),
        session_record("d2", "u1", devices={"any": "dc2"}),
        *device_records("dc1"),
        *device_records("dc2", approved_by="boss"),
    )


def example_identity(name: str) -> Identity:
    """ "nobody" is an anonymous request."""
    return ANONYMOUS if name == "nobody" else example_world().identity(name)


def request_facts(**changes: Any) -> RequestFacts:
    """GET / from 10.1.2.3 on app.example.com."""
    values: dict[str, Any] = {
        "internal": False,
        "route_id": "0123456789abcdef",
        "route_checksum": "1",
        "method": "GET",
        "scheme": "https",
        "host": "app.example.com",
        "hostname": "app.example.com",
        "raw_path": "/",
        "path": "/",
        "query": "",
        "ip": "10.1.2.3",
        "headers": {},
        "cookie_lines": (),
        "request_id": "req-1",
        "now_s": NOW_S,
    }
    return RequestFacts(**(values | changes))


def policy_of(text: str) -> Policy:
    """A policy from YAML text."""
    return parse_policy(yaml.safe_load(text))


def evaluate(
    policy: Policy | str, identity: Identity, facts: RequestFacts
) -> tuple[Evaluation, Outcome]:
    """What a policy says, and what follows."""
    tree = policy_of(policy) if isinstance(policy, str) else policy
    evaluation = CompiledPolicy(tree).evaluate(facts, identity)
    return evaluation, decide(evaluation)


def _fill_claims(message: Any, claims: dict[str, list[Any]] | None) -> None:
    for name, values in (claims or {}).items():
        message.claims[name].extend(values)


def _struct_record(type_url: str, record_id: str, fields: dict[str, Any]) -> Record:
    struct = Struct()
    struct.update(fields)
    record = Record(type=type_url, id=record_id)
    record.data.Pack(struct)
    return record
