"""Answers how the demo is set up: its ports, its secrets, and the config.yaml that it runs on.

The file is the ordinary configuration of Gatehouse, with comments, to be read and tried out.
It is made anew at each start of the demo; a changed copy runs with `gatehouse serve --config`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gatehouse.cli.demo.certificates import Certificates, ensure_certificates
from gatehouse.cli.demo.provider_grants import Client
from gatehouse.cli.files import write_file
from gatehouse.common.clock import Rng, SystemRng
from gatehouse.common.errors import FailedPreconditionError, InvalidArgumentError

CLIENT_ID: Final = "gatehouse-demo"
APPLICATION_HOSTS: Final = ("app.localhost", "admin.localhost", "public.localhost")
AUTHENTICATE_HOST: Final = "authenticate.localhost"

_SECRET_BYTES: Final = 32
_PORT_VARIABLES: Final = {
    "port": "GATEHOUSE_DEMO_PORT",
    "provider_port": "GATEHOUSE_DEMO_PROVIDER_PORT",
    "upstream_port": "GATEHOUSE_DEMO_UPSTREAM_PORT",
    "grpc_port": "GATEHOUSE_DEMO_GRPC_PORT",
    "health_port": "GATEHOUSE_DEMO_HEALTH_PORT",
}


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the demo's parts listen, all on loopback."""

    port: int = 8443  # HTTPS, for the browser
    provider_port: int = 8444
    upstream_port: int = 8445
    grpc_port: int = 8446
    health_port: int = 8447


@dataclass(frozen=True, slots=True)
class Demo:
    """Everything on disk that the demo needs."""

    state: Path
    ports: Ports
    certificates: Certificates
    config: Path
    client_secret: str = field(repr=False)

    @property
    def authenticate_url(self) -> str:
        """Where Gatehouse itself is reached to sign in."""
        return f"https://{AUTHENTICATE_HOST}:{self.ports.port}"

    @property
    def provider_url(self) -> str:
        """The development identity provider's issuer."""
        return f"http://localhost:{self.ports.provider_port}"

    @property
    def keys_url(self) -> str:
        """Where the sample application finds the keys that verify who is asking."""
        return f"{self.application_url('app.localhost')}/.well-known/pomerium/jwks.json"

    @property
    def client(self) -> Client:
        """Gatehouse as the identity provider knows it."""
        return Client(
            id=CLIENT_ID,
            secret=self.client_secret,
            redirect_uris=frozenset({f"{self.authenticate_url}/oauth2/callback"}),
            post_logout_redirect_uris=frozenset({f"{self.authenticate_url}/.pomerium/signed_out"}),
        )

    def application_url(self, host: str) -> str:
        """Return what to open for one of the hosts."""
        return f"https://{host}:{self.ports.port}"


def ports_from(environ: Mapping[str, str]) -> Ports:
    """Return the ports, moved by GATEHOUSE_DEMO_PORT and its siblings.

    Raises InvalidArgumentError when one is no port or two are the same.
    """
    values = {}
    for name, variable in _PORT_VARIABLES.items():
        text = environ.get(variable, "")
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
            raise InvalidArgumentError(f"{variable}={text!r} is no port; use 1 to 65535")
        values[name] = int(text)
    ports = Ports(**values)
    used = [getattr(ports, name) for name in _PORT_VARIABLES]
    twice = {port for port in used if used.count(port) > 1}
    if twice:
        raise InvalidArgumentError(
            f"port {min(twice)} is given to two parts of the demo; give each its own with "
            f"{', '.join(_PORT_VARIABLES.values())}"
        )
    return ports


def prepare(state: Path, ports: Ports, *, rng: Rng | None = None) -> Demo:
    """Make certificates and secrets where they are missing, write config.yaml, return it all.

    Secrets are kept between starts, so sessions survive a restart of the demo.
    """
    state = state.absolute()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.chmod(0o700)
    certificates = ensure_certificates(state / "certificates")
    source = rng or SystemRng()
    _secret(state / "shared_secret", source)
    _secret(state / "cookie_secret", source)
    demo = Demo(
        state=state,
        ports=ports,
        certificates=certificates,
        config=state / "config.yaml",
        client_secret=_secret(state / "client_secret", source),
    )
    text = render(demo)
    if not demo.config.exists() or demo.config.read_text() != text:
        write_file(demo.config, text.encode(), mode=0o600)
    return demo


def render(demo: Demo) -> str:
    """Return config.yaml."""
    ports, upstream = demo.ports, f"http://127.0.0.1:{demo.ports.upstream_port}"
    return f"""\
# The demo's configuration: what a real one looks like, for names below localhost.
# Written by `gatehouse demo`; changes here are lost at its next start. To try some, copy this file
# and run `gatehouse serve --config COPY` while the demo is stopped.

# Where browsers come in. Every application and the sign-in share this one port.
address: 127.0.0.1:{ports.port}
authenticate_service_url: {_text(demo.authenticate_url)}
certificate_file: {_text(demo.certificates.certificate)}
certificate_key_file: {_text(demo.certificates.key)}

# What the services share to trust one another, and what signs cookies.
shared_secret_file: {_text(demo.state / "shared_secret")}
cookie_secret_file: {_text(demo.state / "cookie_secret")}

# Who people are. This provider is part of the demo; put your own here.
idp_provider: oidc
idp_provider_url: {_text(demo.provider_url)}
idp_client_id: {CLIENT_ID}
idp_client_secret_file: {_text(demo.state / "client_secret")}

# Sessions are kept in a file (SQLite), so they outlive a restart.
databroker_storage_type: file
databroker_storage_connection_string: {_text(f"file://{demo.state / 'databroker'}")}

# For machines only: gRPC between services, and health probes.
grpc_address: 127.0.0.1:{ports.grpc_port}
grpc_insecure: true
health_check_addr: 127.0.0.1:{ports.health_port}
shutdown_delay: 0s               # nobody but this machine asks: Ctrl-C ends it at once

# Besides the signed statement, tell applications these two in headers of their own.
jwt_claims_headers:
  X-Pomerium-Claim-Email: email
  X-Pomerium-Claim-Name: name

# Who may ask why somebody is let in or not: https://app.localhost, path /.pomerium/explain
explain_policy:
  allow:
    or:
      - email: ada@example.com

routes:
  # Anybody who has signed in. The application is told who is asking.
  - from: https://app.localhost
    name: Sample application
    description: Shows who Gatehouse says is asking.
    to: {upstream}
    allow_any_authenticated_user: true
    pass_identity_headers: true
    allow_websockets: true

  # Only Ada. Sign in as somebody else to be refused.
  - from: https://admin.localhost
    name: Administration
    description: For Ada alone.
    to: {upstream}
    pass_identity_headers: true
    policy:
      - allow:
          or:
            - email:
                is: ada@example.com

  # Everybody, without signing in. The application is told nothing.
  - from: https://public.localhost
    name: Public page
    description: Open to everybody, signed in or not.
    to: {upstream}
    allow_public_unauthenticated_access: true
"""


def _secret(path: Path, rng: Rng) -> str:
    """Load or make a secret: standard base64 of 32 bytes."""
    if not path.exists():
        made = base64.b64encode(rng.token_bytes(_SECRET_BYTES))
        write_file(path, made + b"\n", mode=0o600, replace=False)
    path.chmod(0o600)
    text = path.read_text().strip()
    try:
        size = len(base64.b64decode(text, validate=True))
    except ValueError:
        size = 0
    if size != _SECRET_BYTES:
        raise FailedPreconditionError(
            f"{path} should hold {_SECRET_BYTES} bytes in base64; remove it to have it made anew"
        )
    return text


def _text(value: object) -> str:
    """Return a YAML scalar for any text (JSON strings are YAML)."""
    return json.dumps(str(value))
