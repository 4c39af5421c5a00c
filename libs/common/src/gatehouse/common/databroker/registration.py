"""How a process tells the databroker's registry where its metrics are read.

A tool that asks the registry finds every process of the deployment there. Nothing is routed by it:
services find each other through DNS.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Final

import grpc.aio

from gatehouse.common.config.resolved import MetricsListener
from gatehouse.common.databroker.client import Channel
from gatehouse.common.databroker.connection import DatabrokerConnection
from gatehouse.common.errors import GatehouseError
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.rpc.status import from_rpc_error
from gatehouse.common.runtime.backoff import Backoff
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.supervise import wait_or_stop
from gatehouse.pb.registry_pb2 import PROMETHEUS_METRICS, RegisterRequest, Service
from gatehouse.pb.registry_pb2_grpc import RegistryStub

FIRST_S: Final = 1.0  # after the start
CALL_S: Final = 5.0
LEAST_CALL_BACK_S: Final = 1.0
MOST_CALL_BACK_S: Final = 300.0
WITHOUT_METRICS_S: Final = 30.0

_log = get_logger("gatehouse")


def metrics_url(listener: MetricsListener, host_name: str) -> str:
    """Return where metrics are read; `host_name` stands for a listener on every address."""
    host = listener.address.host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        host = host or host_name
    else:
        host = f"[{host}]" if address.version == 6 else host
        host = host_name if address.is_unspecified else host
    scheme = "http" if listener.certificate is None else "https"
    return f"{scheme}://{host}:{listener.address.port}/metrics"


async def keep_registered(
    context: ProcessContext, connection: DatabrokerConnection, stop: asyncio.Event
) -> None:
    """Report until `stop`. A registry that cannot be reached harms nobody."""
    backoff = Backoff(0.5, 1.5, 60.0, 0.5)
    wait_s = FIRST_S
    while not await wait_or_stop(stop, wait_s):
        listener = context.config.current.metrics
        if listener is None:  # a reload may bring one
            wait_s = WITHOUT_METRICS_S
            continue
        url = metrics_url(listener, socket.gethostname())
        try:
            wait_s = await report(connection, url)
            backoff.reset()
        except GatehouseError as error:
            wait_s = backoff.next_s(context.rng)
            _log.debug("metrics address not reported", error=str(error))


async def report(channel: Channel, url: str) -> float:
    """Report where metrics are read; return after how many seconds to do so again."""
    stub = RegistryStub(await channel.ready_channel(CALL_S))
    request = RegisterRequest(services=[Service(kind=PROMETHEUS_METRICS, endpoint=url)])
    try:
        response = await stub.Report(request, timeout=CALL_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    asked_s = response.call_back_after.ToMilliseconds() / 1e3
    return min(max(asked_s, LEAST_CALL_BACK_S), MOST_CALL_BACK_S)
