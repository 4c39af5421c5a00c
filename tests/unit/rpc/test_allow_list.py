"""What each service of ours may ask of another."""

from __future__ import annotations

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatehouse.common.errors import PermissionDeniedError
from gatehouse.common.ids import SERVICE_ACCOUNT, SESSION, USER
from gatehouse.common.rpc.allow_list import check_method, check_request
from gatehouse.pb import databroker_pb2
from gatehouse.pb.databroker_pb2 import PatchRequest, PutRequest, Record

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
        ("authorize", READS | LEASES | {"Put", "Patch"}),
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


@pytest.mark.parametrize(
    ("subject", "request_", "fine"),
    [
        ("authenticate", put(SESSION, USER), True),
        ("authenticate", put(SESSION, SERVICE_ACCOUNT), False),
        ("authenticate", put("type.googleapis.com/pomerium.config.Config"), False),
        ("authenticate", put(""), False),
        ("authenticate", patch(["id_token"], SESSION), True),
        ("authenticate", patch(["id_token"], SERVICE_ACCOUNT), False),
        ("authorize", patch(["accessed_at"], SESSION, SERVICE_ACCOUNT), True),
        ("authorize", patch(["accessed_at"], USER), False),
        ("authorize", patch(["accessed_at", "user_id"], SESSION), False),
        ("authorize", patch(["expires_at"], SESSION), False),
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


def test_an_empty_mask_patches_everything_and_is_refused() -> None:
    """FieldMask: an empty mask means all fields."""
    with pytest.raises(PermissionDeniedError):
        check_request("authorize", patch([], SESSION))
