"""`gatehouse health`: ask a running process how it is, for probes and for people.

Containers run it every few seconds, so that it imports little.
"""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

TIMEOUT_S = 5.0
_USAGE = 2
_MOST_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tls:
    """How to ask over TLS: whom to trust, what to show, and which name to expect."""

    authority: Path | None = None  # set: TLS
    certificate: Path | None = None
    key: Path | None = None
    name: str = ""  # instead of the one in the address

    def problem(self) -> str:
        """What is wrong with the choice; "" when nothing is."""
        if (self.certificate is None) != (self.key is None):
            return "--tls-cert and --tls-key belong together"
        if self.authority is None and (self.certificate is not None or self.name):
            return "--tls-cert, --tls-key and --tls-name need --tls-ca, which turns TLS on"
        return ""


PLAINTEXT = Tls()


def health(
    address: str,
    *,
    grpc_address: str,
    service: str,
    exclude: Sequence[str],
    verbose: bool,
    tls: Tls = PLAINTEXT,
) -> int:
    """Return 0 when healthy, 1 when not or when nobody answers, 2 when it cannot be asked so."""
    problem = tls.problem()
    if not problem and tls != PLAINTEXT and not grpc_address:
        problem = "the --tls options are for --grpc; the probes' listener speaks plain HTTP"
    if problem:
        print(problem, file=sys.stderr)
        return _USAGE
    if not grpc_address:
        return _http_health(address, exclude, verbose=verbose)
    from gatehouse.cli import health_grpc  # noqa: PLC0415 - gRPC takes long to import

    return health_grpc.health(grpc_address, service, tls)


def _http_health(address: str, exclude: Sequence[str], *, verbose: bool) -> int:
    try:
        connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
        connection.request("GET", "/status", headers={"connection": "close"})
        answer = connection.getresponse()
        text = answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        print(f"{address}: no answer ({error})", file=sys.stderr)
        return 1
    if answer.status != HTTPStatus.OK:
        print(f"{address}: HTTP {answer.status}", file=sys.stderr)
        return 1
    body = json.loads(text)
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
