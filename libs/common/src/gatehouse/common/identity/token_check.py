"""How authorize asks authenticate whether a provider's token holds: the wire both sides speak.

A POST with a JSON object of two texts, and an answer that holds the verdict:

    {"accessToken" | "identityToken": ..., "identityProviderId": ...}  ->  {"valid": ..., "claims"}

The question carries the shared-secret tokens of `rpc.credentials` as HTTP headers of the same
names, for the audience AUDIENCE. Anything but 200 with such an answer means that nothing is known.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.jose.compact import parse_json_object

AUDIENCE: Final = "authenticate"
MAX_TOKEN_LENGTH: Final = 32 * 1024
MAX_QUESTION_BYTES: Final = 64 * 1024

_PROVIDER: Final = "identityProviderId"
_MAX_PROVIDER_LENGTH: Final = 512
_TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750 section 2.1: b64token


class TokenKind(enum.Enum):
    """What is asked about; the value is the token's name in the question."""

    ACCESS = "accessToken"
    IDENTITY = "identityToken"

    @property
    def path(self) -> str:
        """Where authenticate answers for this kind."""
        return _PATHS[self]


_PATHS: Final[Mapping[TokenKind, str]] = {
    TokenKind.ACCESS: "/.pomerium/verify-access-token",
    TokenKind.IDENTITY: "/.pomerium/verify-identity-token",
}


@dataclass(frozen=True, slots=True)
class Question:
    """One token and the provider that should have issued it."""

    kind: TokenKind
    token: str = field(repr=False)
    idp_id: str


def is_bearer_token(token: str) -> bool:
    """True for a text that can be a bearer token, at most 32 KiB (RFC 6750 section 2.1)."""
    return len(token) <= MAX_TOKEN_LENGTH and _TOKEN.fullmatch(token) is not None


def encode_question(question: Question) -> bytes:
    """The body of the POST."""
    body = {question.kind.value: question.token, _PROVIDER: question.idp_id}
    return json.dumps(body).encode()


def decode_question(kind: TokenKind, body: bytes) -> Question:
    """Read the body of a POST. InvalidArgumentError when it is not a question of this kind."""
    try:
        fields = parse_json_object(body)
    except ValueError:
        raise InvalidArgumentError("the body is not a JSON object") from None
    token, idp_id = fields.get(kind.value), fields.get(_PROVIDER)
    if not isinstance(token, str) or not isinstance(idp_id, str):
        raise InvalidArgumentError(f"the body needs the texts {kind.value} and {_PROVIDER}")
    if len(idp_id) > _MAX_PROVIDER_LENGTH:
        raise InvalidArgumentError(f"{_PROVIDER} is longer than {_MAX_PROVIDER_LENGTH}")
    return Question(kind, token, idp_id)


def verdict(claims: Mapping[str, Any] | None) -> dict[str, object]:
    """The answer: valid with these claims, or not valid."""
    return {"valid": False} if claims is None else {"valid": True, "claims": dict(claims)}


def read_verdict(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The claims of a valid token, None for one that is not. InvalidArgumentError otherwise."""
    valid, claims = answer.get("valid"), answer.get("claims")
    if valid is False:
        return None
    if valid is not True or not isinstance(claims, dict):
        raise InvalidArgumentError("the answer about a token is neither yes nor no")
    return claims
