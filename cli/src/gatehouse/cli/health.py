"""`gatehouse health`: ask a running process how it is, for probes and for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from http import HTTPStatus

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 5.0


def health(
    address: str, *, grpc_address: str, service: str, exclude: Sequence[str], verbose: bool
) -> int:
    """Return 0 when healthy, 1 when not or when nobody answers."""
    if grpc_address:
        return _grpc_health(grpc_address, service)
    return _http_health(address, exclude, verbose=verbose)


def _grpc_health(address: str, service: str) -> int:
    try:
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        print(f"{address}: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(f"{service or 'all services'}: {status}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


def _http_health(address: str, exclude: Sequence[str], *, verbose: bool) -> int:
    try:
        answer = httpx.get(f"http://{address}/status", timeout=TIMEOUT_S)
    except httpx.HTTPError as error:
        print(f"{address}: no answer ({error})", file=sys.stderr)
        return 1
    if answer.status_code != HTTPStatus.OK:
        print(f"{address}: HTTP {answer.status_code}", file=sys.stderr)
        return 1
    body = answer.json()
    statuses = body["statuses"]
    healthy = True
    for name in sorted({*body["checks"], *statuses} - set(exclude)):
        entry = statuses.get(name, {"status": "UNAVAILABLE"})
        good = entry["status"] == "RUNNING" and not entry.get("error")
        healthy = healthy and (good or name not in body["checks"])
        if verbose or not good:
            print(f"{name}: {entry['status']} {entry.get('error', '')}".rstrip())
    print("healthy" if healthy else "not healthy")
    return 0 if healthy else 1
