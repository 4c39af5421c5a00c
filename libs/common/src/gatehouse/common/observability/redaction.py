"""What must never reach a log line, whoever wrote it (design §6 item 6).

By field name: anything that holds a credential. By shape: tokens inside free text, such as an
exception's message or a URL. A last net: code must not log secrets in the first place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

REDACTED: Final = "[redacted]"
TEXT_LIMIT: Final = 16 * 1024  # characters of one field
DEPTH_LIMIT: Final = 6

# Compared with "-" and "_" taken as the same and letters in lower case.
_SECRET_NAME: Final = re.compile(
    r"""^(?:.*_)?(?:
        authorization | cookies? | password | passwd | secrets? | credentials? | assertion
      | jwt | bearer | private_key | signing_key | shared_key | api_key
      | (?:access|refresh|id|auth|csrf|session|service_account|bearer|csrf|identity|raw)?_?tokens?
      | code_verifier | authorization_code | client_secret | signature
      | connection_string | dsn
    )$""",
    re.VERBOSE,
)
_SECRET_HEADER: Final = re.compile(
    r"^(?:x_pomerium_(?:authorization|jwt_assertion.*|api_key)|(?:proxy_)?authorization|set_cookie)$"
)

_IN_TEXT: Final = (
    # Header lines first: what follows the name is one value, whatever its scheme.
    (
        re.compile(r"(?i)\b((?:set-)?cookie|(?:proxy-)?authorization)(:\s*)[^\r\n]++"),
        rf"\1\2{REDACTED}",
    ),
    # A compact JWT or JWE: base64url of '{"' begins with "eyJ". Possessive and bounded, so that
    # no text makes the search slow.
    (re.compile(r"(?<![A-Za-z0-9_])eyJ[\w-]{8,1024}+(?:\.[\w-]*+){1,4}+"), REDACTED),
    (
        re.compile(r"(?i)\b(bearer|basic) (?=[a-z.~+/=_-]*+[0-9]|[\w.~+/=-]{20})[\w.~+/=-]{8,}+"),
        rf"\1 {REDACTED}",
    ),
    # URL or form parameters that carry credentials.
    (
        re.compile(
            r"(?i)((?:[?&](?:code|state)|\b(?:client_secret|code_verifier|id_token|id_token_hint"
            r"|access_token|refresh_token|pomerium_jwt|pomerium_session[\w]*|pomerium_signature"
            r"|pomerium_identity_profile|gatehouse_login|password|jwt|token))=)[^&\s\"'<>]++"
        ),
        rf"\1{REDACTED}",
    ),
    # user:password@ in a URL.
    (
        re.compile(r"((?<![\w+.-])[a-zA-Z][\w+.-]{0,20}+://[^\s/:@]{0,256}+:)[^\s/@]{1,1024}+@"),
        rf"\1{REDACTED}@",
    ),
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
            re.DOTALL,
        ),
        REDACTED,
    ),
)


def is_secret_name(name: str) -> bool:
    """True for a field, header or parameter name whose value is a credential."""
    plain = name.lower().replace("-", "_")
    return bool(_SECRET_NAME.match(plain) or _SECRET_HEADER.match(plain))


def redact_text(text: str) -> str:
    """`text` without the tokens in it, and not longer than TEXT_LIMIT."""
    if len(text) > TEXT_LIMIT:
        text = text[:TEXT_LIMIT] + "…"
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


def redact(value: object, depth: int = 0) -> Any:
    """`value` as something safe to render: containers are walked, bytes show their size only."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth >= DEPTH_LIMIT:
        return "<nested too deep>"
    if isinstance(value, Mapping):
        return {
            str(name): REDACTED if is_secret_name(str(name)) and item else redact(item, depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item, depth + 1) for item in value]
    return redact_text(str(value))


def redact_event(
    _logger: object, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """The structlog processor: every field but structlog's own."""
    for name in list(event):
        if name in {"_record", "_from_structlog"}:
            continue
        value = event[name]
        event[name] = REDACTED if is_secret_name(name) and value else redact(value)
    return event
