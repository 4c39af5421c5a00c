"""`gatehouse health --grpc`: the standard gRPC health check, in plain text, TLS or mutual TLS."""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatehouse.cli.health import TIMEOUT_S, Tls

_USAGE = 2


def health(address: str, service: str, tls: Tls) -> int:
    """Return 0 when healthy, 1 when not or when nobody answers, 2 when a file cannot be read."""
    try:
        with _channel(address, tls) as channel:
            return _ask(channel, address, service)
    except OSError as error:
        print(error, file=sys.stderr)
        return _USAGE


def _channel(address: str, tls: Tls) -> grpc.Channel:
    if tls.authority is None:
        return grpc.insecure_channel(address)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.authority.read_bytes(),
        private_key=None if tls.key is None else tls.key.read_bytes(),
        certificate_chain=None if tls.certificate is None else tls.certificate.read_bytes(),
    )
    options = [("grpc.ssl_target_name_override", tls.name)] if tls.name else []
    return grpc.secure_channel(address, credentials, options=options)


def _ask(channel: grpc.Channel, address: str, service: str) -> int:
    try:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        print(f"{address}: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(f"{service or 'all services'}: {status}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1
