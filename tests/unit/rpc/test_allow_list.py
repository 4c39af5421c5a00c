"""What each service of ours may ask of another."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatehouse.common.databroker.records import record_of
from gatehouse.common.errors import PermissionDeniedError
from gatehouse.common.ids import SERVICE_ACCOUNT, SESSION, USER
from gatehouse.common.rpc.allow_list import check_method, check_request
from gatehouse.pb import access_times_pb2, databroker_pb2, registry_pb2
from gatehouse.pb.access_times_pb2 import AccessTime, PutAccessTimesRequest
from gatehouse.pb.databroker_pb2 import PatchRequest, PutRequest, Record
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User

BROKER = "/databroker.DataBrokerService/"
READS = {"Get", "GetOptions", "ListTypes", "Query", "ServerInfo", "Sync", "SyncLatest"}
LEASES = {"AcquireLease", "RenewLease", "ReleaseLease"}
ALL = {
    method.name
    for method in databroker_pb2.DESCRIPTOR.services_by_name["DataBrokerService"].methods
}
CHECK = "/envoy.service.auth.v3.Authorization/Check"


def allowed(subject: str, method: str) -> bool:
    try:
        check_method(subject, method)
    except PermissionDeniedError:
        return False
    return True


@pytest.mark.parametrize(
    ("subject", "methods"),
    [
        ("proxy", READS | LEASES),
        ("authorize", READS | LEASES | {"Put"}),
        ("authenticate", READS | LEASES | {"Put", "Patch"}),
        ("databroker", ALL),
        ("operator", ALL),
        ("stranger", set()),
        ("", set()),
        ("PROXY", set()),
    ],
)
def test_r39_broker_methods(subject: str, methods: set[str]) -> None:
    """Enumerated over the contract, so a new method is refused until it is listed."""
    assert {name for name in ALL if allowed(subject, BROKER + name)} == methods


@pytest.mark.parametrize(
    ("subject", "methods"),
    [
        ("proxy", {"GetAccessTimes"}),
        ("authorize", {"GetAccessTimes", "PutAccessTimes"}),
        ("authenticate", {"GetAccessTimes"}),
        ("operator", {"GetAccessTimes", "PutAccessTimes"}),
        ("stranger", set()),
    ],
)
def test_r39_access_times(subject: str, methods: set[str]) -> None:
    (service,) = access_times_pb2.DESCRIPTOR.services_by_name.values()
    prefix = f"/{service.full_name}/"
    found = {item.name for item in service.methods if allowed(subject, prefix + item.name)}
    assert found == methods


@pytest.mark.parametrize("subject", ["proxy", "authorize", "authenticate"])
def test_r39_services_report_where_they_are_and_operators_see_it(subject: str) -> None:
    (service,) = registry_pb2.DESCRIPTOR.services_by_name.values()
    paths = {method.name: f"/{service.full_name}/{method.name}" for method in service.methods}
    assert {name for name, path in paths.items() if allowed(subject, path)} == {"Report"}
    assert all(allowed("operator", path) for path in paths.values())


def test_r39_only_the_proxy_asks_for_decisions() -> None:
    assert allowed("proxy", CHECK)
    assert not allowed("authenticate", CHECK)


@pytest.mark.parametrize("subject", ["proxy", "authorize", "authenticate"])
def test_what_is_not_listed_is_refused(subject: str) -> None:
    for method in ("/databroker.DataBrokerService/New", "/x.Y/Z", "", "Get"):
        assert not allowed(subject, method)


def put(*types: str) -> PutRequest:
    return PutRequest(records=[Record(type=one, id="1") for one in types])


def patch(paths: list[str], *types: str) -> PatchRequest:
    records = [Record(type=one, id="1") for one in types]
    return PatchRequest(records=records, field_mask=FieldMask(paths=paths))


def accessed(*types: str) -> PutAccessTimesRequest:
    return PutAccessTimesRequest(access_time=[AccessTime(type=one, id="1") for one in types])


@pytest.mark.parametrize(
    ("subject", "request_", "fine"),
    [
        ("authenticate", put(SESSION, USER), True),
        ("authenticate", put(SESSION, SERVICE_ACCOUNT), False),
        ("authenticate", put("type.googleapis.com/pomerium.config.Config"), False),
        ("authenticate", put(""), False),
        ("authenticate", patch(["id_token"], SESSION), True),
        ("authenticate", patch(["id_token"], SERVICE_ACCOUNT), False),
        ("authorize", accessed(SESSION, SERVICE_ACCOUNT), True),
        ("authorize", accessed(USER), False),
        ("databroker", put("anything"), True),
        ("operator", put("anything"), True),
        ("proxy", databroker_pb2.GetRequest(type=SESSION, id="1"), True),
    ],
)
def test_r39_requests(subject: str, request_: object, fine: bool) -> None:
    if fine:
        check_request(subject, request_)
    else:
        with pytest.raises(PermissionDeniedError):
            check_request(subject, request_)


TOKEN_SESSION = "5e9a1f0c-3b1d-5a54-9c8e-0d8f0a5f3b11"  # a UUID of version 5


def bearer_put(
    *, session_changes: dict[str, Any] | None = None, user_id: str = "u1", **other: bool
) -> PutRequest:
    """What authorize writes for a bearer token, with something changed."""
    values: dict[str, Any] = {"id": TOKEN_SESSION, "user_id": "u1", "refresh_disabled": True}
    session = Session(**(values | (session_changes or {})))
    records = [record_of(User(id=user_id), user_id), record_of(session, session.id)]
    if other.get("deletes"):
        records[1].deleted_at.seconds = 1
    if other.get("renames"):
        records[1].id = "another"
    if other.get("twice"):
        records.append(records[1])
    if other.get("alone"):
        del records[0]
    if other.get("broken"):
        records[1].data.value = b"\xff"
    return PutRequest(records=records)


def test_r39_authorize_puts_the_session_of_a_bearer_token() -> None:
    check_request("authorize", bearer_put())


@pytest.mark.parametrize(
    "request_",
    [
        put(SESSION, USER),
        put(),
        put(SERVICE_ACCOUNT),
        bearer_put(session_changes={"refresh_disabled": False}),
        bearer_put(session_changes={"id": "5e9a1f0c-3b1d-4a54-9c8e-0d8f0a5f3b11"}),
        bearer_put(session_changes={"impersonate_session_id": "other"}),
        bearer_put(session_changes={"user_id": "u2"}),
        bearer_put(user_id="u2"),
        bearer_put(deletes=True),
        bearer_put(renames=True),
        bearer_put(twice=True),
        bearer_put(alone=True),
        bearer_put(broken=True),
    ],
)
def test_r39_authorize_puts_nothing_else(request_: PutRequest) -> None:
    with pytest.raises(PermissionDeniedError):
        check_request("authorize", request_)


def test_r39_only_operators_ask_for_explanations() -> None:
    method = "/gatehouse.authorize.v1.ExplainService/Explain"
    assert [one for one in ("proxy", "authorize", "authenticate") if allowed(one, method)] == []
    assert allowed("operator", method)


def test_r39_only_the_proxy_asks_for_its_administrators() -> None:
    method = "/gatehouse.authorize.v1.ExplainService/Answer"
    assert [one for one in ("authorize", "authenticate") if allowed(one, method)] == []
    assert allowed("proxy", method)


def test_r39_only_the_proxy_asks_which_routes_are_open() -> None:
    method = "/gatehouse.authorize.v1.PortalService/OpenRoutes"
    assert [one for one in ("authorize", "authenticate") if allowed(one, method)] == []
    assert allowed("proxy", method)
