"""Answers what the demo application may believe about who is asking.

This is what a real application behind Gatehouse does: take X-Pomerium-Jwt-Assertion, verify it with
the published keys, check for whom and by whom it was made, and believe nothing else.
"""

from __future__ import annotations

import asyncio
import enum
import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import jwt

from gatehouse.cli.demo.local_client import local_client, network_client
from gatehouse.common.clock import Clock, SystemClock

HEADER: Final = "x-pomerium-jwt-assertion"

_ALGORITHMS: Final = ("ES256", "RS256")
_LEEWAY_S: Final = 30
_REFETCH_S: Final = 5.0  # an unknown key is asked for at most this often
_MAX_BYTES: Final = 256 * 1024


class Standing(enum.StrEnum):
    """How the assertion fared."""

    VERIFIED = "verified"
    ABSENT = "absent"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Asker:
    """Who is asking, as far as it can be believed."""

    standing: Standing
    reason: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A name to greet with; empty for nobody."""
        return next(
            (str(self.claims[key]) for key in ("name", "email", "sub") if self.claims.get(key)), ""
        )


FetchKeys = Callable[[], Awaitable[Mapping[str, Any]]]


class AssertionVerifier:
    """Verifies assertions with keys that `fetch` returns as a JWKS.

    `audiences` are the host names this application is reached by.
    """

    def __init__(
        self, fetch: FetchKeys, audiences: Collection[str], clock: Clock | None = None
    ) -> None:
        self._fetch = fetch
        self._audiences = frozenset(audiences)
        self._clock = clock or SystemClock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_s: float | None = None
        self._lock = asyncio.Lock()

    async def verify(self, assertion: str | None) -> Asker:
        """Return who is asking. Never raises for what an assertion may hold."""
        if not assertion:
            return Asker(Standing.ABSENT)
        try:
            header = jwt.get_unverified_header(assertion)
        except jwt.InvalidTokenError:
            return Asker(Standing.REFUSED, "it is no JWT")
        if header.get("alg") not in _ALGORITHMS:
            return Asker(Standing.REFUSED, "its algorithm is none of ES256, RS256")
        try:
            key = await self._key(str(header.get("kid", "")))
        except (httpx.HTTPError, ValueError, jwt.PyJWTError) as error:
            return Asker(Standing.REFUSED, f"the keys cannot be had: {type(error).__name__}")
        if key is None or key.algorithm_name != header["alg"]:
            return Asker(Standing.REFUSED, "it was signed with a key that is not published")
        try:
            claims = jwt.decode(
                assertion,
                key,
                algorithms=[key.algorithm_name],
                audience=list(self._audiences),
                leeway=_LEEWAY_S,
                options={"require": ["iss", "aud", "exp", "iat"]},
            )
        except jwt.InvalidTokenError as error:
            return Asker(Standing.REFUSED, str(error))
        audience = claims["aud"]
        if claims["iss"] not in {audience, f"https://{audience}/"}:
            return Asker(Standing.REFUSED, "it was issued for another host than it is meant for")
        return Asker(Standing.VERIFIED, claims=claims)

    async def _key(self, kid: str) -> jwt.PyJWK | None:
        async with self._lock:
            now_s = self._clock.monotonic_s()
            recent = self._fetched_s is not None and now_s - self._fetched_s < _REFETCH_S
            if kid not in self._keys and not recent:
                self._fetched_s = now_s
                found = jwt.PyJWKSet.from_dict(dict(await self._fetch()))
                self._keys = {key.key_id: key for key in found.keys if key.key_id}
            return self._keys.get(kid)


def keys_from(url: str, authority: Path, *, here: bool = True) -> FetchKeys:
    """Return what fetches the key set from a URL of this machine's Gatehouse.

    `here` False: the name in it is looked up, as on a network of containers.
    """
    client_of = local_client if here else network_client

    async def fetch() -> Mapping[str, Any]:
        async with client_of(authority) as client, client.stream("GET", url) as response:
            response.raise_for_status()
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MAX_BYTES:
                    message = f"the key set is larger than {_MAX_BYTES} bytes"
                    raise ValueError(message)
        document = json.loads(body)
        if not isinstance(document, dict):
            message = "the key set is no JSON object"
            raise ValueError(message)  # noqa: TRY004 - it is the document that is wrong
        return document

    return fetch
