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

# Dynamic metadata of the decision, for the access log: session-id, user.
DECISION_NAMESPACE: Final = "envoy.filters.http.ext_authz"

# A field of it that every allow carries. An answer without it, from whatever is wrong with an
# authorize or stands in its place, lets nothing through: Envoy takes an empty answer for an allow.
DECISION_FIELD: Final = "decision"
DECISION_ALLOW: Final = "allow"

# Another field of it: how long, and on what grounds, the allow may be remembered (design D4); see
# `authorize/core/envelope.py`. Without it, never.
ENVELOPE_FIELD: Final = "envelope"

# Dynamic metadata of a request that a remembered decision allows: {hit: true}. Envoy then leaves
# ext_authz out. Only the script in front of ext_authz sets it.
REMEMBERED_NAMESPACE: Final = "com.gatehouse.remembered"
REMEMBERED_FIELD: Final = "hit"

# Dynamic metadata of a request whose decision the scripts wait for: {number, passed: true}.
AWAITED_NAMESPACE: Final = "com.gatehouse.awaited"
PASSED_FIELD: Final = "passed"

# Dynamic metadata of a request on a route whose streams may stay open: {brief: true} where this one
# does not, so that nobody watches it.
STREAM_NAMESPACE: Final = "com.gatehouse.stream"
BRIEF_FIELD: Final = "brief"

AUTHORIZE_CLUSTER: Final = "pomerium-authorize"
DATABROKER_SERVICE: Final = "pomerium-databroker"
