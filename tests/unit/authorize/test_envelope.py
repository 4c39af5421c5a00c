"""Which allows may be remembered, by what they end, and for how long."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from gatehouse.authorize.core.check_request import read_check_request
from gatehouse.authorize.core.records import DEVICE_CREDENTIAL
from gatehouse.common.databroker.sync_core import Position
from gatehouse.common.extauthz_context import ENVELOPE_FIELD
from gatehouse.common.ids import (
    DIRECTORY_GROUP,
    DIRECTORY_USER,
    SERVICE_ACCOUNT,
    SESSION,
    USER,
)
from gatehouse.common.jose.hs256 import encode_hs256
from gatehouse.common.record_keys import record_key, type_key
from gatehouse.pb.databroker_pb2 import Record
from tests.support.check import (
    SECRET,
    check_request,
    handle_token,
    is_allowed,
    resolved_settings,
    route,
)
from tests.support.clock import FakeClock, SeededRng
from tests.support.lagging_authorize import LaggingAuthorize, Log
from tests.support.policy import (
    NOW_S,
    device_records,
    policy_of,
    service_account_record,
    session_record,
    user_record,
)

HISTORY = 77
U1 = policy_of("allow: {or: [{user: u1}]}")
ANYBODY = policy_of("allow: {or: [{accept: true}]}")


def directory_user(*groups: str) -> Record:
    fields = Struct()
    fields.update({"group_ids": list(groups)})
    record = Record(type=DIRECTORY_USER, id="u1")
    record.data.Pack(fields)
    return record


def authorize(policy: Any = U1, *, everywhere: dict[str, Any] | None = None, **keys: Any) -> Any:
    log = Log(HISTORY)
    for record in (session_record("s1", "u1"), user_record("u1", "u1@x.y"), directory_user("g1")):
        log.commit(record)
    settings = resolved_settings(route(policy, **keys), **(everywhere or {}))
    return LaggingAuthorize(settings, log, FakeClock(NOW_S), SeededRng())


def cookie(session_id: str = "s1", **changes: Any) -> dict[str, str]:
    return {"cookie": f"_pomerium={handle_token(SECRET, session_id, **changes)}"}


async def envelope(one: LaggingAuthorize, **request: Any) -> str:
    """ "" when the allow may not be remembered."""
    request.setdefault("headers", cookie())
    request.setdefault("route_checksum", "7")
    response = await one.check(check_request(**request))
    assert is_allowed(response)
    fields = response.dynamic_metadata.fields
    return fields[ENVELOPE_FIELD].string_value if ENVELOPE_FIELD in fields else ""


def rests_on(text: str) -> dict[int, int]:
    """Key to version."""
    dependencies = text.partition("\n")[0].split(" ")[2]
    return {
        int(key): int(version)
        for version, keys in re.findall(r"(\d+):([\d,]+)", dependencies)
        for key in keys.split(",")
    }


def lifetime_s(text: str) -> float:
    return int(text.split(" ")[1]) / 1000


async def test_case_a_everything_looked_up_is_named_there_or_not() -> None:
    one = authorize()
    text = await envelope(one)
    assert text.split(" ")[0] == str(HISTORY)
    assert rests_on(text) == dict.fromkeys(
        (
            record_key(SESSION, "s1"),
            record_key(USER, "u1"),
            record_key(DIRECTORY_USER, "u1"),
            record_key(DIRECTORY_GROUP, "g1"),  # which does not exist
        ),
        3,
    )
    account = authorize(ANYBODY)
    account.log.commit(service_account_record("sa", "nobody"))
    account.follow()
    text = await envelope(account, headers=cookie("sa"))
    assert rests_on(text).keys() == {
        record_key(kind, name)
        for kind, name in (
            *((SESSION, "sa"), (SERVICE_ACCOUNT, "sa")),
            *((USER, "nobody"), (DIRECTORY_USER, "nobody")),
        )
    }


async def test_a_change_of_any_kind_of_record_that_decided_is_one_of_what_it_rests_on() -> None:
    """Session, user, directory user, group, device credential, enrollment, service account."""
    one = authorize(policy_of("allow: {or: [{device: {approved: true}}]}"))
    group = Record(type=DIRECTORY_GROUP, id="g1")
    named = Struct()
    named.update({"name": "staff"})
    group.data.Pack(named)
    changes = [
        session_record("s1", "u1", devices={"any": "dc"}),
        user_record("u1", "u1@x.y"),
        directory_user("g1"),
        group,
        *device_records("dc", approved_by="boss"),
    ]
    for record in changes:
        one.log.commit(record)
    one.follow()
    found = rests_on(await envelope(one))
    kinds = {record.type for record in changes}
    assert {SESSION, USER, DIRECTORY_USER, DIRECTORY_GROUP, DEVICE_CREDENTIAL} < kinds
    assert len(kinds) == 6
    for record in changes:
        key = record_key(record.type, record.id)
        assert key in found, record.type
        for is_deleted in (False, True):
            assert one.log.commit(record, deleted=is_deleted).version > found[key]


async def test_case_b_records_of_others_and_long_lists_rest_on_the_whole_type() -> None:
    policy = policy_of(
        'allow: {and: [{record: {type: "example.com/cleared", field: level, is: 3}}]}'
    )
    one = authorize(policy)
    fields = Struct()
    fields.update({"level": 3})
    record = Record(type="example.com/cleared", id="u1")
    record.data.Pack(fields)
    one.log.commit(record)
    one.follow()
    found = rests_on(await envelope(one))
    assert found[type_key("example.com/cleared")] == 4
    many = authorize()
    many.log.commit(directory_user(*(f"g{number}" for number in range(100))))
    many.follow()
    found = rests_on(await envelope(many))
    assert type_key(DIRECTORY_GROUP) in found
    assert len(found) == 4


async def test_versions_are_those_of_the_copy_that_was_asked() -> None:
    """An authorize that is behind says so; one change further on its decision does not count."""
    one = authorize()
    one.log.commit(directory_user())
    assert set(rests_on(await envelope(one)).values()) == {3}
    one.follow()
    assert set(rests_on(await envelope(one)).values()) == {4}


async def test_case_c_another_configuration_is_not_remembered() -> None:
    one = authorize()
    assert await envelope(one, route_checksum="7")
    assert not await envelope(one, route_checksum="8")
    assert not await envelope(one, route_checksum="0")


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("a credential in the query too", {"path": "/?pomerium_session=x"}),
        ("an assertion of the client's own", {"client_assertion": "a.b.c"}),
        ("our own page", {"internal": True, "path": "/.pomerium/"}),
    ],
)
async def test_case_e_such_requests_are_not_remembered(what, options) -> None:
    one = authorize()
    assert not await envelope(one, **options), what


async def test_case_e_only_credentials_that_were_accepted() -> None:
    one = authorize(ANYBODY)
    assert await envelope(one, headers={})  # nobody, and no credential
    assert await envelope(one)
    for headers in (
        {"cookie": "_pomerium=forged"},
        cookie("no-such-session"),
        {"authorization": "Pomerium forged"},
        {"x-pomerium-authorization": "forged"},
    ):
        assert not await envelope(one, headers=headers), headers
    assert await envelope(one, headers={"authorization": "Basic of-the-application"})


@pytest.mark.parametrize(
    "keys",
    [
        {"set_request_headers": {"x": "$pomerium.access_token"}},
        {"set_request_headers": {"x": "a${pomerium.id_token}"}},
        {"enable_google_cloud_serverless_authentication": True},
    ],
)
async def test_case_f_tokens_of_others_are_not_remembered(keys) -> None:
    plan = authorize(**keys).servicer.in_force.decider.plans.routes
    assert [one.inputs for one in plan.values()] == [None]


async def test_switched_off_nothing_is_remembered() -> None:
    assert not await envelope(authorize(everywhere={"decision_cache": False}))


async def test_case_d_the_lifetime_ends_with_the_first_of_its_reasons() -> None:
    one = authorize(pass_identity_headers=True)
    assert lifetime_s(await envelope(one)) == 60
    one.clock.advance(50)  # the assertion was signed then
    assert lifetime_s(await envelope(one)) == pytest.approx(10, abs=0.01)
    one.clock.advance(11)
    assert lifetime_s(await envelope(one)) == 60
    ending = authorize()
    ending.log.commit(session_record("s1", "u1", expires_at_s=NOW_S + 5.5))
    ending.follow()
    assert lifetime_s(await envelope(ending)) == pytest.approx(5.5, abs=0.01)
    soon = '{date: {before: "2027-01-15T08:00:30Z"}}'
    timed = authorize(policy_of(f"allow: {{and: [{{user: u1}}, {soon}]}}"))
    assert lifetime_s(await envelope(timed)) == pytest.approx(30, abs=0.01)
    short = authorize(ANYBODY)
    claims = {"jti": "s1", "use": "route", "exp": int(NOW_S) + 7, "iat": int(NOW_S)}
    token = encode_hs256(claims, SECRET)
    text = await envelope(short, headers={"cookie": f"_pomerium={token}"})
    assert lifetime_s(text) == pytest.approx(7, abs=0.01)


async def test_the_headers_are_the_answer_s() -> None:
    one = authorize(pass_identity_headers=True, set_request_headers={"x-note": "é:1"})
    response = await one.check(check_request(headers=cookie(), route_checksum="7"))
    text = response.dynamic_metadata.fields[ENVELOPE_FIELD].string_value
    described = text.partition("\n")[2]
    for option in response.ok_response.headers:
        name, value = option.header.key, option.header.value
        assert f"={len(name)}:{name}{len(value.encode())}:{value}" in described
    assert "x-note" in described


async def test_an_identity_of_unknown_records_is_not_remembered() -> None:
    one = authorize()
    decider = one.servicer.in_force.decider
    facts = read_check_request(check_request(headers=cookie(), route_checksum="7"), NOW_S)
    prepared = decider.prepare(facts, NOW_S)
    known = one.source.held(prepared.handle, NOW_S, 0)
    basis = one.source.basis(0)
    for identity, is_kept in ((known, True), (dataclasses.replace(known, rests_on=()), False)):
        answer = decider.answer(facts, prepared, identity, NOW_S, basis=basis)
        assert (ENVELOPE_FIELD in answer.response.dynamic_metadata.fields) is is_kept


async def test_copies_of_two_histories_say_nothing() -> None:
    one = authorize()
    one.replica.advance(USER, Position(HISTORY + 1, 3), heard_s=one.clock.monotonic_s())
    assert not await envelope(one)
