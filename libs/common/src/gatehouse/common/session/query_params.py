"""The query parameters that travel between the services through the browser."""

from __future__ import annotations

from typing import Final

from gatehouse.common.jose.signed_url import EXPIRY, ISSUED, SIGNATURE

__all__ = [
    "ADDITIONAL_HOSTS",
    "CALLBACK_URI",
    "CHAIN",
    "CHAIN_ORIGIN",
    "CHAIN_STEP",
    "DEVICE_TYPE",
    "EVERYWHERE",
    "EXPIRY",
    "IDP_ID",
    "ISSUED",
    "JWT",
    "LOGIN",
    "PROGRAMMATIC",
    "PROVIDER_ENDED",
    "REDIRECT_URI",
    "SESSION",
    "SESSION_ENCRYPTED",
    "SIGNATURE",
    "SIGN_OUT",
    "TRACEPARENT",
    "TRACESTATE",
]

REDIRECT_URI: Final = "pomerium_redirect_uri"
"""Where the user wanted to go; absolute."""
CALLBACK_URI: Final = "pomerium_callback_uri"
"""The route host's callback, when it is not the one of the redirect URI's host."""
IDP_ID: Final = "pomerium_idp_id"
"""The identity provider configuration the route asks for."""
SESSION_ENCRYPTED: Final = "pomerium_session_encrypted"
"""The sealed session handle on its way from authenticate to a route host."""
SESSION: Final = "pomerium_session"
"""A session handle given by a client in the query."""
JWT: Final = "pomerium_jwt"
"""The session handle on its way to a program that asked for it."""
PROGRAMMATIC: Final = "pomerium_programmatic"
"""`true` for a login on behalf of a program."""
ADDITIONAL_HOSTS: Final = "pomerium_additional_hosts"
"""Comma list of further hosts to sign in to (`depends_on`)."""
TRACEPARENT: Final = "pomerium_traceparent"
TRACESTATE: Final = "pomerium_tracestate"
DEVICE_TYPE: Final = "pomerium_device_type"
LOGIN: Final = "gatehouse_login"
"""Digest of the login binding: ties a callback to the browser that asked (session fixation)."""
SIGN_OUT: Final = "gatehouse_sign_out"
"""Digest of the session that a sign-out link was made for."""
EVERYWHERE: Final = "gatehouse_everywhere"
"""`true`: the sign-out ends all sessions of the person, not this one alone."""
PROVIDER_ENDED: Final = "gatehouse_provider_ended"
"""The session that the provider has ended through the browser (front-channel logout)."""
CHAIN: Final = "gatehouse_chain"
"""Comma list of login digests, one for each of the additional hosts."""
CHAIN_STEP: Final = "gatehouse_chain_step"
"""How many of the additional hosts have given this browser their cookie."""
CHAIN_ORIGIN: Final = "gatehouse_chain_origin"
"""The host whose callback asked the additional hosts for their cookies."""
