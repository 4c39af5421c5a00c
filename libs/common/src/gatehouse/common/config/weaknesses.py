"""Which settings are allowed and weaken security: told at start, never a reason to refuse."""

from __future__ import annotations

import functools
import ipaddress
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import BaseModel, SecretStr

from gatehouse.common.config.choices import CookieSameSite, StorageType
from gatehouse.common.config.issues import Finding, Severity
from gatehouse.common.config.load import KeyPath, LoadedSettings
from gatehouse.common.config.model import Settings
from gatehouse.common.config.values import shorten

STRONG_SSLMODE: Final = "verify-full"
MOST_NAMED: Final = 3

_KEYWORD: Final = re.compile(r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|[^\s']\S*)")


def weaknesses(
    loaded: LoadedSettings, connection: str, environ: Mapping[str, str]
) -> Iterator[Finding]:
    """Weak settings. `connection` is the databroker's, from wherever it came."""
    settings = loaded.settings
    yield from _cookies(settings)
    yield from _provider(settings)
    yield from _storage(settings, connection, environ)
    yield from _inline_secrets(loaded)
    yield from _routes(settings)


def _weak(path: KeyPath, message: str, fix: str) -> Finding:
    return Finding(Severity.WARNING, path, message, fix)


def _cookies(settings: Settings) -> Iterator[Finding]:
    key: KeyPath = ("cookie_same_site",)
    if settings.cookie_same_site is CookieSameSite.STRICT:
        yield _weak(
            key,
            "strict: browsers hold the session back on the way from the identity provider and "
            "from links on other sites, so users have to sign in again",
            "lax",
        )
    if settings.cookie_same_site is CookieSameSite.NONE:
        yield _weak(
            key, "none: pages of other sites may send requests in the user's session", "lax"
        )
    if not settings.cookie_http_only:
        yield _weak(("cookie_http_only",), "scripts can read the session cookie", "true")
    if settings.runtime_flags.get("allow_any_sign_out_redirect_uri"):
        yield _weak(
            ("runtime_flags", "allow_any_sign_out_redirect_uri"),
            "sign-out links may lead to any site",
            "false",
        )


def _provider(settings: Settings) -> Iterator[Finding]:
    parts = urlsplit(settings.idp_provider_url)
    if parts.scheme.lower() == "http" and not _is_local(parts.hostname or ""):
        yield _weak(
            ("idp_provider_url",),
            "is plain http: who stands between can sign in as anybody",
            "https://",
        )
    if not settings.idp_pkce:
        yield _weak(
            ("idp_pkce",),
            "a stolen authorization code can be redeemed without its verifier",
            "true",
        )


def _is_local(host: str) -> bool:
    """True for this machine: loopback, a socket path, or no host at all."""
    name = host.strip("[]").lower().removesuffix(".")
    if not name or name.startswith(("/", "@")) or name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.endswith(".localhost")


def _storage(settings: Settings, connection: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    if settings.databroker_storage_type is not StorageType.POSTGRES or not connection:
        return
    hosts, mode = _postgres(connection, environ)
    remote = [host for host in hosts if not _is_local(host)]
    if remote and mode != STRONG_SSLMODE:
        file = settings.databroker_storage_connection_string_file
        key = "databroker_storage_connection_string" + ("_file" if file else "")
        yield _weak(
            (key,),
            f"sslmode {shorten(mode)} does not prove that {shorten(remote[0])} is the database",
            "sslmode=verify-full, with sslrootcert for a private authority",
        )


def _postgres(connection: str, environ: Mapping[str, str]) -> tuple[list[str], str]:
    """Hosts and sslmode of a libpq URL or keyword string, or of the PG* variables."""
    options: dict[str, str] = {}
    if re.match(r"postgres(?:ql)?://", connection, re.IGNORECASE):
        rest = connection.partition("://")[2]
        authority = re.split(r"[/?]", rest, maxsplit=1)[0].rpartition("@")[2]
        hosts = [re.sub(r":\d*$", "", part) for part in authority.split(",")]
        options["host"] = ",".join(unquote(host) for host in hosts)
        query = parse_qs(rest.partition("?")[2])
        options.update({name: values[-1] for name, values in query.items()})
    else:
        for name, value in _KEYWORD.findall(connection):
            options[name] = re.sub(r"\\(.)", r"\1", value.strip("'"))
    names = options.get("host") or options.get("hostaddr") or environ.get("PGHOST", "")
    mode = options.get("sslmode") or environ.get("PGSSLMODE", "") or "prefer"
    return names.split(","), mode


def _inline_secrets(loaded: LoadedSettings) -> Iterator[Finding]:
    """Secrets in a file that every user of the machine may read."""
    if loaded.file is None or loaded.file_mode is None or not loaded.file_mode & stat.S_IROTH:
        return
    found = [
        path
        for path in _secrets(loaded.settings, ())
        if loaded.origins[path].file == str(loaded.file)
    ]
    if found:
        names = [str(loaded.origins[path].key) for path in found]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        yield _weak(
            found[0],
            f"every user of this machine can read the file (mode "
            f"{stat.S_IMODE(loaded.file_mode):04o}), which holds "
            f"{', '.join(names[:MOST_NAMED])}{more}",
            "chmod 600, or the _file form of the keys",
        )


@functools.cache
def _order(model: type[BaseModel]) -> Mapping[str, int]:
    return {name: place for place, name in enumerate(model.model_fields)}


def _secrets(model: BaseModel, path: KeyPath) -> Iterator[KeyPath]:
    fields = type(model).model_fields
    # A route has a hundred keys and sets a few.
    for name in sorted(model.model_fields_set, key=_order(type(model)).__getitem__):
        here: KeyPath = (*path, fields[name].alias or name)
        value = getattr(model, name)
        if isinstance(value, SecretStr):
            if value:
                yield here
        elif isinstance(value, BaseModel):
            yield from _secrets(value, here)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from _secrets(item, (*here, index))
                elif isinstance(item, SecretStr):
                    yield (*here, index)


def _routes(settings: Settings) -> Iterator[Finding]:
    for top in ("policy", "routes"):
        for index, route in enumerate(getattr(settings, top)):
            if route.tls_skip_verify:
                yield _weak(
                    (top, index, "tls_skip_verify"),
                    "any certificate is accepted: who stands between sees requests and identities",
                    "tls_custom_ca_file with the upstream's authority, or tls_upstream_server_name",
                )
