"""PostgreSQL over the network: fail-over to a standby, and every way of TLS."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.errors import UnavailableError
from gatehouse.databroker.edge.backends.base import running
from gatehouse.databroker.edge.backends.connections import parse_postgres
from gatehouse.databroker.edge.backends.postgres import PostgresStorage
from tests.integration.databroker.test_faults import (
    PATIENCE_S,
    Writer,
    client_of,
    converged,
    replica,
    writing,
)
from tests.support.client_pki import CLIENT, SERVER, Issued
from tests.support.databroker_client import feeding, until
from tests.support.postgres_cluster import TcpServer, debian_programs, tcp_server
from tests.support.storage import secrets, served

pytestmark = pytest.mark.postgres


def postgres(dsn: str) -> PostgresStorage:
    return PostgresStorage(parse_postgres(dsn), SystemClock(), SystemRng(), secrets)


# Fail-over


@pytest.fixture
def primary() -> Iterator[TcpServer]:
    with tcp_server() as server:
        server.init()
        server.start()
        yield server


@pytest.fixture
def standby(primary: TcpServer) -> Iterator[TcpServer]:
    """Every commit waits for it."""
    with tcp_server() as server:
        server.copy(primary)
        server.start()
        with psycopg.connect(primary.dsn(), autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            admin.execute("SELECT pg_reload_conf()")
        yield server


async def test_a_standby_takes_over(primary: TcpServer, standby: TcpServer) -> None:
    """Nothing acknowledged is lost, and nobody has to be told."""
    dsn = (
        f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/postgres"
        "?pool_max_conns=4"
    )
    async with (
        running(postgres(dsn)) as storage,
        served(storage) as broker,
        client_of(broker.port) as client,
        feeding(client, copy := replica(), heartbeat_s=0.2, silence_s=5.0),
    ):
        writer = Writer(storage)
        async with writing(writer):
            await until(lambda: len(writer.acknowledged) >= 50)
            primary.kill()
            await until(lambda: writer.failures)
            await asyncio.to_thread(standby.promote)
            count = len(writer.acknowledged)
            await until(lambda: len(writer.acknowledged) >= count + 50, PATIENCE_S)
        await writer.check(storage)
        await converged(copy, storage)


async def test_writers_leave_a_server_that_was_made_read_only(primary: TcpServer) -> None:
    """As one that was demoted and kept its connections open: they are worth nothing any more."""
    with tcp_server() as other:
        other.init()
        other.start()
        dsn = f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{other.port}/postgres"
        async with running(postgres(f"{dsn}?pool_max_conns=2")) as storage:
            writer = Writer(storage)
            await writer.write("first")
            async with running(postgres(other.dsn())):
                pass  # has the tables
            with psycopg.connect(primary.dsn(), autocommit=True) as admin:
                admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
                admin.execute("SELECT pg_reload_conf()")
            with psycopg.connect(other.dsn(), autocommit=True) as there:
                async with asyncio.timeout(PATIENCE_S):
                    while not there.execute("SELECT id FROM gatehouse.records").fetchall():
                        await writer.write("elsewhere")


# TLS


@dataclass
class Secured:
    """A server that takes TLS with a client certificate and a password, and nothing else."""

    server: TcpServer
    files: Path

    def dsn(self, **changes: str | None) -> str:
        """With every option of it; a change to None leaves one out."""
        given: dict[str, str | None] = {
            "host": "127.0.0.1",
            "port": str(self.server.port),
            "user": "broker",
            "dbname": "postgres",
            "connect_timeout": "5",
            "sslmode": "verify-full",
            "sslrootcert": str(self.files / "ca.pem"),
            "sslcert": str(self.files / "client.pem"),
            "sslkey": str(self.files / "client.key"),
            "sslpassword": "opens the key",
            "sslsni": "1",
            "passfile": str(self.files / "passfile"),
            "target_session_attrs": "read-write",
            **changes,
        }
        kept = {name: value for name, value in given.items() if value is not None}
        return psycopg.conninfo.make_conninfo(**kept)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    programs = debian_programs()
    if programs is None:
        pytest.skip("TLS to PostgreSQL needs a server that can: install Debian's postgresql")
    files = tmp_path_factory.mktemp("tls")
    authority = Issued.root("database authority")
    # For the address alone: "localhost" is the same server under a name that it cannot prove.
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    server_pair = authority.issue("database", names=names, purposes=SERVER)
    client_pair = authority.issue("broker", purposes=CLIENT)
    (files / "ca.pem").write_text(authority.pem)
    (files / "other.pem").write_text(Issued.root("somebody else").pem)
    (files / "client.pem").write_text(client_pair.pem)
    key = client_pair.key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"opens the key")
    )
    (files / "client.key").write_bytes(key)
    (files / "passfile").write_text("*:*:*:broker:hunter2\n")
    for name in ("client.key", "passfile"):
        (files / name).chmod(0o600)
    with tcp_server(programs) as server:
        server.init(
            "local all all trust",
            "hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-full",
        )
        for name, text in (
            ("server.crt", server_pair.pem),
            ("server.key", server_pair.key_pem),
            ("root.crt", authority.pem),
        ):
            path = server.data / name
            path.write_text(text)
            path.chmod(0o600)
            server.own(path)
        server.start(
            ssl="on", ssl_ca_file="root.crt", unix_socket_directories=str(server.directory)
        )
        with psycopg.connect(
            host=str(server.directory), port=server.port, user="postgres", autocommit=True
        ) as admin:
            admin.execute("CREATE ROLE broker LOGIN PASSWORD 'hunter2'")
            admin.execute("GRANT CREATE ON DATABASE postgres TO broker")
        yield Secured(server, files)


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[PostgresStorage]:
    async with running(postgres(dsn)) as storage:
        yield storage


async def test_tls_with_every_option(secured: Secured) -> None:
    parsed = parse_postgres(secured.dsn())
    assert parsed.warnings == ()
    async with opened(secured.dsn()) as storage:
        writer = Writer(storage)
        await writer.write("a")
        await writer.check(storage)
        row = await storage._db.row(
            "SELECT ssl, version, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        )
        assert row is not None
        assert row[0] is True
        assert row[1] in {"TLSv1.2", "TLSv1.3"}
        assert "broker" in row[2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sslmode": "disable"}, "no encryption"),
        ({"sslrootcert": "other.pem"}, "certificate verify failed"),
        ({"host": "localhost"}, 'does not match host name "localhost"'),
        ({"sslcert": None, "sslkey": None}, "client certificate"),
        ({"sslpassword": "does not"}, "private key"),
        ({"passfile": "/nowhere"}, "password"),
    ],
)
async def test_what_is_not_proven_is_refused(
    secured: Secured, changes: dict[str, str | None], said: str
) -> None:
    if changes.get("sslrootcert"):
        changes = {"sslrootcert": str(secured.files / "other.pem")}
    with pytest.raises(UnavailableError) as caught:
        async with opened(secured.dsn(**changes)):
            pass
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "opens the key" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"sslmode": "verify-ca", "host": "localhost"},
        {"sslmode": "require", "sslrootcert": None},
        {"sslmode": "prefer", "sslrootcert": None},
        {"sslmode": "allow", "sslrootcert": None},
    ],
)
async def test_weaker_modes_do_what_libpq_says_of_them(
    secured: Secured, changes: dict[str, str | None]
) -> None:
    async with opened(secured.dsn(**changes)) as storage:
        row = await storage._db.row("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert row == (True,)
