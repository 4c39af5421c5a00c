"""Databroker, authenticate and authorize in one process, asked as Envoy asks, with real tokens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
import httpx
from envoy.service.auth.v3 import external_auth_pb2_grpc

from gatehouse.authenticate.service import AuthenticateService
from gatehouse.authorize.service import AuthorizeService
from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.resolved import IdentityProviderSettings, ResolvedSettings
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.records import unpack
from gatehouse.common.identity.provider import Identity, make_provider
from gatehouse.common.ids import SESSION
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.server import GrpcServer
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.pb.session_pb2 import Session
from tests.support.check import SECRET, check_request
from tests.support.identity import NONCE, REDIRECT_URI, approve, provider_settings
from tests.support.sign_in_world import Broker, ShiftedClock, short_directory

_STREAMS = 80  # our servers take 100 on a connection


@dataclass
class BearerWorld:
    """Running services."""

    context: ProcessContext
    authorize: AuthorizeService
    databroker: DatabrokerClient
    broker: Broker
    clock: ShiftedClock
    channel: grpc.aio.Channel
    socket: str  # of authorize's gRPC server

    async def check(self, token: str, **request: Any) -> Any:
        """Envoy's question about a request with this bearer token."""
        headers = {"authorization": f"Bearer {token}", **request.pop("headers", {})}
        return await self.ask(check_request(headers=headers, **request))

    async def ask(self, request: Any) -> Any:
        stub = external_auth_pb2_grpc.AuthorizationStub(self.channel)
        return await stub.Check(request, timeout=60)

    async def crowd(self, token: str, count: int) -> list[Any]:
        """`count` questions at once, over as many connections as Envoy would open for them."""
        credentials = ServiceCredentials("proxy", lambda: (SECRET,), self.clock)
        metadata = credentials.metadata("authorize")
        request = check_request(headers={"authorization": f"Bearer {token}"})
        async with contextlib.AsyncExitStack() as stack:
            stubs = []
            for _ in range(-(-count // _STREAMS)):
                options = [("grpc.use_local_subchannel_pool", 1)]
                channel = grpc.aio.insecure_channel(f"unix:{self.socket}", options=options)
                await stack.enter_async_context(channel)
                stubs.append(external_auth_pb2_grpc.AuthorizationStub(channel))
            return await asyncio.gather(
                *(
                    stubs[number % len(stubs)].Check(request, timeout=30, metadata=metadata)
                    for number in range(count)
                )
            )

    async def sessions(self) -> list[Session]:
        """Every live session."""
        found = await self.databroker.query(SESSION)
        return [unpack(record, Session) for record in found.records]


def operator_channel(path: str, audience: str, clock: Any, subject: str) -> BalancedChannel:
    return BalancedChannel(
        [f"unix://{path}"],
        audience=audience,
        health_service="",
        credentials=ServiceCredentials(subject, lambda: (SECRET,), clock),
        ca_pem=None,
        clock=clock,
        rng=SystemRng(),
    )


@contextlib.asynccontextmanager
async def bearer_world(settings: ResolvedSettings) -> AsyncIterator[BearerWorld]:
    """`settings` must run all four services and use the memory backend."""
    clock = ShiftedClock()
    with short_directory() as directory:
        context = ProcessContext(
            ConfigHub(settings), HealthRegistry(clock), clock, SystemRng(), directory, 2.0
        )
        stop = asyncio.Event()
        authenticate = AuthenticateService(context)
        authorize = AuthorizeService(context)
        server = GrpcServer(lambda: context.config.current.shared_secrets, context.health, clock)
        authorize.register_grpc(server.server)
        socket = directory / "authorize.sock"
        await server.start(unix_socket=socket, address=None)
        databroker = operator_channel(str(context.grpc_socket), "databroker", clock, "operator")
        envoy = operator_channel(str(socket), "authorize", clock, "proxy")
        broker = Broker(context)
        async with broker.running(), asyncio.TaskGroup() as tasks:
            ready = [asyncio.Event(), asyncio.Event()]
            tasks.create_task(authenticate.run(stop, ready[0].set))
            tasks.create_task(authorize.run(stop, ready[1].set))
            async with asyncio.timeout(60):
                for event in ready:
                    await event.wait()
            try:
                client = DatabrokerClient(databroker, clock=clock)
                channel = await envoy.ready_channel(5)
                yield BearerWorld(context, authorize, client, broker, clock, channel, str(socket))
            finally:
                stop.set()
                await databroker.close()
                await envoy.close()
                await server.stop(0.5)


async def signed_in_program(issuer: str, subject: str, **changes: Any) -> Identity:
    """What a program gets that signs in at `oidc-provider-mock` by itself."""
    settings: IdentityProviderSettings = provider_settings(issuer, **changes)
    async with httpx.AsyncClient(trust_env=False) as http:
        provider = make_provider(settings, http, SystemClock(), SystemRng())
        url = await provider.authorization_url(
            redirect_uri=REDIRECT_URI, state="s", nonce=NONCE, code_challenge=None
        )
        code = (await approve(http, url, subject))["code"]
        return await provider.exchange(
            code=code, redirect_uri=REDIRECT_URI, code_verifier=None, nonce=NONCE
        )
