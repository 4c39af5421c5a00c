"""Errors to gRPC status and back."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from gatehouse.common import errors
from gatehouse.common.rpc.status import REASON_KEY, from_rpc_error, to_grpc, trailing_metadata

EVERY = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type)
    and issubclass(cls, errors.GatehouseError)
    and cls is not errors.GatehouseError
]


def rpc_error(
    status: grpc.StatusCode, details: str | None = None, **metadata: str
) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*((key.replace("_", "-"), one) for key, one in metadata.items()))
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), trailing, details)


@pytest.mark.parametrize("cls", EVERY)
def test_round_trip(cls: type[errors.GatehouseError]) -> None:
    error = cls("for the log: k=v", reason="stable-reason", public_message="for anyone")
    status, message = to_grpc(error)
    assert message == "for anyone"
    back = from_rpc_error(rpc_error(status, message, gatehouse_reason=error.reason))
    assert back.code is error.code
    assert back.reason == "stable-reason"
    assert "for anyone" in str(back)
    assert "k=v" not in str(back)


def test_reason_rides_in_metadata() -> None:
    pairs = trailing_metadata(errors.AbortedError("x", reason="too-old"))
    assert pairs == ((REASON_KEY, "too-old"),)


def test_a_peer_without_a_reason_gets_the_default_one() -> None:
    assert from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE)).reason == "unavailable"


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
        (grpc.StatusCode.DATA_LOSS, errors.InternalError),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.CANCELLED, errors.UnavailableError),
        (grpc.StatusCode.OUT_OF_RANGE, errors.InvalidArgumentError),
    ],
)
def test_statuses_of_other_peers(status: grpc.StatusCode, cls: type[errors.GatehouseError]) -> None:
    assert type(from_rpc_error(rpc_error(status, "text"))) is cls


def test_every_status_maps() -> None:
    for status in grpc.StatusCode:
        assert isinstance(from_rpc_error(rpc_error(status)), errors.GatehouseError)


def test_a_peers_text_is_not_shown_to_users() -> None:
    back = from_rpc_error(rpc_error(grpc.StatusCode.INTERNAL, "connection to 10.0.0.7 failed"))
    assert "10.0.0.7" not in back.public_message


def test_long_messages_are_cut() -> None:
    _, message = to_grpc(errors.InternalError("x" * 100_000))
    assert len(message) == 1024
