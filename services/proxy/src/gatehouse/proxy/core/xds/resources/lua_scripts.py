"""Which scripts of ours run inside Envoy. No setting ever becomes code."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Final

from gatehouse.common.extauthz_context import (
    AWAITED_NAMESPACE,
    BRIEF_FIELD,
    CLIENT_ASSERTION_NAMESPACE,
    CLIENT_CERTIFICATE_NAMESPACE,
    DECISION_ALLOW,
    DECISION_FIELD,
    DECISION_NAMESPACE,
    ENVELOPE_FIELD,
    PASSED_FIELD,
    REMEMBERED_FIELD,
    REMEMBERED_NAMESPACE,
    STREAM_NAMESPACE,
)
from gatehouse.common.observability import redaction
from gatehouse.common.session.query_params import SESSION
from gatehouse.proxy.core.decision_table import (
    BLOCK_BYTES,
    BLOCKS,
    COUNTERS,
    HEADER_WORDS,
    LAYOUT,
    MAGIC,
    WORDS,
)

# Where the script of the access log leaves what the log may show.
ACCESS_LOG_NAMESPACE: Final = "com.gatehouse.access-log"
# Route metadata for the scripts, and the name of their filters, by which Envoy looks it up.
LUA_NAMESPACE: Final = "envoy.filters.http.lua"
LOCAL_REPLY_TYPE: Final = "pomerium_local_reply_type"
# An Accept that needs no note of that type.
PLAINLY_JSON: Final = "application/json"
# Route metadata: the id of the route, for the access log.
ROUTE_ID: Final = "route-id"

# Scripts go in and out of Envoy's functions all the time: compiled code that is left again at once
# costs more than it saves (measured: a tenth of a request).
_INTERPRETED: Final = "jit.off(true, true)\n\n"
_WITHOUT_CACHE: Final = "local cache = nil\n\n"


def _load(name: str) -> str:
    # The scripts are data of this package, read once as it is imported, as its modules are.
    text = resources.files(__package__).joinpath("lua", name).read_text(encoding="utf-8")
    for mark, word in (
        ("@AWAITED_NAMESPACE@", AWAITED_NAMESPACE),
        ("@BRIEF_FIELD@", BRIEF_FIELD),
        ("@STREAM_NAMESPACE@", STREAM_NAMESPACE),
        ("@CLIENT_ASSERTION_NAMESPACE@", CLIENT_ASSERTION_NAMESPACE),
        ("@CLIENT_CERTIFICATE_NAMESPACE@", CLIENT_CERTIFICATE_NAMESPACE),
        ("@DECISION_NAMESPACE@", DECISION_NAMESPACE),
        ("@DECISION_FIELD@", DECISION_FIELD),
        ("@DECISION_ALLOW@", DECISION_ALLOW),
        ("@ACCESS_LOG_NAMESPACE@", ACCESS_LOG_NAMESPACE),
        ("@REDACTED@", redaction.REDACTED),
        ("@PLAINLY_JSON@", PLAINLY_JSON),
        ("@QUERY_LIMIT@", str(redaction.TEXT_LIMIT)),
        ("@SECRET_ENDINGS@", _words(redaction.SECRET_ENDINGS)),
        ("@SECRET_PARAMETERS@", _words(redaction.SECRET_PARAMETERS)),
        ("@SECRET_PARAMETER_STEMS@", _words(redaction.SECRET_PARAMETER_STEMS)),
        ("@ENVELOPE_FIELD@", ENVELOPE_FIELD),
        ("@PASSED_FIELD@", PASSED_FIELD),
        ("@REMEMBERED_FIELD@", REMEMBERED_FIELD),
        ("@REMEMBERED_NAMESPACE@", REMEMBERED_NAMESPACE),
        ("@ROUTE_ID@", ROUTE_ID),
        ("@SESSION_PARAMETER@", SESSION),
        ("@TABLE_MAGIC@", f"{MAGIC:#x}ULL"),
        ("@TABLE_LAYOUT@", str(LAYOUT)),
        ("@TABLE_WORDS@", _numbers(WORDS)),
        ("@HEADER_WORDS@", str(HEADER_WORDS)),
        ("@COUNTER_PLACES@", _numbers({name: place for place, name in enumerate(COUNTERS)})),
        ("@BLOCK_BYTES@", str(BLOCK_BYTES)),
        ("@BLOCKS@", str(BLOCKS)),
    ):
        text = text.replace(mark, word)
    return text


def _numbers(values: Mapping[str, int]) -> str:
    return "{" + ", ".join(f"{name} = {value}" for name, value in values.items()) + "}"


def _words(words: tuple[str, ...]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def _quoted(text: str) -> str:
    """A Lua string of any text: every byte as its number."""
    return '"' + "".join(f"\\{byte:03d}" for byte in text.encode()) + '"'


_RULES: Final = _load("route_rules.lua")
_GUARD: Final = f"{_RULES}\n{_load('request_guard.lua')}"
_CACHE: Final = _load("decision_cache.lua")
REQUEST_GUARD: Final = _INTERPRETED + _WITHOUT_CACHE + _GUARD
LOGGED_QUERY: Final = _load("logged_query.lua")
_CREDENTIALS: Final = _load("credentials.lua")
CLEAN_UPSTREAM: Final = f"{_INTERPRETED}{_RULES}\n{_CREDENTIALS}\n{_load('clean_upstream.lua')}"


def remembering_guard(table_path: str, counters_path: str) -> str:
    """The request guard with the decision cache, which finds its shared memory at these paths."""
    cache = _CACHE.replace("@TABLE_PATH@", _quoted(table_path))
    cache = cache.replace("@COUNTERS_PATH@", _quoted(counters_path))
    return f"{_INTERPRETED}{_CREDENTIALS}\n{cache}\n{_GUARD}"
