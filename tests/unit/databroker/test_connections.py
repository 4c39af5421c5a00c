"""Connection strings: directories, and PostgreSQL with its pool keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.databroker.edge.backends.connections import parse_postgres, store_directory


@pytest.mark.parametrize(
    ("connection", "directory"),
    [
        ("file:///var/lib/gatehouse", "/var/lib/gatehouse"),
        ("  /var/lib/gatehouse\n", "/var/lib/gatehouse"),
        ("file://localhost/a%20b", "/a b"),
        ("", "/data/pomerium/databroker"),
    ],
)
def test_directories(connection: str, directory: str) -> None:
    assert store_directory(connection, {"XDG_DATA_HOME": "/data"}) == Path(directory)


def test_the_data_directory_without_xdg() -> None:
    found = store_directory("", {})
    assert found == Path.home() / ".local/share/pomerium/databroker"


@pytest.mark.parametrize(
    "connection",
    ["relative", "file://host/dir", "file://", "http:///x", "file:///a%00", "file:///a?b"],
)
def test_bad_directories(connection: str) -> None:
    with pytest.raises(InvalidArgumentError, match="databroker_storage_connection_string"):
        store_directory(connection, {})


URL = (
    "postgres://u:p%40ss@db.example.com:5433/name?sslmode=require&pool_max_conns=7"
    "&pool_min_conns=2&pool_max_conn_lifetime=1h30m&pool_max_conn_idle_time=90s"
    "&pool_health_check_period=500ms&pool_max_conn_lifetime_jitter=1m"
    "&default_query_exec_mode=exec"
)
KEYWORDS = (
    "host=db.example.com port=5433 user=u password='p@ss' dbname=name sslmode=require "
    "pool_max_conns=7 pool_min_conns = '2' pool_max_conn_lifetime=1h30m "
    "pool_max_conn_idle_time=90s pool_health_check_period=500ms"
)


@pytest.mark.parametrize("connection", [URL, KEYWORDS])
def test_pool_keys_beside_libpq_keys(connection: str) -> None:
    parsed = parse_postgres(connection)
    info = conninfo_to_dict(parsed.conninfo)
    assert (info["host"], info["port"], info["dbname"]) == ("db.example.com", "5433", "name")
    assert (info["user"], info["password"], info["sslmode"]) == ("u", "p@ss", "require")
    assert not any(key.startswith("pool_") for key in info)
    assert (parsed.max_connections, parsed.min_connections) == (7, 2)
    assert (parsed.max_lifetime_s, parsed.max_idle_s, parsed.health_check_s) == (5400, 90, 0.5)
    assert len(parsed.warnings) == 1
    assert "verify-full" in parsed.warnings[0]
    assert "p@ss" not in repr(parsed)


def test_defaults() -> None:
    parsed = parse_postgres("postgres://localhost/name")
    assert parsed.max_connections >= 4
    assert (parsed.min_connections, parsed.max_lifetime_s, parsed.max_idle_s) == (0, 3600, 1800)
    info = conninfo_to_dict(parsed.conninfo)
    assert info["connect_timeout"] == "10"
    assert info["application_name"] == "gatehouse-databroker"
    assert conninfo_to_dict(parse_postgres("connect_timeout=3").conninfo)["connect_timeout"] == "3"


def test_several_hosts_and_quoted_values() -> None:
    parsed = parse_postgres(
        "postgres://u@h1:1,h2:2/n?target_session_attrs=read-write&options=-c%20a%3Db&sslrootcert=%2Fa+b"
    )
    info = conninfo_to_dict(parsed.conninfo)
    assert (info["host"], info["port"]) == ("h1,h2", "1,2")
    assert info["target_session_attrs"] == "read-write"
    assert info["options"] == "-c a=b"
    unsaid = conninfo_to_dict(parse_postgres("postgres://u@h1,h2/n").conninfo)
    assert unsaid["target_session_attrs"] == "read-write"  # one of them is a standby
    assert "target_session_attrs" not in conninfo_to_dict(parse_postgres("host=h").conninfo)
    quoted = parse_postgres(r"password='a \' b\\' host=h pool_max_conns=1")
    assert conninfo_to_dict(quoted.conninfo)["password"] == "a ' b\\"


@pytest.mark.parametrize(
    ("connection", "warned"),
    [
        ("postgres://127.0.0.1/x", False),
        ("postgres://[::1]/x", False),
        ("host=/run/postgresql", False),
        ("dbname=x", False),
        ("host=db sslmode=verify-full", False),
        ("host=db sslmode=verify-ca", True),
        ("host=db", True),
        ("host=localhost,db", True),
    ],
)
def test_weak_tls_is_warned_about(connection: str, warned: bool) -> None:
    assert bool(parse_postgres(connection).warnings) == warned


@pytest.mark.parametrize(
    "connection",
    [
        "",
        "not a connection hunter2",
        "postgres://u:hunter2@h/x?no_such_key=1",
        "host=h password=hunter2 nope=1",
        "host=h password='hunter2",
        "postgres://h/x?pool_max_conns=0",
        "postgres://h/x?pool_max_conns=hunter2",
        "postgres://h/x?pool_max_conn_lifetime=hunter2",
        "host=h pool_max_conn_idle_time=0s",
    ],
)
def test_bad_connections_name_no_values(connection: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_postgres(connection)
    assert "hunter2" not in str(caught.value)
    assert "databroker_storage_connection_string" in str(caught.value)
    assert caught.value.__cause__ is None
