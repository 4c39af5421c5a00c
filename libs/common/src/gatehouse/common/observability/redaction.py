"""What must never reach a log line, whoever wrote it (design §6 item 6).

By field name: anything that holds a credential. By shape: tokens inside free text, such as an
exception's message or a URL. A last net: code must not log secrets in the first place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any, Final
from urllib.parse import unquote_plus

REDACTED: Final = "[redacted]"
TEXT_LIMIT: Final = 16 * 1024  # characters of one field
DEPTH_LIMIT: Final = 6

# A name that is one of these, or ends in "_" and one, is a credential's. Compared with "-" and "_"
# taken as the same and letters in lower case. The access log's script has the same words.
SECRET_ENDINGS: Final = (
    *("authorization", "cookie", "cookies", "password", "passwd", "secret", "secrets"),
    *("credential", "credentials", "assertion", "jwt", "bearer", "token", "tokens"),
    *("accesstoken", "refreshtoken", "idtoken", "authtoken", "csrftoken", "sessiontoken"),
    *("bearertoken", "identitytoken", "private_key", "signing_key", "shared_key", "api_key"),
    *("apikey", "code_verifier", "authorization_code", "signature", "connection_string", "dsn"),
)
# Query parameters that are credentials too, and beginnings of such names.
SECRET_PARAMETERS: Final = (
    *("auth", "code", "id_token_hint", "key", "pass", "pwd", "samlresponse", "sig", "state"),
    *("ticket", "pomerium_identity_profile", "gatehouse_login"),
)
SECRET_PARAMETER_STEMS: Final = ("pomerium_session",)

_SECRET_NAME: Final = re.compile(
    rf"(?:x_pomerium_jwt_assertion.*|(?:.*_)?(?:{'|'.join(SECRET_ENDINGS)}))", re.DOTALL
)
_TOKEN_OR_QUERY: Final = re.compile(r"eyJ[\w-]+\.|\?|//[^/]*@", re.ASCII)

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
    return _SECRET_NAME.fullmatch(_plain(name)) is not None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def redact_query(query: str) -> str:
    """A query without the values of parameters that are credentials, or that hold one.

    A value that is itself a URL with a query goes too: nobody knows what that one says.
    """
    if len(query) > TEXT_LIMIT:
        query = query[:TEXT_LIMIT].rpartition("&")[0] + "&…"
    return re.sub(r"[^&;]+", lambda match: _redact_pair(match.group()), query)


def _redact_pair(pair: str) -> str:
    name, equals, value = pair.partition("=")
    if not value:
        return REDACTED if _TOKEN_OR_QUERY.search(_decoded(name)) else pair
    plain, text = _plain(_decoded(name)), _decoded(value)
    if (
        _SECRET_NAME.fullmatch(plain)
        or plain in SECRET_PARAMETERS
        or plain.startswith(SECRET_PARAMETER_STEMS)
        or _TOKEN_OR_QUERY.search(text)
    ):
        return f"{name}{equals}{REDACTED}"
    return pair


def _decoded(text: str) -> str:
    return unquote_plus(text, errors="replace")


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
