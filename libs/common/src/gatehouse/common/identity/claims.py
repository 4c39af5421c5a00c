"""How claims of an ID token and of userinfo become one set, and who they say the user is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from gatehouse.common.identity.errors import SUBJECT_CHANGED, IdentityRefusedError
from gatehouse.common.identity.id_token import is_subject
from gatehouse.common.jose.compact import parse_json_object

FlatClaims = dict[str, list[Any]]

TOKEN_CLAIMS: Final = frozenset({
    "iss", "aud", "exp", "iat", "nbf", "jti", "nonce", "azp", "at_hash", "c_hash", "s_hash",
    "auth_time", "sid",
})  # fmt: skip
"""Claims about the token rather than the person; userinfo never replaces them."""

REFRESH_FILTERED: Final = frozenset({"iss", "sub", "exp", "iat"})
"""Claims not taken over into a session on refresh."""

MAX_DEPTH: Final = 16
MAX_EMAIL_LENGTH: Final = 320
MAX_HINT_LENGTH: Final = 2048
MAX_NAME_LENGTH: Final = 200


def merge_claims(
    id_claims: Mapping[str, Any], userinfo: Mapping[str, Any] | None
) -> dict[str, Any]:
    """ID token claims overlaid with userinfo, except for who the user is and token claims.

    Raises IdentityRefusedError when userinfo is about someone else (Core 5.3.2).
    """
    merged = dict(id_claims)
    if userinfo is None:
        return merged
    check_subject(userinfo, id_claims.get("sub"))
    return merged | without(userinfo, TOKEN_CLAIMS | {"sub", "oid"})


def check_subject(userinfo: Mapping[str, Any], subject: object) -> None:
    """Raise IdentityRefusedError unless userinfo's `sub` is there and equals `subject`."""
    if not is_subject(subject) or userinfo.get("sub") != subject:
        raise IdentityRefusedError(
            "userinfo is about another subject than the ID token", reason=SUBJECT_CHANGED
        )


def without(claims: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The claims but for those of these names."""
    return {name: value for name, value in claims.items() if name not in names}


def user_id_of(id_claims: Mapping[str, Any]) -> str:
    """The user id: `oid` where the ID token has one (Microsoft), else `sub`."""
    for name in ("oid", "sub"):
        value = id_claims.get(name)
        if isinstance(value, str) and is_subject(value):
            return value
    raise IdentityRefusedError("ID token names no usable subject", ends_session=False)


def flatten_claims(claims: Mapping[str, Any]) -> FlatClaims:
    """Claims as lists: nested objects join names with `.`, scalars become lists of one.

    `{"a": {"b": 1}}` gives `{"a.b": [1]}`. Where a written-out dotted name meets a nested one,
    the written-out one stays. Objects nested deeper than 16 are left out.
    """
    flat: FlatClaims = {}
    level: list[tuple[str, Mapping[str, Any]]] = [("", claims)]
    for _ in range(MAX_DEPTH):
        deeper: list[tuple[str, Mapping[str, Any]]] = []
        for prefix, members in level:
            for name, value in members.items():
                if isinstance(value, Mapping):
                    deeper.append((f"{prefix}{name}.", value))
                else:
                    flat.setdefault(
                        prefix + name, list(value) if isinstance(value, list) else [value]
                    )
        level = deeper
    return flat


def display_name(claims: Mapping[str, Any]) -> str:
    """The `name` claim, if it is text."""
    value = claims.get("name")
    return value if isinstance(value, str) and value.isprintable() else ""


def name_given_once(hint: str) -> str:
    """The name in the `user` field that Apple's first callback carries; "" if there is none.

    The browser brings it unsigned, so it is good for showing and for nothing else.
    """
    if not hint or len(hint) > MAX_HINT_LENGTH:
        return ""
    try:
        name = parse_json_object(hint.encode()).get("name")
    except ValueError:
        return ""
    if not isinstance(name, dict):
        return ""
    parts = [name.get(part) for part in ("firstName", "lastName")]
    joined = " ".join(part.strip() for part in parts if isinstance(part, str)).strip()
    return joined if len(joined) <= MAX_NAME_LENGTH and joined.isprintable() else ""


def email_address(claims: Mapping[str, Any]) -> str:
    """The `email` claim as given, or "" if it is not one plain address.

    Plain means: exactly one `@` with text on both sides, no white space or control characters.
    Letters keep their case: policies compare them as written.
    """
    value = claims.get("email")
    if not isinstance(value, str) or len(value) > MAX_EMAIL_LENGTH:
        return ""
    local, at, domain = value.partition("@")
    well_formed = at and local and domain and "@" not in domain
    return value if well_formed and value.isprintable() and " " not in value else ""
