"""Authorize: decides about every request, by policy, from its own copy of the identity records.

RPCs served: envoy.service.auth.v3.Authorization/Check.
Records read: session.Session, user.User, user.ServiceAccount, pomerium.io/DirectoryUser,
pomerium.io/DirectoryGroup, pomerium.device.Credential, pomerium.device.Enrollment, and what
external data sources keep (when policies use `record`). Records written: none.

The life of a check, by file: edge/ext_authz -> core/check_request -> core/credentials ->
edge/replica_feed -> core/identity -> core/evaluator -> core/check_response -> edge/authorize_log.
"""
