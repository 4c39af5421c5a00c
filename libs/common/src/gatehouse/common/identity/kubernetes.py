"""How the Kubernetes cluster that a process runs in is asked about its service-account tokens.

Pods find the API server by two environment variables and a mounted directory
(https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/); it publishes its issuer and
its keys to who shows a service account's token
(https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.identity.errors import IdentityProviderError
from gatehouse.common.identity.transport import ProviderResponse, ProviderTransport

CLUSTER: Final = "kubernetes:///"
"""The issuer in the configuration that means this cluster."""
MOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MAX_FILE: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """Where the API server is, whom to trust for it, and what to show it."""

    url: str
    ca_pem: bytes
    token_file: Path  # renewed under us, so read for each call

    @property
    def discovery_url(self) -> str:
        """Names the cluster's issuer."""
        return f"{self.url}/.well-known/openid-configuration"

    @property
    def keys_url(self) -> str:
        """The keys of its tokens. Its discovery may name another address, not to be reached."""
        return f"{self.url}/openid/v1/jwks"


def cluster_access(environ: Mapping[str, str], mount: Path = MOUNT) -> ClusterAccess:
    """The cluster of this process. InvalidArgumentError when it runs in none."""
    host, port = (environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    if not host or not port.isdecimal():
        raise InvalidArgumentError(
            "this process runs in no Kubernetes cluster: KUBERNETES_SERVICE_HOST and "
            "KUBERNETES_SERVICE_PORT are not set"
        )
    ca, token = mount / "ca.crt", mount / "token"
    try:
        ca_pem = ca.read_bytes()[:_MAX_FILE]
        with token.open("rb"):
            pass
    except OSError as error:
        raise InvalidArgumentError(f"the pod has no service account to ask with: {error}") from None
    return ClusterAccess(f"https://{f'[{host}]' if ':' in host else host}:{port}", ca_pem, token)


class ClusterTransport(ProviderTransport):
    """Shows the service account's token with every request."""

    def __init__(self, http: httpx.AsyncClient, access: ClusterAccess) -> None:
        super().__init__(http)
        self.access = access

    async def get(self, url: str, *, headers: Mapping[str, str] | None = None) -> ProviderResponse:
        """Send GET. Raises IdentityProviderError, also when there is no token to show."""
        assert url.startswith(f"{self.access.url}/"), "the token is for the API server alone"
        try:
            token = await asyncio.to_thread(self.access.token_file.read_bytes)
            authorization = "Bearer " + token.strip().decode("ascii")
        except (OSError, ValueError):
            raise IdentityProviderError(
                f"{self.access.token_file} cannot be read as a token"
            ) from None
        return await super().get(url, headers={**(headers or {}), "Authorization": authorization})
