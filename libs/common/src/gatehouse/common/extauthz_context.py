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

# A field of it that every allow carries. An answer without it, from whatever is wrong with an
# authorize or stands in its place, lets nothing through: Envoy takes an empty answer for an allow.
DECISION_FIELD: Final = "decision"
DECISION_ALLOW: Final = "allow"

AUTHORIZE_CLUSTER: Final = "pomerium-authorize"
DATABROKER_SERVICE: Final = "pomerium-databroker"
