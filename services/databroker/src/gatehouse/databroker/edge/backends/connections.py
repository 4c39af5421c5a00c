"""What a storage connection string means: a directory, or a PostgreSQL server and its pool.

PostgreSQL strings are libpq's (URL or keywords; PG* variables and the password file count too),
with the pool keys that Pomerium's driver takes beside them (spec: databroker, connection string).
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from gatehouse.common.errors import InvalidArgumentError

_POOL_KEYS: Final = frozenset(
    {
        "pool_max_conns",
        "pool_min_conns",
        "pool_min_idle_conns",
        "pool_max_conn_lifetime",
        "pool_max_conn_lifetime_jitter",
        "pool_max_conn_idle_time",
        "pool_health_check_period",
    }
)
# Keys of Pomerium's driver that have no meaning for ours.
_DRIVER_KEYS: Final = frozenset(
    {"default_query_exec_mode", "statement_cache_capacity", "description_cache_capacity"}
)
_DEFAULTS: Final[Mapping[str, str]] = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "15",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "application_name": "gatehouse-databroker",
}
_STRICT_MODES: Final = frozenset({"verify-full"})
_KEYWORD: Final = re.compile(r"\s*([A-Za-z_]+)\s*=\s*('(?:\\.|[^'\\])*'|(?:\\.|[^\s'\\])*)(?=\s|$)")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNIT_S: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_KEY: Final = "databroker_storage_connection_string"


@dataclass(frozen=True, slots=True)
class PostgresConnection:
    """Where the database is, and how many connections to keep. Durations are in seconds."""

    conninfo: str  # libpq's; may hold a password
    max_connections: int
    min_connections: int = 0
    max_lifetime_s: float = 3600.0
    max_idle_s: float = 1800.0
    health_check_s: float = 60.0
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"PostgresConnection(max_connections={self.max_connections})"


def store_directory(connection: str, environ: Mapping[str, str]) -> Path:
    """Return the directory that a `file` connection string names; the data directory for "".

    Raises InvalidArgumentError.
    """
    connection = connection.strip()
    if not connection:
        data_home = environ.get("XDG_DATA_HOME", "")
        base = Path(data_home) if data_home else Path.home() / ".local" / "share"
        return base / "pomerium" / "databroker"
    if connection.startswith("/"):
        return Path(connection)
    parts = urlsplit(connection)
    path = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc not in {"", "localhost"} or not path.startswith("/"):
        raise InvalidArgumentError(f"{_KEY}: file storage wants file:///directory or /directory")
    if "\x00" in path or parts.query or parts.fragment:
        raise InvalidArgumentError(f"{_KEY}: a file URL takes a path alone")
    return Path(path)


def parse_postgres(connection: str) -> PostgresConnection:
    """Read a PostgreSQL connection string. Raises InvalidArgumentError, naming no values."""
    connection = connection.strip()
    if not connection:
        raise InvalidArgumentError(
            f"{_KEY} is required with postgres storage: postgres://user@host/database"
        )
    is_url = connection.startswith(("postgres://", "postgresql://"))
    rest, ours = _split_url(connection) if is_url else _split_keywords(connection)
    try:
        given = conninfo_to_dict(rest)
    except psycopg.ProgrammingError:
        # libpq's message may quote the string, and with it a password.
        raise InvalidArgumentError(
            f"{_KEY} is not a PostgreSQL connection string; "
            "postgres://user:password@host/database?sslmode=verify-full would be one"
        ) from None
    defaults = dict(_DEFAULTS)
    if "," in str(given.get("host") or given.get("hostaddr") or ""):
        defaults["target_session_attrs"] = "read-write"  # of a primary and its standbys
    conninfo = make_conninfo("", **{**defaults, **given})
    pool = {key: value for key, value in ours.items() if key in _POOL_KEYS}
    maximum = _count(pool, "pool_max_conns", max(4, os.cpu_count() or 1), at_least=1)
    minimum = max(
        _count(pool, "pool_min_conns", 0, at_least=0),
        _count(pool, "pool_min_idle_conns", 0, at_least=0),
    )
    return PostgresConnection(
        conninfo=conninfo,
        max_connections=maximum,
        min_connections=min(minimum, maximum),
        max_lifetime_s=_duration_s(pool, "pool_max_conn_lifetime", 3600.0),
        max_idle_s=_duration_s(pool, "pool_max_conn_idle_time", 1800.0),
        health_check_s=_duration_s(pool, "pool_health_check_period", 60.0),
        warnings=_warnings({key: str(value) for key, value in given.items()}),
    )


def _split_url(url: str) -> tuple[str, Mapping[str, str]]:
    base, mark, query = url.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    ours = {key: value for key, value in pairs if key in _POOL_KEYS | _DRIVER_KEYS}
    theirs = [(key, value) for key, value in pairs if key not in ours]
    # libpq decodes %XX alone; a "+" would stay one.
    encoded = urlencode(theirs).replace("+", "%20")
    return (f"{base}{mark}{encoded}" if theirs else base), ours


def _split_keywords(text: str) -> tuple[str, Mapping[str, str]]:
    ours: dict[str, str] = {}
    theirs: list[str] = []
    place = 0
    while place < len(text):
        match = _KEYWORD.match(text, place)
        if match is None:
            theirs.append(text[place:])  # libpq will say that it is wrong
            break
        key, value = match.groups()
        if key in _POOL_KEYS | _DRIVER_KEYS:
            ours[key] = value.strip("'")
        else:
            theirs.append(match.group().strip())
        place = match.end()
    return " ".join(theirs), ours


def _count(values: Mapping[str, str], key: str, default: int, *, at_least: int) -> int:
    text = values.get(key)
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,5}", text) or int(text) < at_least:
        raise InvalidArgumentError(f"{_KEY}: {key} must be a whole number, {at_least} or more")
    return int(text)


def _duration_s(values: Mapping[str, str], key: str, default: float) -> float:
    text = values.get(key)
    if text is None:
        return default
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidArgumentError(f"{_KEY}: {key} must be a duration such as 30m or 1h")
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    if seconds <= 0:
        raise InvalidArgumentError(f"{_KEY}: {key} must be longer than nothing")
    return seconds


def _warnings(given: Mapping[str, str]) -> tuple[str, ...]:
    hosts = [host for host in given.get("host", "").split(",") if host and not _is_local(host)]
    if hosts and given.get("sslmode") not in _STRICT_MODES:
        warning = (
            f"{_KEY}: sslmode is weaker than verify-full for a host that is not this one; "
            "the server is not verified"
        )
        return (warning,)
    return ()


def _is_local(host: str) -> bool:
    if host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
