"""The wire contract that other tools rely on: names, numbers and kinds of every field.

The table is the public contract. Whatever else a message of ours has is numbered from 1000 on, so
that the two can never meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gatehouse.pb import databroker_pb2, health_pb2, registry_pb2, session_pb2, user_pb2
from gatehouse.pb.databroker_pb2 import GetResponse, Record
from gatehouse.pb.session_pb2 import Session

FIRST_OF_OURS = 1000

# message: "name number kind", where kind is a scalar or the message's full name; `*` repeated,
# `?` with presence of its own, `|` within a oneof.
CONTRACT = {
    "databroker.Record": (
        "version 1 uint64, type 2 string, id 3 string, data 4 google.protobuf.Any,"
        " modified_at 5 google.protobuf.Timestamp, deleted_at 6 google.protobuf.Timestamp"
    ),
    "databroker.Versions": "server_version 1 uint64, latest_record_version 2 uint64",
    "databroker.Options": (
        "capacity 1 uint64?, indexable_fields 2 string*, ttl 3 google.protobuf.Duration?"
    ),
    "databroker.TypedOptions": "typeURL 1 string, options 2 databroker.Options",
    "databroker.ClearResponse": "old_server_version 1 uint64, new_server_version 2 uint64",
    "databroker.GetRequest": "type 1 string, id 2 string",
    "databroker.GetResponse": "record 1 databroker.Record",
    "databroker.ListTypesResponse": "types 1 string*",
    "databroker.QueryRequest": (
        "type 1 string, query 2 string, offset 3 int64, limit 4 int64,"
        " filter 5 google.protobuf.Struct, minimum_record_version_hint 6 uint64?"
    ),
    "databroker.QueryResponse": (
        "records 1 databroker.Record*, total_count 2 int64, server_version 3 uint64,"
        " record_version 4 uint64"
    ),
    "databroker.PutRequest": "records 1 databroker.Record*",
    "databroker.PutResponse": "server_version 1 uint64, records 2 databroker.Record*",
    "databroker.PatchRequest": (
        "records 1 databroker.Record*, field_mask 2 google.protobuf.FieldMask"
    ),
    "databroker.PatchResponse": "server_version 1 uint64, records 2 databroker.Record*",
    "databroker.ServerInfoResponse": (
        "server_version 1 uint64, earliest_record_version 2 uint64, latest_record_version 3 uint64"
    ),
    "databroker.GetOptionsRequest": "type 1 string",
    "databroker.GetOptionsResponse": "options 1 databroker.Options",
    "databroker.SetOptionsRequest": "type 1 string, options 2 databroker.Options",
    "databroker.SetOptionsResponse": "options 1 databroker.Options",
    "databroker.SyncRequest": (
        "server_version 1 uint64, record_version 2 uint64, type 3 string, wait 4 bool?"
    ),
    "databroker.SyncResponse": "record 1 databroker.Record|, options 2 databroker.TypedOptions|",
    "databroker.SyncLatestRequest": "type 1 string",
    "databroker.SyncLatestResponse": (
        "record 1 databroker.Record|, versions 2 databroker.Versions|,"
        " options 3 databroker.TypedOptions|"
    ),
    "databroker.AcquireLeaseRequest": "name 1 string, duration 2 google.protobuf.Duration",
    "databroker.AcquireLeaseResponse": "id 1 string",
    "databroker.ReleaseLeaseRequest": "name 1 string, id 2 string",
    "databroker.RenewLeaseRequest": (
        "name 1 string, id 2 string, duration 3 google.protobuf.Duration"
    ),
    "databroker.Checkpoint": "server_version 1 uint64, record_version 2 uint64",
    "databroker.GetCheckpointRequest": "",
    "databroker.GetCheckpointResponse": "checkpoint 1 databroker.Checkpoint, is_leader 2 bool",
    "databroker.SetCheckpointRequest": "checkpoint 1 databroker.Checkpoint",
    "databroker.SetCheckpointResponse": "",
    "health.HealthStreamRequest": "",
    "health.HealthMessage": (
        "overall_status 1 enum, overall_err 2 string?,"
        " statuses 3 health.HealthMessage.StatusesEntry*, required 4 string*"
    ),
    "health.HealthMessage.StatusesEntry": "key 1 string, value 2 health.ComponentStatus",
    "health.ComponentStatus": (
        "status 1 enum, attributes 2 health.ComponentStatus.AttributesEntry*, err 3 string?"
    ),
    "health.ComponentStatus.AttributesEntry": "key 1 string, value 2 string",
    "registry.Service": "kind 1 enum, endpoint 3 string",
    "registry.RegisterRequest": (
        "services 1 registry.Service*, metadata 2 registry.RegisterRequest.MetadataEntry*"
    ),
    "registry.RegisterRequest.MetadataEntry": "key 1 string, value 2 google.protobuf.Any",
    "registry.RegisterResponse": "call_back_after 2 google.protobuf.Duration",
    "registry.ListRequest": "kinds 1 enum*",
    "registry.ServiceList": "services 1 registry.Service*",
    "session.IDToken": (
        "issuer 1 string, subject 2 string, expires_at 3 google.protobuf.Timestamp,"
        " issued_at 4 google.protobuf.Timestamp, raw 5 string"
    ),
    "session.OAuthToken": (
        "access_token 1 string, token_type 2 string, expires_at 3 google.protobuf.Timestamp,"
        " refresh_token 4 string"
    ),
    "session.Session": (
        "version 1 string, id 2 string, user_id 3 string, expires_at 4 google.protobuf.Timestamp,"
        " id_token 6 session.IDToken, oauth_token 7 session.OAuthToken,"
        " claims 9 session.Session.ClaimsEntry*, audience 10 string*,"
        " issued_at 14 google.protobuf.Timestamp, impersonate_session_id 15 string?,"
        " device_credentials 17 session.Session.DeviceCredential*,"
        " accessed_at 18 google.protobuf.Timestamp, refresh_disabled 19 bool, idp_id 20 string"
    ),
    "session.Session.DeviceCredential": (
        "type_id 1 string, unavailable 2 google.protobuf.Empty|, id 3 string|"
    ),
    "session.Session.ClaimsEntry": "key 1 string, value 2 google.protobuf.ListValue",
    "user.User": (
        "version 1 string, id 2 string, name 3 string, email 4 string,"
        " claims 9 user.User.ClaimsEntry*, device_credential_ids 10 string*"
    ),
    "user.User.ClaimsEntry": "key 1 string, value 2 google.protobuf.ListValue",
    "user.ServiceAccount": (
        "id 1 string, user_id 2 string, expires_at 3 google.protobuf.Timestamp,"
        " issued_at 4 google.protobuf.Timestamp, namespace_id 8 string?, description 9 string?,"
        " accessed_at 10 google.protobuf.Timestamp, originator_id 11 string?"
    ),
}
METHODS = {
    "AcquireLease": ("AcquireLeaseRequest", "AcquireLeaseResponse", False),
    "Clear": ("Empty", "ClearResponse", False),
    "Get": ("GetRequest", "GetResponse", False),
    "GetOptions": ("GetOptionsRequest", "GetOptionsResponse", False),
    "ListTypes": ("Empty", "ListTypesResponse", False),
    "Put": ("PutRequest", "PutResponse", False),
    "Patch": ("PatchRequest", "PatchResponse", False),
    "Query": ("QueryRequest", "QueryResponse", False),
    "ReleaseLease": ("ReleaseLeaseRequest", "Empty", False),
    "RenewLease": ("RenewLeaseRequest", "Empty", False),
    "ServerInfo": ("Empty", "ServerInfoResponse", False),
    "SetOptions": ("SetOptionsRequest", "SetOptionsResponse", False),
    "Sync": ("SyncRequest", "SyncResponse", True),
    "SyncLatest": ("SyncLatestRequest", "SyncLatestResponse", True),
}
REGISTRY_METHODS = {
    "Report": ("RegisterRequest", "RegisterResponse", False),
    "List": ("ListRequest", "ServiceList", False),
    "Watch": ("ListRequest", "ServiceList", True),
}
SERVICE_KINDS = {
    "UNDEFINED_DO_NOT_USE": 0,
    "DATABROKER": 1,
    "AUTHORIZE": 2,
    "AUTHENTICATE": 3,
    "PROXY": 4,
    "REGISTRY": 5,
    "CONSOLE": 6,
    "PROMETHEUS_METRICS": 7,
}
# Messages that only ours know: no public message may ever get one of these names in this package.
OURS = {"databroker.RecordBatch", "databroker.CopyPlace"}
KINDS = {3: "int64", 4: "uint64", 8: "bool", 9: "string", 14: "enum"}


def messages(container: Any) -> Iterator[Any]:
    for message in container:
        yield message
        yield from messages(message.nested_types)


ALL = {
    message.full_name: message
    for module in (databroker_pb2, health_pb2, registry_pb2, session_pb2, user_pb2)
    for message in messages(module.DESCRIPTOR.message_types_by_name.values())
}


def described(message: Any) -> str:
    return ", ".join(
        field_of(field)
        for field in sorted(message.fields, key=lambda field: field.number)
        if field.number < FIRST_OF_OURS
    )


def field_of(field: Any) -> str:
    kind = field.message_type.full_name if field.message_type else KINDS[field.type]
    mark = "*" if field.is_repeated else ""
    oneof = field.containing_oneof
    if oneof is not None:
        # An optional field stands in a oneof of its own, whose name begins with an underscore.
        mark = "?" if oneof.name.startswith("_") else "|"
    return f"{field.name} {field.number} {kind}{mark}"


@pytest.mark.parametrize("name", CONTRACT)
def test_messages(name: str) -> None:
    assert described(ALL[name]) == CONTRACT[name]


def test_what_is_ours_is_numbered_apart() -> None:
    public = ("databroker.", "health.", "registry.", "session.", "user.")
    assert {name for name in ALL if name.startswith(public)} >= CONTRACT.keys() | OURS
    for name, message in ALL.items():
        ours = [field for field in message.fields if field.number >= FIRST_OF_OURS]
        assert not ours or name in CONTRACT, name


def methods(service: Any) -> dict[str, tuple[str, str, bool]]:
    assert not any(method.client_streaming for method in service.methods)
    return {
        method.name: (method.input_type.name, method.output_type.name, method.server_streaming)
        for method in service.methods
    }


def test_methods() -> None:
    service = databroker_pb2.DESCRIPTOR.services_by_name["DataBrokerService"]
    assert service.full_name == "databroker.DataBrokerService"
    assert methods(service) == METHODS
    registry = registry_pb2.DESCRIPTOR.services_by_name["Registry"]
    assert registry.full_name == "registry.Registry"
    assert methods(registry) == REGISTRY_METHODS
    assert dict(registry_pb2.ServiceKind.items()) == SERVICE_KINDS
    notifier = health_pb2.DESCRIPTOR.services_by_name["HealthNotifier"]
    assert notifier.full_name == "health.HealthNotifier"
    assert methods(notifier) == {"SyncHealth": ("HealthStreamRequest", "HealthMessage", True)}
    words = ("UNKNOWN", "RUNNING", "TERMINATING")
    assert dict(health_pb2.HealthStatus.items()) == {
        f"HEALTH_STATUS_{word}": number for number, word in enumerate(words)
    }
    overall = ("UNKNOWN", "STARTING", "RUNNING", "TERMINATING")
    assert dict(health_pb2.OverallStatus.items()) == {
        f"OVERALL_STATUS_{word}": number for number, word in enumerate(overall)
    }
    checkpoints = databroker_pb2.DESCRIPTOR.services_by_name["CheckpointService"]
    assert {method.name for method in checkpoints.methods} == {"GetCheckpoint", "SetCheckpoint"}


def test_fields_of_newer_tools_are_kept() -> None:
    """Read and written again, as a databroker of ours does with what it hands on."""
    newer = bytes([0xF2, 0x06, 3]) + b"new"  # field 110, a string
    session = Session(id="s").SerializeToString() + newer
    assert newer in Session.FromString(session).SerializeToString()
    record = Record(id="a")
    record.data.type_url = "t/session.Session"
    record.data.value = session
    raw = GetResponse(record=record).SerializeToString()
    assert GetResponse.FromString(raw).record.data.value == session
