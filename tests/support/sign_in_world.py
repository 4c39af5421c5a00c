"""Sign-in without Envoy: a real databroker, authorize, authenticate and the proxy's pages.

They talk over real sockets. What Envoy does in between is done by hand: requests for a host go to
the service's Unix socket, and `World.ask_to_sign_in` is the redirect that authorize would answer
with.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx

from gatehouse.authenticate.service import AuthenticateService
from gatehouse.authorize.service import AuthorizeService
from gatehouse.cli.demo import identity_provider
from gatehouse.cli.demo.provider_grants import Client
from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.resolved import ResolvedSettings, ServiceName
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.server import GrpcServer
from gatehouse.common.rpc.service_connection import ServiceConnection
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.health import HealthRegistry
from gatehouse.common.runtime.http_server import serve_http
from gatehouse.common.session.login_binding import cookie_name, new_login_binding
from gatehouse.databroker import service as databroker_service
from gatehouse.proxy.edge.authorize_client import AUTHORIZE, AuthorizeClient
from gatehouse.proxy.edge.http_endpoints import build_app
from tests.support.web_settings import APP, AUTHENTICATE, IDP_ID, SHARED

AUTHENTICATE_HOST = urlsplit(AUTHENTICATE).netloc
_TLS = ssl.create_default_context()  # nothing here uses TLS, and making one for each is slow


class ShiftedClock(SystemClock):
    """The machine's clock, moved by `offset_s`."""

    def __init__(self) -> None:
        self.offset_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.offset_s


class SocketTransport(httpx.AsyncBaseTransport):
    """Plain HTTP over a Unix socket for URLs that a browser sees as https."""

    def __init__(self, path: Path) -> None:
        self._inner = httpx.AsyncHTTPTransport(uds=str(path), verify=_TLS)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url.copy_with(scheme="http")
        plain = httpx.Request(
            request.method,
            url,
            headers=request.headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        return await self._inner.handle_async_request(plain)

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass
class World:
    """Running services and what a test needs of them."""

    context: ProcessContext
    clock: ShiftedClock
    databroker: DatabrokerClient  # with the proxy's rights
    operator: DatabrokerClient  # with all rights
    broker: Broker
    hosts: tuple[str, ...] = (APP,)
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    @property
    def hub(self) -> ConfigHub:
        return self.context.config

    def browser(self) -> httpx.AsyncClient:
        """A browser with a cookie jar of its own. Follows no redirects by itself."""
        proxy = SocketTransport(self.context.proxy_http_socket)
        mounts: dict[str, httpx.AsyncBaseTransport] = {
            f"https://{AUTHENTICATE_HOST}": SocketTransport(self.context.authenticate_http_socket),
        }
        mounts |= {f"https://{host}": proxy for host in self.hosts}
        client = httpx.AsyncClient(mounts=mounts, trust_env=False, verify=_TLS)
        client.headers["accept"] = "text/html"
        self.clients.append(client)
        return client

    def ask_to_sign_in(
        self, browser: httpx.AsyncClient, target: str = f"https://{APP}/page?x=1", **more: str
    ) -> str:
        """What authorize does: a signed URL to authenticate, bound to this browser by a cookie."""
        name = cookie_name(self.hub.current.settings.cookie_name)
        domain = urlsplit(target).hostname or ""
        binding = new_login_binding(SystemRng(), browser.cookies.get(name, domain=domain))
        browser.cookies.set(name, binding.nonce, domain=domain)
        query = {
            "pomerium_redirect_uri": target,
            "pomerium_idp_id": IDP_ID,
            "gatehouse_login": binding.digest,
        } | more
        url = f"{AUTHENTICATE}/.pomerium/sign_in?{urlencode(query)}"
        return sign_url(url, SHARED, now_s=self.clock.now_s())

    async def choose(
        self, browser: httpx.AsyncClient, location: str, user: str = "ada@example.com"
    ) -> str:
        """Pick an account at the development provider; returns where it sends the browser."""
        page = await browser.get(location)
        assert page.status_code == 200, page.text
        key = page.text.partition('name="request" value="')[2].partition('"')[0]
        assert key, page.text
        root = f"{urlsplit(location).scheme}://{urlsplit(location).netloc}"
        answer = await browser.post(f"{root}/choose", data={"request": key, "user": user})
        assert answer.status_code in {302, 303}, answer.text
        return answer.headers["location"]

    async def callback_url(self, browser: httpx.AsyncClient, **more: str) -> str:
        """Sign in up to the redirect to the route's callback."""
        leave = await browser.get(self.ask_to_sign_in(browser, **more))
        assert leave.status_code == 302, leave.text
        back = await self.choose(browser, leave.headers["location"])
        arrive = await browser.get(back)
        assert arrive.status_code == 302, arrive.text
        return arrive.headers["location"]

    async def sign_in(self, browser: httpx.AsyncClient) -> httpx.Response:
        """Sign in at the route; returns the callback's answer."""
        return await browser.get(await self.callback_url(browser))


class Broker:
    """A real databroker on the process's gRPC socket, that a test may take away.

    `authorize`, if there is one, answers there as well.
    """

    def __init__(self, context: ProcessContext, authorize: AuthorizeService | None = None) -> None:
        self._context = context
        self._authorize = authorize
        self._stop = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Broker]:
        service = databroker_service.build(self._context)
        self._server = GrpcServer(
            lambda: self._context.config.current.shared_secrets,
            self._context.health,
            self._context.clock,
        )
        service.register_grpc(self._server.server)
        if self._authorize is not None:
            self._authorize.register_grpc(self._server.server)
        self._context.health.add_service("pomerium-databroker", ("storage.backend",))
        await self._server.start(unix_socket=self._context.grpc_socket, address=None)
        ready = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.run(self._stop, ready.set))
            await ready.wait()
            try:
                yield self
            finally:
                self._stop.set()
                await self._server.stop(0.5)

    async def go_away(self) -> None:
        """Stop serving for good."""
        await self._server.stop(0.1)


@contextlib.contextmanager
def short_directory():
    """A Unix socket's path may hold 107 bytes; a test's own directory may be longer."""
    path = Path(tempfile.mkdtemp(prefix="gh-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.asynccontextmanager
async def running_provider() -> AsyncIterator[str]:
    """The development provider: it insists on PKCE, and a code works once."""
    stop = asyncio.Event()
    issuers: asyncio.Queue[str] = asyncio.Queue()
    client = Client(
        id="client",
        secret="client-secret-value",
        redirect_uris=frozenset({f"{AUTHENTICATE}/oauth2/callback"}),
        post_logout_redirect_uris=frozenset({f"{AUTHENTICATE}/.pomerium/signed_out"}),
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(
            identity_provider.serve(stop, "127.0.0.1", 0, [client], ready=issuers.put_nowait)
        )
        issuer = await issuers.get()
        try:
            yield issuer
        finally:
            stop.set()


@contextlib.asynccontextmanager
async def running_world(settings: ResolvedSettings) -> AsyncIterator[World]:
    """Databroker, authenticate and the proxy's pages on Unix sockets."""
    clock, rng = ShiftedClock(), SystemRng()
    with short_directory() as run_dir:
        context = ProcessContext(
            config=ConfigHub(settings),
            health=HealthRegistry(clock),
            clock=clock,
            rng=rng,
            run_dir=run_dir,
            grace_s=2.0,
        )
        assert settings.runs(ServiceName.PROXY)
        stop = asyncio.Event()
        authenticate = AuthenticateService(context)
        channels = [
            BalancedChannel(
                [f"unix://{context.grpc_socket}"],
                audience="databroker",
                health_service="pomerium-databroker",
                credentials=ServiceCredentials(caller, lambda: (SHARED,), clock),
                ca_pem=None,
                clock=clock,
                rng=rng,
            )
            for caller in ("proxy", "operator")
        ]
        databroker, operator = (
            DatabrokerClient(channel, clock=clock, unary_timeout_s=2.0) for channel in channels
        )
        authorize = AuthorizeService(context)
        to_authorize = ServiceConnection(context, "proxy", AUTHORIZE)
        broker = Broker(context, authorize)
        async with broker.running(), asyncio.TaskGroup() as tasks:
            ready = [asyncio.Event(), asyncio.Event(), asyncio.Event()]
            for channel in channels:
                tasks.create_task(channel.run(stop))
            tasks.create_task(to_authorize.run(stop))
            tasks.create_task(authenticate.run(stop, ready[0].set))
            tasks.create_task(authorize.run(stop, ready[2].set))
            tasks.create_task(
                serve_http(
                    build_app(
                        lambda: context.config.current,
                        databroker,
                        AuthorizeClient(to_authorize),
                        clock,
                        rng,
                    ),
                    stop=stop,
                    unix_socket=context.proxy_http_socket,
                    ready=ready[1].set,
                    grace_s=1.0,
                )
            )
            for event in ready:
                await event.wait()
            world = World(context, clock, databroker, operator, broker)
            try:
                yield world
            finally:
                for client in world.clients:
                    await client.aclose()
                stop.set()
