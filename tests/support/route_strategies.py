"""Routes as people may write them, many of them wrong: the loader is to tell which ones."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st
from pydantic import BaseModel

from gatehouse.common.config.model import Route
from gatehouse.common.config.shape import Kind, Shape, keys_of

# Control characters and all: what the loader lets through, Envoy must take.
TEXT = st.text(st.characters(codec="utf-8"), max_size=10)
LINE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=10)
NAME = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
HEADER = NAME | st.sampled_from(["Host", "X-Forwarded-Host", "connection", "te", "content-length"])
PATH = st.sampled_from(["/", "/a", "/a/", "/%41", "/ä ö"]) | TEXT.map("/{}".format)
PATTERN = st.sampled_from(
    ["^/a/(.*)$", "(?i)a|b", r"\d+", "(?P<n>a)", "[[:alpha:]]", r"\pL", "(", "(?=a)", "a{1001}"]
)
SUBSTITUTION = st.sampled_from([r"\1", r"\0\\", "", "x"]) | TEXT
SECONDS = st.sampled_from(["0s", "0.000000001s", "0.5s", "30s", "300s", "3153600000s"])
DURATION = st.sampled_from(["0s", "1ns", "1ms", "30s", "876000h"])
WHOLE: Final = (0, 1, 2, 3, 4, 64, 1023, 1024, 65537, 2**23, 2**23 + 1, 2**32 - 1)
PAYLOAD = st.sampled_from([{"text": "50494E47"}, {"text": "5"}, {"binary": "aGk="}, {"binary": ""}])
STATUSES = st.sampled_from(
    [{"start": 200, "end": 300}, {"start": 100, "end": 600}, {"start": 5, "end": 5}]
)
HOSTS = st.sampled_from(
    (
        *("https://a{}.example.com", "https://*.a{}.example.com", "https://a{}-*.example.com"),
        *("https://A{}.example.com:8443", "https://a{}.*.com", "https://a{}_b.example.com."),
    )
)
_SETS: Final = (
    ["http://127.0.0.1:8001"],
    ["http://app.internal"],
    ["https://app.internal", "https://10.0.0.1"],
    ["http://10.0.0.1:1,1", "http://10.0.0.2:1,4294967294"],
    ["http://10.0.0.1", "https://app.internal:8443/base"],
    ["h2c://app.internal:1"],
    ["unix:///run/app.sock"],
    ["https+unix:///run/app.sock"],
    ["http://[::1]:80", "http://localhost:81"],
    ["http://app.internal", "unix:///run/app.sock"],
)
_SPECIAL: Final[dict[str, st.SearchStrategy[Any]]] = {
    "to": st.sampled_from(_SETS),
    **dict.fromkeys(("path", "prefix", "prefix_rewrite", "path_redirect"), PATH),
    **dict.fromkeys(("regex_rewrite_pattern", "host_path_regex_rewrite_pattern"), PATTERN),
    "regex": PATTERN,
    **dict.fromkeys(
        ("regex_rewrite_substitution", "host_path_regex_rewrite_substitution"), SUBSTITUTION
    ),
    "host_rewrite_header": HEADER,
    "header": HEADER,
    "send": PAYLOAD,
    "receive": st.lists(PAYLOAD, max_size=2),
    "expected_statuses": st.lists(STATUSES, max_size=2),
    "retriable_statuses": st.lists(STATUSES, max_size=2),
    "codec_client_type": st.sampled_from(["", "http1", "HTTP2", "HTTP3"]),
    "hash_function": st.sampled_from(["", "xx_hash", "MURMUR_HASH_2", "md5"]),
    "response_code": st.sampled_from([301, 302, 303, 304, 307, 308]),
    "status": st.sampled_from([99, 200, 204, 304, 599]),
    "allow_upgrades": st.lists(
        st.sampled_from(["websocket", "WebSocket", "spdy/3.1", "connect", "tls", "a b", ""]) | TEXT,
        max_size=3,
    ),
}
# What needs files, decides who may use the route, or cannot be served yet.
_LEFT_OUT: Final = frozenset(
    {"from", "redirect", "response", "policy", "sub_policies", "mcp", "upstream_tunnel"}
    | {"session_recording", "kubernetes_service_account_token", "identity_providers"}
    | {"enable_google_cloud_serverless_authentication", "bearer_token_format", "depends_on"}
    | {"allow_public_unauthenticated_access", "allow_any_authenticated_user", "allowed_users"}
    | {"allowed_domains", "allowed_idp_claims", "tls_custom_ca", "tls_client_cert"}
    | {"tls_client_key", "tls_downstream_client_ca", "regex_priority_order"}
)
_KEYS: Final = tuple(
    key
    for key in keys_of(Route)
    if key.name not in _LEFT_OUT and key.shape.kind not in {Kind.PATH, Kind.PATHS}
)
_CHECKERS: Final = ("http_health_check", "tcp_health_check", "grpc_health_check")


def of_key(name: str, shape: Shape) -> st.SearchStrategy[Any]:
    """Values for one key, good and bad."""
    if name in _SPECIAL:
        return _SPECIAL[name]
    if name == "health_checks":
        return st.lists(health_check(), min_size=1, max_size=1)
    if shape.model is not None:
        inner = of_keys(shape.model)
        return st.lists(inner, max_size=2) if shape.kind is Kind.MODELS else inner
    if shape.kind is Kind.CHOICE:
        return st.sampled_from(shape.choices)
    if shape.bounds == (0, 100):
        return st.integers(0, 100)
    if shape.bounds is not None:
        low, high = shape.bounds
        return st.sampled_from([value for value in WHOLE if low <= value <= high])
    return _SIMPLE[shape.kind]


_SIMPLE: Final[dict[Kind, st.SearchStrategy[Any]]] = {
    Kind.TEXT: LINE | TEXT,
    Kind.FLAG: st.booleans(),
    Kind.DURATION: DURATION,
    Kind.SECONDS: SECONDS,
    Kind.LIST: st.lists(LINE | TEXT, max_size=3),
    Kind.TEXT_OR_LIST: st.lists(LINE, max_size=3),
    Kind.HEADERS: st.dictionaries(HEADER, LINE | TEXT, max_size=3),
    Kind.HEADER_NAMES: st.lists(HEADER, max_size=3),
    Kind.SECRET: LINE,
    Kind.ANY: st.dictionaries(NAME, LINE, max_size=2),
}


def of_keys(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Maps with some keys of a model."""
    return st.fixed_dictionaries(
        {}, optional={key.name: of_key(key.name, key.shape) for key in keys_of(model)}
    )


def health_check() -> st.SearchStrategy[dict[str, Any]]:
    """A check with the keys that each one needs, and further ones."""
    model = next(key.shape.model for key in _KEYS if key.name == "health_checks")
    assert model is not None
    keys = {key.name: key for key in keys_of(model)}
    checks = {name: of_key(name, keys.pop(name).shape) for name in _CHECKERS}
    checker = st.sampled_from(_CHECKERS).flatmap(
        lambda name: st.fixed_dictionaries({name: checks[name]})
    )
    required = ("timeout", "interval", "unhealthy_threshold", "healthy_threshold")
    needed = {name: of_key(name, keys.pop(name).shape) for name in required}
    more = {name: of_key(name, key.shape) for name, key in keys.items()}
    return st.tuples(checker, st.fixed_dictionaries(needed), some_of(more, 3)).map(
        lambda parts: {**parts[0], **parts[1], **parts[2]}
    )


def some_of(
    values: dict[str, st.SearchStrategy[Any]], most: int
) -> st.SearchStrategy[dict[str, Any]]:
    """A few of these keys, so that one mistake does not spoil each draw."""
    return st.lists(st.sampled_from(sorted(values)), max_size=most, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: values[name] for name in names})
    )


def routes(*, most_keys: int = 5) -> st.SearchStrategy[dict[str, Any]]:
    """Public routes; `{}` in `from` is to be filled in, so that each has a host of its own."""
    more = some_of({key.name: of_key(key.name, key.shape) for key in _KEYS}, most_keys)
    inner = {key.name: key.shape.model for key in keys_of(Route)}
    redirect, response = inner["redirect"], inner["response"]
    assert redirect is not None
    assert response is not None
    target = st.one_of(
        *[st.fixed_dictionaries({"to": _SPECIAL["to"]})] * 6,
        st.fixed_dictionaries({"redirect": of_keys(redirect)}),
        st.fixed_dictionaries({"response": of_keys(response)}),
    )
    fixed = st.fixed_dictionaries(
        {"from": HOSTS, "allow_public_unauthenticated_access": st.just(value=True)}
    )
    return st.tuples(fixed, more, target).map(
        lambda parts: {**parts[0], **{k: v for k, v in parts[1].items() if k != "to"}, **parts[2]}
    )
