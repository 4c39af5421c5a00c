"""Where a browser is sent to sign in, and what ties its return to this browser."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode, urlsplit

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.common.clock import Rng
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.session.login_binding import binding_cookie, held_nonce, new_login_binding
from gatehouse.common.session.query_params import (
    ADDITIONAL_HOSTS,
    DEVICE_TYPE,
    IDP_ID,
    LOGIN,
    REDIRECT_URI,
    TRACEPARENT,
    TRACESTATE,
)

SIGN_IN_PATH: Final = "/.pomerium/sign_in"
SESSION_PATH: Final = "/.pomerium/"
WEBAUTHN_PATH: Final = "/.pomerium/webauthn"
DEVICE_PATHS: Final = frozenset({WEBAUTHN_PATH, "/.pomerium/device-enrolled"})

_MAX_URL: Final = 12_000  # of the whole sign-in URL: it must fit in every proxy's header limits
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE: Final = re.compile(r"[\x20-\x7e]{1,512}")
_NOT_IN_URL: Final = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True)
class SignInRedirect:
    """The signed sign-in URL and the cookie that its return will be checked against."""

    url: str = field(repr=False)
    set_cookie: str = field(repr=False)


def sign_in_redirect(
    facts: RequestFacts,
    *,
    authenticate_url: str,
    idp_id: str,
    additional_hosts: tuple[str, ...],
    key: bytes,
    base_cookie_name: str,
    now_s: float,
    rng: Rng,
) -> SignInRedirect:
    """Send the user to authenticate and back to the URL they asked for.

    An URL too long to travel loses its query, then its path: better to arrive at the front door
    than nowhere. Raises InvalidArgumentError when not even that can be signed.
    """
    binding = new_login_binding(rng, held_nonce(facts.cookie_lines, base_cookie_name))
    parameters = {IDP_ID: idp_id, LOGIN: binding.digest}
    if additional_hosts:
        parameters[ADDITIONAL_HOSTS] = ",".join(additional_hosts)
    traceparent = facts.headers.get("traceparent", "")
    if _TRACEPARENT.fullmatch(traceparent):
        parameters[TRACEPARENT] = traceparent
        tracestate = facts.headers.get("tracestate", "")
        if _TRACESTATE.fullmatch(tracestate):
            parameters[TRACESTATE] = tracestate
    base = f"{authenticate_url.rstrip('/')}{SIGN_IN_PATH}"
    signed = ""
    for target in _targets(facts):
        query = urlencode({REDIRECT_URI: target, **parameters})
        if len(base) + len(query) > _MAX_URL:
            continue
        signed = sign_url(f"{base}?{query}", key, now_s=now_s)
        break
    if not signed:
        raise InvalidArgumentError(
            "the request's host is too long to return to",
            public_message="The address of this page is too long.",
        )
    return SignInRedirect(signed, binding_cookie(base_cookie_name, binding))


def device_redirect(facts: RequestFacts, device_type: str, key: bytes, *, now_s: float) -> str:
    """The signed URL of the page on this host that shows a device to us."""
    for target in _targets(facts):
        query = urlencode({DEVICE_TYPE: device_type, REDIRECT_URI: target})
        url = f"https://{facts.host}{WEBAUTHN_PATH}?{query}"
        if len(url) <= _MAX_URL:
            return sign_url(url, key, now_s=now_s)
    raise InvalidArgumentError(
        "the request's host is too long to return to",
        public_message="The address of this page is too long.",
    )


def session_page_url(facts: RequestFacts, *, authenticate_url: str, key: bytes) -> str:
    """The page of authenticate that says who somebody is, and leads back here from a sign-out.

    Without authenticate: the page on this host.
    """
    if not authenticate_url:
        return SESSION_PATH
    base = f"{authenticate_url.rstrip('/')}{SESSION_PATH}"
    if facts.problem:  # of such a request nothing is worth going back to
        return base
    for target in _targets(facts):
        query = urlencode({REDIRECT_URI: target})
        if len(base) + len(query) <= _MAX_URL:
            return sign_url(f"{base}?{query}", key, now_s=facts.now_s)
    return base


def _targets(facts: RequestFacts) -> tuple[str, ...]:
    origin = f"https://{facts.host}"
    full = _escape(facts.url)
    if urlsplit(full).path in {"", "*"}:  # CONNECT and OPTIONS * have no path to return to
        full = f"{origin}/"
    return full, _escape(f"{origin}{facts.raw_path}"), f"{origin}/"


def _escape(url: str) -> str:
    return _NOT_IN_URL.sub(
        lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "replace")), url
    )
