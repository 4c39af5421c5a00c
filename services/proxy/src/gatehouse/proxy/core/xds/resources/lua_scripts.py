"""Which scripts of ours run inside Envoy. No setting ever becomes code."""

from __future__ import annotations

from importlib import resources
from typing import Final

from gatehouse.common.extauthz_context import (
    CLIENT_ASSERTION_NAMESPACE,
    CLIENT_CERTIFICATE_NAMESPACE,
    DECISION_ALLOW,
    DECISION_FIELD,
    DECISION_NAMESPACE,
)

# Route metadata for the scripts, and the name of their filters, by which Envoy looks it up.
LUA_NAMESPACE: Final = "envoy.filters.http.lua"
LOCAL_REPLY_TYPE: Final = "pomerium_local_reply_type"


def _load(name: str) -> str:
    # The scripts are data of this package, read once as it is imported, as its modules are.
    text = resources.files(__package__).joinpath("lua", name).read_text(encoding="utf-8")
    for mark, word in (
        ("@CLIENT_ASSERTION_NAMESPACE@", CLIENT_ASSERTION_NAMESPACE),
        ("@CLIENT_CERTIFICATE_NAMESPACE@", CLIENT_CERTIFICATE_NAMESPACE),
        ("@DECISION_NAMESPACE@", DECISION_NAMESPACE),
        ("@DECISION_FIELD@", DECISION_FIELD),
        ("@DECISION_ALLOW@", DECISION_ALLOW),
    ):
        text = text.replace(mark, word)
    return text


REQUEST_GUARD: Final = _load("request_guard.lua")
CLEAN_UPSTREAM: Final = _load("clean_upstream.lua")
