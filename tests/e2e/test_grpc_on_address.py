"""gRPC without a listener of its own: Envoy passes on what is sent to the hosts of the services.

One process runs everything, and a second one only a proxy that calls the first.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatehouse.cli.demo.certificates import Certificates
from gatehouse.common.clock import SystemClock
from gatehouse.common.rpc.credentials import Metadata, ServiceCredentials
from gatehouse.pb import databroker_pb2, databroker_pb2_grpc
from tests.support.stack import HOSTS, Gatehouse, Stack, running
from tests.support.tls import Authority
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

DATABROKER, AUTHORIZE = "databroker.localhost", "authorize.localhost"
LIMIT_S = 60.0
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@dataclass
class World:
    stack: Stack
    upstream: EchoUpstream
    silent: socket.socket  # takes connections and answers nothing

    @property
    def process(self) -> Gatehouse:
        return self.stack.processes["proxy"]

    def channel(self, host: str) -> Any:
        """To Envoy over TLS, as a client of `host` connects."""
        roots = self.stack.certificates.authority.read_bytes()
        options = (
            ("grpc.default_authority", f"{host}:{self.stack.port}"),
            ("grpc.ssl_target_name_override", host),
        )
        return grpc.secure_channel(
            f"127.0.0.1:{self.stack.port}", grpc.ssl_channel_credentials(roots), options=options
        )

    def jwt(self, subject: str, audience: str) -> Metadata:
        """What a service shows that has the shared secret."""
        secret = base64.b64decode(self.stack.shared_secret)
        credentials = ServiceCredentials(subject, lambda: (secret,), SystemClock())
        return credentials.metadata(audience)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, provider: str) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("shared")
    with EchoUpstream().running() as upstream, socket.create_server(("127.0.0.1", 0)) as silent:
        public = {"allow_public_unauthenticated_access": True}
        patient = {"timeout": "6s"}
        stack = Stack(
            directory=directory,
            issuer=provider,
            client_id="gatehouse",
            client_secret="not-a-real-secret",
            routes=[
                {"from": "https://public.localhost", "to": upstream.url, **public, **patient},
                {
                    "from": "https://app.localhost",
                    "to": upstream.url,
                    "allow_any_authenticated_user": True,
                    **patient,
                },
                {
                    "from": "https://new.localhost",
                    "to": f"http://127.0.0.1:{silent.getsockname()[1]}",
                    **public,
                },
            ],
        )
        # BoringSSL, as in gRPC, does not take the name constraints of the demo's authority.
        authority = Authority(directory)
        leaf = authority.leaf(*HOSTS, DATABROKER, AUTHORIZE)
        stack.certificates = Certificates(
            authority.path, leaf.certificate, leaf.key, authority_made=True
        )
        stack.environment["GRPC_ADDRESS"] = f"127.0.0.1:{stack.port}"
        stack.extra = {
            "databroker_service_url": f"https://{DATABROKER}:{stack.port}",
            "authorize_service_url": f"https://{AUTHORIZE}:{stack.port}",
            # All that could cut a stream.
            "default_upstream_timeout": "2s",
            "timeout_write": "6s",
            "timeout_idle": "4s",
            "timeout_read": "6s",
        }
        stack.write_config()
        with running(stack):
            yield World(stack, upstream, silent)


def listening(process: Gatehouse) -> set[int]:
    """The TCP ports on which the process itself listens (Envoy is another one)."""
    held = {
        str(path.readlink())
        for path in Path(f"/proc/{process.process.pid}/fd").iterdir()
        if path.is_symlink()
    }
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in held:  # TCP_LISTEN
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def test_the_process_opens_no_socket_for_grpc(world: World) -> None:
    assert listening(world.process) == {world.stack.health_ports["proxy"]}


def test_nobody_is_answered_without_the_service_jwt(world: World) -> None:
    with world.channel(DATABROKER) as channel:
        broker: Any = databroker_pb2_grpc.DataBrokerServiceStub(channel)
        for metadata in ((), (("jwt", "forged.forged.forged"),)):
            with pytest.raises(grpc.RpcError) as refused:
                broker.ServerInfo(Empty(), timeout=LIMIT_S, metadata=metadata)
            assert refused.value.code() is UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as refused:
                list(broker.Sync(databroker_pb2.SyncRequest(), timeout=LIMIT_S, metadata=metadata))
            assert refused.value.code() is UNAUTHENTICATED
    with world.channel(AUTHORIZE) as channel:
        authorize = external_auth_pb2_grpc.AuthorizationStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            authorize.Check(external_auth_pb2.CheckRequest(), timeout=LIMIT_S)
        assert refused.value.code() is UNAUTHENTICATED


def test_with_it_databroker_and_authorize_answer(world: World) -> None:
    with world.channel(DATABROKER) as channel:
        broker: Any = databroker_pb2_grpc.DataBrokerServiceStub(channel)
        info = broker.ServerInfo(
            Empty(), timeout=LIMIT_S, metadata=world.jwt("proxy", "databroker")
        )
        assert info.server_version > 0
        with pytest.raises(grpc.RpcError) as refused:  # who may do what holds here too
            broker.Clear(Empty(), timeout=LIMIT_S, metadata=world.jwt("proxy", "databroker"))
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(service="databroker"), timeout=LIMIT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with world.channel(AUTHORIZE) as channel:
        authorize = external_auth_pb2_grpc.AuthorizationStub(channel)
        decision = authorize.Check(
            external_auth_pb2.CheckRequest(),
            timeout=LIMIT_S,
            metadata=world.jwt("proxy", "authorize"),
        )
        assert decision.status.code != 0  # no route is asked about: no allow


def test_no_limit_of_requests_ends_a_stream(world: World) -> None:
    with world.channel(DATABROKER) as channel, world.stack.client() as client:
        broker: Any = databroker_pb2_grpc.DataBrokerServiceStub(channel)
        metadata = world.jwt("databroker", "databroker")
        info = broker.ServerInfo(Empty(), timeout=LIMIT_S, metadata=metadata)
        request = databroker_pb2.SyncRequest(
            server_version=info.server_version, type="test.stays-open"
        )
        stream: Any = broker.Sync(request, timeout=LIMIT_S, metadata=metadata)
        stream.initial_metadata()
        # Each of these ends at the limit of a request, 2 s: longer together than any limit.
        for _ in range(4):
            assert client.get(world.stack.url("new.localhost")).status_code == 504
        record = databroker_pb2.Record(type="test.stays-open", id="1")
        record.data.Pack(StringValue(value="there"))
        broker.Put(databroker_pb2.PutRequest(records=[record]), timeout=LIMIT_S, metadata=metadata)
        assert next(stream).record.id == "1"
        stream.cancel()


def test_a_route_s_request_never_becomes_a_call(world: World) -> None:
    """Only the host counts, and it is the one that the request is sent to."""
    path = "/databroker.DataBrokerService/ServerInfo"
    spoofed = {
        "content-type": "application/grpc",
        "te": "trailers",
        "x-forwarded-host": f"{DATABROKER}:{world.stack.port}",
        "x-original-host": DATABROKER,
        "x-host": DATABROKER,
        "forwarded": f"host={DATABROKER}",
        "x-envoy-original-path": path,
        "x-envoy-original-host": DATABROKER,
        **dict(world.jwt("databroker", "databroker")),
    }
    before = len(world.upstream.requests)
    for http2 in (False, True):
        with world.stack.client(http2=http2) as client:
            answer = client.post(world.stack.url("public.localhost", path), headers=spoofed)
            assert answer.headers["x-upstream"] == "echo"
            refused = client.post(world.stack.url("app.localhost", path), headers=spoofed)
            assert "x-upstream" not in refused.headers
            assert refused.status_code in {200, 302, 401}
            assert refused.headers.get("grpc-status", "16") == "16"
    assert len(world.upstream.requests) == before + 2
    with world.channel("app.localhost") as channel:
        broker: Any = databroker_pb2_grpc.DataBrokerServiceStub(channel)
        with pytest.raises(grpc.RpcError):
            broker.ServerInfo(Empty(), timeout=LIMIT_S, metadata=world.jwt("proxy", "databroker"))
    assert len(world.upstream.requests) == before + 2


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/grpc-web", "application/grpcx", "application/json"],
)
def test_what_is_no_call_gets_our_pages_and_nothing_else(world: World, content_type: str) -> None:
    headers = {"content-type": content_type, **dict(world.jwt("proxy", "databroker"))}
    with world.stack.client() as client:
        path = "/databroker.DataBrokerService/ServerInfo"
        answer = client.post(world.stack.url(DATABROKER, path), headers=headers)
        assert answer.status_code == 404
        assert client.get(world.stack.url(DATABROKER, "/ping")).status_code == 200


def test_a_proxy_elsewhere_calls_the_services_by_these_hosts(world: World, tmp_path: Path) -> None:
    """Its Envoy checks authorize's health and asks it, its Python follows the databroker."""
    other = Stack(
        directory=tmp_path / "other",
        issuer=world.stack.issuer,
        client_id="gatehouse",
        client_secret="not-a-real-secret",
        routes=world.stack.routes,
        extra={**world.stack.extra, "services": "proxy"},
    )
    other.shared_secret, other.cookie_secret = world.stack.shared_secret, world.stack.cookie_secret
    other.extra["authenticate_service_url"] = world.stack.authenticate_url
    other.extra["certificate_authority_file"] = str(world.stack.certificates.authority)
    other.write_config()
    with running(other):
        before = len(world.upstream.requests)
        with other.client() as client:
            assert client.get(other.url("public.localhost")).status_code == 200
            sent = client.get(other.url("app.localhost"))
            assert sent.status_code == 302
            assert "/.pomerium/sign_in" in sent.headers["location"]
        assert len(world.upstream.requests) == before + 1
