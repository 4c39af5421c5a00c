"""Apache with mod_auth_openidc in front of the same upstream, somebody signed in.

It keeps a session in a client cookie or in its own cache, as it does by default, and asks no
policy beyond "is signed in".
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from gatehouse.cli.demo.certificates import ensure_certificates
from tests.bench.envoys import pin
from tests.support.identity import provider_mock
from tests.support.localhost import localhost_client
from tests.support.ports import free_ports
from tests.support.sign_in import sign_in

MODULES = Path("/usr/lib/apache2/modules")
HOST = "app.localhost"
_START_S = 20.0
# mpm_event with as many threads as a proxy needs; the same TLS certificate as Envoy's kind.
_LOADED = (
    *("mpm_event", "authn_core", "authz_core", "authz_user", "ssl", "socache_shmcb"),
    *("proxy", "proxy_http", "auth_openidc"),
)


@dataclass(frozen=True)
class Apache:
    """A running one."""

    port: int
    cookie: str


def has_apache() -> bool:
    """Whether Debian's packages apache2 and libapache2-mod-auth-openidc are there."""
    return _binary() is not None and (MODULES / "mod_auth_openidc.so").exists()


def _binary() -> str | None:
    return shutil.which("apache2", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def configuration(
    directory: Path, port: int, upstream: int, issuer: str, certificate: Path, key: Path
) -> str:
    modules = "\n".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in _LOADED)
    user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
    return f"""{modules}
ServerName {HOST}
ServerRoot {directory}
DefaultRuntimeDir {directory}
Mutex posixsem
PidFile {directory}/apache.pid
ErrorLog {directory}/error.log
LogFormat "%h %l %u %t \\"%r\\" %>s %b" common
Listen 127.0.0.1:{port}
{user}MaxKeepAliveRequests 0
ServerLimit 1
StartServers 1
ThreadsPerChild 64
MaxRequestWorkers 64
SSLSessionCache shmcb:{directory}/ssl_cache(512000)
OIDCProviderMetadataURL {issuer}/.well-known/openid-configuration
OIDCClientID gatehouse
OIDCClientSecret bench
OIDCRedirectURI https://{HOST}:{port}/callback
OIDCCryptoPassphrase {secrets.token_hex(16)}
OIDCSSLValidateServer Off
OIDCProviderTokenEndpointAuth client_secret_post
<VirtualHost 127.0.0.1:{port}>
  ServerName {HOST}
  SSLEngine on
  SSLCertificateFile {certificate}
  SSLCertificateKeyFile {key}
  ProxyPass /callback !
  ProxyPass / http://127.0.0.1:{upstream}/ keepalive=On
  <Location />
    AuthType openid-connect
    Require valid-user
  </Location>
</VirtualHost>
"""


@contextlib.contextmanager
def apache_peer(directory: Path, upstream: int, cpus: Sequence[int]) -> Iterator[Apache]:
    binary = _binary()
    assert binary is not None
    directory.mkdir(parents=True, exist_ok=True)
    certificates = ensure_certificates(directory / "ca", hosts=(HOST,))
    (port,) = free_ports(1)
    with provider_mock() as issuer:
        path = directory / "apache.conf"
        path.write_text(
            configuration(
                directory, port, upstream, issuer, certificates.certificate, certificates.key
            )
        )
        path.chmod(0o600)
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)
        try:
            process = subprocess.Popen(
                [binary, "-f", str(path), "-DFOREGROUND"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.sched_setaffinity(0, before)
        try:
            pin(process.pid, cpus)
            with localhost_client(certificates.authority) as client:
                _wait(client, port, process, directory)
                last = sign_in(client, f"https://{HOST}:{port}/", "u0@example.com")[-1]
                assert last.status_code == 200, (last.status_code, last.text[:500])
                assert last.text == "ok", last.text[:500]
                cookie = "; ".join(
                    f"{found.name}={found.value}"
                    for found in client.cookies.jar
                    if found.name == "mod_auth_openidc_session"
                )
            yield Apache(port, cookie)
        finally:
            process.terminate()
            process.wait(20)


def _wait(
    client: httpx.Client, port: int, process: subprocess.Popen[bytes], directory: Path
) -> None:
    deadline_s = time.monotonic() + _START_S
    while True:
        try:
            client.get(f"https://{HOST}:{port}/")
        except httpx.HTTPError:
            log = directory / "error.log"
            said = log.read_text()[-3000:] if log.exists() else ""
            assert process.poll() is None, said
            assert time.monotonic() < deadline_s, said
            time.sleep(0.1)
        else:
            return
