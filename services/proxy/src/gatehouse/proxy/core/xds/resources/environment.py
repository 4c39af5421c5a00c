"""What the builders need to know that the settings do not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from envoy.config.core.v3 import base_pb2

from gatehouse.proxy.core.xds.resource import digest


@dataclass(frozen=True, slots=True)
class SnapshotEnvironment:
    """The machine and process that a snapshot is made for. Sockets and directories are paths."""

    grpc_socket: str
    proxy_http_socket: str
    authenticate_http_socket: str
    envoy_admin_socket: str
    metrics_socket: str
    decision_table: str  # files in shared memory, of remembered decisions
    decision_counters: str
    guard_socket: str  # who watches connections that stay open
    secrets_dir: str
    authorize_jwt: str  # what Envoy shows to authorize; renewed by making a new snapshot
    error_page: str  # the HTML of Envoy's own replies, with Envoy's % commands
    error_page_headers: Mapping[str, str]  # what such a page may load, and who may keep it
    worker_sockets: tuple[str, ...] = ()  # of further authorize workers in this process
    system_ca_pem: bytes = b""  # the machine's trusted roots
    ipv6: bool = False  # the machine can bind IPv6 sockets
    reuse_port: bool = True  # Linux

    def __repr__(self) -> str:
        return f"SnapshotEnvironment(secrets_dir={self.secrets_dir!r})"


@dataclass(slots=True)
class SnapshotFiles:
    """Collects the files that resources name. A name holds its content's hash."""

    directory: str
    contents: dict[str, bytes] = field(default_factory=dict)

    def add(self, stem: str, content: bytes, extension: str = "pem") -> base_pb2.DataSource:
        """The source of `content`: a file that the edge writes before the resource is pushed."""
        name = f"{stem}-{digest(content)}.{extension}"
        self.contents[name] = content
        return base_pb2.DataSource(filename=f"{self.directory}/{name}")

    def sorted(self) -> Mapping[str, bytes]:
        """The files in order of their names."""
        return dict(sorted(self.contents.items()))
