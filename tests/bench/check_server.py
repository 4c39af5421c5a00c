"""A process that answers Check, for the bench: `check_server.py product|trivial SESSIONS ROUTES`.

Prints its port, then serves until its standard input ends. `trivial` is the same server with a
handler that only returns a constant: what gRPC in this language costs by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from envoy.service.auth.v3 import external_auth_pb2_grpc

from gatehouse.common.clock import SystemClock
from gatehouse.common.config.resolved import ListenAddress, ServiceName
from gatehouse.common.observability.logging import configure_logging
from gatehouse.common.rpc.server import GrpcServer
from gatehouse.common.runtime import event_loop
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.common.runtime.process import SWITCH_INTERVAL_S
from tests.bench.bench_check import build
from tests.support.check import SECRET, CheckResponse


class Trivial(external_auth_pb2_grpc.AuthorizationServicer):  # type: ignore[misc]
    def __init__(self, response: Any) -> None:
        self._response = response

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        return self._response


async def serve(kind: str, sessions: int, routes: int) -> None:
    clock = SystemClock()
    servicer, _, _ = build(sessions=sessions, routes=routes)
    if kind == "trivial":
        servicer = Trivial(CheckResponse())
    server = GrpcServer(lambda: (SECRET,), HealthRegistry(clock), clock)
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(servicer, server.server)
    port = await server.start(unix_socket=None, address=ListenAddress("127.0.0.1", 0))
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0.5)


if __name__ == "__main__":
    # Log lines are written, by the thread that writes them in the product, but nobody reads them.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        configure_logging("info")
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        serving = serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        event_loop.run(serving, frozenset({ServiceName.AUTHORIZE}))
