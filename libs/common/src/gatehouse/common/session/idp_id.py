"""The name of an identity provider configuration, which binds a session to it.

Only what makes a provider another provider goes in, so that a rotated client secret, other scopes
or other request parameters leave every session valid.
"""

from __future__ import annotations

import hashlib
from typing import Final

from gatehouse.pb import identity_pb2

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LENGTH: Final = 43  # the least n with 62**n >= 2**256


def idp_id(
    *,
    type: str,  # noqa: A002 - the configuration key's and the message field's name
    url: str,
    client_id: str,
    authenticate_service_url: str,
    version: int = 0,
) -> str:
    """43 base-62 digits (0-9a-zA-Z, most significant first) of a SHA-256.

    The hash is over the deterministic protobuf encoding of `pomerium.identity.Provider` with just
    these fields. The layout must never change: it would end every session.
    """
    provider = identity_pb2.Provider(
        type=type,
        url=url,
        client_id=client_id,
        authenticate_service_url=authenticate_service_url,
        version=version,
    )
    digest = hashlib.sha256(provider.SerializeToString(deterministic=True)).digest()
    number = int.from_bytes(digest, "big")
    digits: list[str] = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
