"""Names shared by the route builder (proxy) and the check handler (authorize)."""

from __future__ import annotations

from typing import Final

INTERNAL: Final = "internal"
ROUTE_ID: Final = "route_id"
ROUTE_CHECKSUM: Final = "route_checksum"

# Dynamic metadata that a Lua filter sets and ext_authz forwards: {presented: bool, chain: str}.
CLIENT_CERTIFICATE_NAMESPACE: Final = "com.pomerium.client-certificate-info"

# Dynamic metadata a Lua filter sets: {assertion: str}, what the client itself sent as
# x-pomerium-jwt-assertion before it was removed.
CLIENT_ASSERTION_NAMESPACE: Final = "com.gatehouse.client-assertion"

# Dynamic metadata of the decision, for the access log: session-id, user, route-id.
DECISION_NAMESPACE: Final = "envoy.filters.http.ext_authz"

AUTHORIZE_CLUSTER: Final = "pomerium-authorize"
DATABROKER_SERVICE: Final = "pomerium-databroker"
