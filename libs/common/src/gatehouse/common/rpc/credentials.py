"""Who is calling: the shared-secret JWT that every gRPC call carries (spec: databroker §9).

Two metadata keys, both HS256 under the shared secret:

- `jwt`: exactly the claim `exp`, an hour ahead. It says "holds the secret" and nothing else; this
  is the wire contract that peers of the same protocol understand.
- `gatehouse-jwt`: `aud` (the service called), `sub` (the service calling) and `exp`, with a header
  type of its own so that neither token can stand in for the other. Other peers ignore it; where it
  is present the allow-list applies (`allow_list.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gatehouse.common.clock import Clock
from gatehouse.common.errors import FailedPreconditionError, InvalidTokenError, UnauthenticatedError
from gatehouse.common.jose.hs256 import decode_hs256, encode_hs256

JWT_KEY: Final = "jwt"
SERVICE_JWT_KEY: Final = "gatehouse-jwt"
JWT_TYPE: Final = "JWT"
SERVICE_JWT_TYPE: Final = "gatehouse-service+jwt"
LIFETIME_S: Final = 3600
VERIFIED_KEPT: Final = 1024

_PLAIN_CLAIMS: Final = frozenset({"exp"})
_SERVICE_CLAIMS: Final = frozenset({"aud", "sub", "exp"})

Secrets = Callable[[], tuple[bytes, ...]]
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """A peer that holds the shared secret. `subject` is None when it did not say who it is."""

    subject: str | None


class ServiceCredentials:
    """Mints the tokens of one calling service. `secrets` is asked anew for each token."""

    def __init__(self, subject: str, secrets: Secrets, clock: Clock) -> None:
        assert subject
        self.subject = subject
        self._secrets = secrets
        self._clock = clock
        # Tokens made in the same second under the same key are equal byte for byte, so the last
        # one of each kind is kept rather than signed again for every call of that second.
        self._made: dict[str, tuple[tuple[bytes, int], str]] = {}

    def metadata(self, audience: str) -> Metadata:
        """Both tokens, for a call to the service named `audience`.

        Raises FailedPreconditionError when there is no shared secret.
        """
        key, expires_at = self._key(), self._expires_at()
        service_jwt = self._token(
            audience,
            key,
            {"aud": audience, "sub": self.subject, "exp": expires_at},
            SERVICE_JWT_TYPE,
        )
        return ((JWT_KEY, self._plain(key, expires_at)), (SERVICE_JWT_KEY, service_jwt))

    def service_jwt(self) -> str:
        """The plain `jwt` token alone, for Envoy to send; good for an hour."""
        return self._plain(self._key(), self._expires_at())

    def _plain(self, key: bytes, expires_at: int) -> str:
        return self._token("", key, {"exp": expires_at}, JWT_TYPE)

    def _token(self, kind: str, key: bytes, claims: dict[str, Any], typ: str) -> str:
        made_from = (key, claims["exp"])
        made = self._made.get(kind)
        if made is not None and made[0] == made_from:
            return made[1]
        token = encode_hs256(claims, key, typ=typ)
        self._made[kind] = (made_from, token)
        return token

    def _key(self) -> bytes:
        secrets = self._secrets()
        if not secrets or not secrets[0]:
            raise FailedPreconditionError(
                "no shared secret to sign service calls with; set shared_secret",
                reason="no-shared-secret",
            )
        return secrets[0]

    def _expires_at(self) -> int:
        return int(self._clock.now_s()) + LIFETIME_S


class VerifiedTokens:
    """Claims of tokens whose signature and form were found good, by the whole token.

    Callers send the same token for as long as it lives (Envoy for half an hour), and verifying one
    costs more than all else in front of a handler. Expiry is judged at every use, and a change of
    the secrets forgets everything. Bounded.
    """

    __slots__ = ("_claims", "_secrets")

    def __init__(self) -> None:
        self._claims: dict[tuple[str, str], dict[str, Any]] = {}
        self._secrets: tuple[bytes, ...] = ()

    def find(self, token: str, typ: str, secrets: Sequence[bytes]) -> dict[str, Any] | None:
        """What was kept for this token under these secrets."""
        if self._secrets != tuple(secrets):
            self._claims.clear()
            self._secrets = tuple(secrets)
        return self._claims.get((token, typ))

    def keep(self, token: str, typ: str, claims: dict[str, Any]) -> None:
        """Remember good claims."""
        if len(self._claims) >= VERIFIED_KEPT:
            self._claims.clear()
        self._claims[token, typ] = claims


def verify_call(
    metadata: Iterable[tuple[str, str | bytes]],
    secrets: Sequence[bytes],
    audience: str | Collection[str],
    now_s: float,
    verified: VerifiedTokens | None = None,
) -> Caller:
    """The caller behind a call's metadata; any of `secrets` may have signed.

    `audience` is the name of the service called, or several names where any will do. Signatures
    are compared in constant time (by the HMAC verification of PyJWT). Raises UnauthenticatedError:
    "unauthenticated" without a `jwt`, "invalid JWT" with one that does not verify.
    """
    plain, service = [], []
    for name, value in metadata:
        if name == JWT_KEY:
            plain.append(value)
        elif name == SERVICE_JWT_KEY:
            service.append(value)
    if not plain:
        raise UnauthenticatedError("unauthenticated", reason="no-credential")
    if not secrets or not all(secrets):
        raise UnauthenticatedError("invalid JWT", reason="no-shared-secret")
    _claims(plain, secrets, JWT_TYPE, _PLAIN_CLAIMS, now_s, verified)
    if not service:
        return Caller(subject=None)
    claims = _claims(service, secrets, SERVICE_JWT_TYPE, _SERVICE_CLAIMS, now_s, verified)
    audiences = (audience,) if isinstance(audience, str) else tuple(audience)
    subject = claims["sub"]
    if claims["aud"] not in audiences:
        raise _invalid("the gatehouse-jwt is for another service", "wrong-audience")
    if not isinstance(subject, str) or not subject:
        raise _invalid("the gatehouse-jwt names no caller", "bad-claims")
    return Caller(subject=subject)


def _claims(
    values: Sequence[str | bytes],
    secrets: Sequence[bytes],
    typ: str,
    names: frozenset[str],
    now_s: float,
    verified: VerifiedTokens | None,
) -> dict[str, Any]:
    """The claims of the one token in `values`: exactly `names`, not expired."""
    if len(values) != 1 or not isinstance(values[0], str):
        raise _invalid("more than one token, or a binary one", "bad-credential")
    token = values[0]
    claims = verified.find(token, typ, secrets) if verified is not None else None
    if claims is None:
        claims = _decoded(token, secrets, typ, names)
        if verified is not None:
            verified.keep(token, typ, claims)
    expires_at = claims["exp"]
    if now_s >= expires_at:
        raise _invalid(
            f"expired {now_s - expires_at:.0f} s ago; if this lasts, compare the clocks of caller "
            "and called machine",
            "expired",
        )
    return claims


def _decoded(
    token: str, secrets: Sequence[bytes], typ: str, names: frozenset[str]
) -> dict[str, Any]:
    try:
        claims = decode_hs256(token, secrets, typ=typ)
    except InvalidTokenError as error:
        raise _invalid(str(error), "bad-credential") from error
    if claims.keys() != names:
        raise _invalid(f"the claims must be exactly {', '.join(sorted(names))}", "bad-claims")
    expires_at = claims["exp"]
    # Booleans are integers in Python, and neither NaN nor infinity is a time.
    if (
        isinstance(expires_at, bool)
        or not isinstance(expires_at, int | float)
        or not math.isfinite(expires_at)
    ):
        raise _invalid("exp is not a number of seconds", "bad-claims")
    return claims


def _invalid(why: str, reason: str) -> UnauthenticatedError:
    """Peers learn only that it failed; the log learns why."""
    return UnauthenticatedError(f"invalid JWT: {why}", reason=reason, public_message="invalid JWT")
