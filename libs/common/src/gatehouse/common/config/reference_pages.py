"""The pages of docs/reference, written from the model so that they cannot drift from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from gatehouse.common.config import keys
from gatehouse.common.config.choices import ACCESS_LOG_FIELDS, AUTHORIZE_LOG_FIELDS, FLAGS
from gatehouse.common.config.global_checks import (
    MORE_ACCESS_LOG_FIELDS,
    MORE_AUTHORIZE_LOG_FIELDS,
)
from gatehouse.common.config.reference import ROUTE_PREFIX, KeyReference, key_references
from gatehouse.common.config.unavailable import note, unavailable_schemes

SETTINGS_PAGE: Final = "settings.md"
ROUTES_PAGE: Final = "routes.md"

# Each section begins with the key on the left and holds all up to the next one.
SETTINGS_SECTIONS: Final[Mapping[str, str]] = {
    "services": "Services and what they share",
    "idp_provider": "Identity provider and identity",
    "cookie_name": "Cookies",
    "address": "Listeners",
    "codec_type": "HTTP",
    "certificate": "Certificates",
    "circuit_breaker_thresholds": "Defaults of upstreams",
    "log_level": "Observability",
    "databroker_storage_type": "Databroker",
    "ssh_address": "SSH, MCP, recordings",
    "decision_cache": "Beyond Pomerium",
    "runtime_flags": "Flags and routes",
}
ROUTE_SECTIONS: Final[Mapping[str, str]] = {
    "name": "Name",
    "from": "From where to where",
    "path": "Which paths",
    "prefix_rewrite": "Rewriting path and Host",
    "set_request_headers": "Headers",
    "timeout": "Timeouts and upgrades",
    "tls_skip_verify": "TLS to the upstream",
    "load_balancing_policy": "Balancing and health",
    "policy": "Who may use it",
    "idp_client_id": "Identity",
    "kubernetes_service_account_token": "Special upstreams",
}
_LONG_DEFAULTS: Final = frozenset({"access_log_fields", "authorize_log_fields"})

_HEAD: Final = """\
# {title}

This page is written by `gatehouse config reference docs/reference`; a test compares them. The same
as a table in the terminal: `gatehouse config defaults`. As a schema for editors:
`gatehouse config schema`. What is wrong with a file: `gatehouse check --config FILE`."""
_SETTINGS_INTRO: Final = """
## How settings are read

- Environment over file over default. The variable of a key is its name in capitals; an empty
  variable counts as unset.
- The file is YAML, JSON or TOML, told by its extension; `.env` holds `KEY=value` lines. Keys are
  case-insensitive, and `a.b: x` means `a: {b: x}`. A key without a value counts as absent.
- A duration has a unit: `300ms`, `30s`, `5m`, `1h30m`. A bare number is an error, except 0. Only
  the fields of `health_checks` and `outlier_detection` take seconds alone: `10s`, `0.5s`.
- `one of` takes any letters' case, except `log_level`, `proxy_log_level`, `dns_lookup_family` and
  `databroker_storage_type`.
- A list may be written as one text with commas between; a single value counts as a list of one.
- `$VAR`, `${VAR}` and a leading `~` expand in file paths, and nowhere else. An unset variable is
  an error.
- An unknown key is a warning that names the nearest known one. A removed key is an error that says
  what to use instead.
- The file and every file it names are watched. A good change takes effect at once; with a bad one
  the last good configuration stays in force.
"""
_ROUTES_INTRO: Final = """
A route is an element of the list `routes` (or of the older `policy`, whose routes come first). The
first route of a host that matches a path wins, in the order of the file; hosts without `*` win over
those with it. `from` is required, and exactly one of `to`, `redirect` and `response`.
"""


def pages() -> Mapping[str, str]:
    """File name to Markdown text."""
    return {SETTINGS_PAGE: settings_page(), ROUTES_PAGE: routes_page()}


def settings_page() -> str:
    """Every global key."""
    references = [item for item in key_references() if not item.path.startswith(ROUTE_PREFIX)]
    parts = [_HEAD.format(title="Settings"), _SETTINGS_INTRO]
    parts += _sections(references, SETTINGS_SECTIONS, variables=True)
    parts.append(_table("Runtime flags", ("Flag", "Default", "When true"), _flags()))
    parts.append(_log_fields())
    parts.append(_table("Other names", ("Name", "Is read as"), _aliases(keys.ALIASES)))
    parts.append(
        _table(
            "Removed keys",
            ("Key", "Instead"),
            ((f"`{name}`", instead) for name, instead in sorted(keys.REMOVED.items())),
            "These are errors.",
        )
    )
    parts.append(
        _table(
            "Keys without effect",
            ("Key", "Why"),
            ((f"`{name}`", why) for name, why in sorted(keys.OLDER.items())),
            "These are ignored with a warning.",
        )
    )
    return "\n".join(parts)


def routes_page() -> str:
    """Every key of a route."""
    references = [item for item in key_references() if item.path.startswith(ROUTE_PREFIX)]
    parts = [_HEAD.format(title="Routes"), _ROUTES_INTRO]
    if schemes := unavailable_schemes():
        parts.append(f"Not available yet: a `from` of {_words(schemes)}; using it is an error.\n")
    parts += _sections(references, ROUTE_SECTIONS, variables=False)
    parts.append(_table("Other names", ("Name", "Is read as"), _aliases(keys.ROUTE_ALIASES)))
    parts.append(
        _table(
            "Removed keys",
            ("Key", "Instead"),
            ((f"`{name}`", instead) for name, instead in sorted(keys.REMOVED_ROUTE.items())),
            "These are errors under `routes`, warnings under `policy`.",
        )
    )
    return "\n".join(parts)


def _sections(
    references: Sequence[KeyReference], titles: Mapping[str, str], *, variables: bool
) -> Iterator[str]:
    title, rows = "", list[tuple[str, ...]]()
    header = ("Key", "Type", "Default", *(["Variable"] if variables else []), "Meaning")
    for reference in references:
        name = reference.path.removeprefix(ROUTE_PREFIX)
        if name in titles:
            if rows:
                yield _table(title, header, rows)
            title, rows = titles[name], []
        row = (f"`{name}`", reference.type, _default(reference, name))
        remark = note(name, of_route=not variables)
        meaning = f"{reference.meaning}. **{remark}**" if remark else reference.meaning
        rows.append((*row, *([_variable(reference)] if variables else []), meaning))
    yield _table(title, header, rows)


def _default(reference: KeyReference, name: str) -> str:
    if name in _LONG_DEFAULTS:
        return "see Log fields"
    if name == "runtime_flags":
        return "see Runtime flags"
    return f"`{reference.default}`" if reference.default else ""


def _variable(reference: KeyReference) -> str:
    if not reference.variable:
        return ""
    form = f" ({reference.variable_form})" if reference.variable_form else ""
    return f"`{reference.variable}`{form}"


def _flags() -> Iterator[tuple[str, ...]]:
    for name, (default, meaning) in FLAGS.items():
        yield f"`{name}`", f"`{'true' if default else 'false'}`", meaning


def _aliases(names: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    for alias, name in sorted(names.items()):
        yield f"`{alias}`", f"`{name}`"


_ABOUT_LOGS: Final = """\
- The user's request has the id `request-id` in the access log and `check-request-id` in the
  authorize log, whose own `request-id` names the question that Envoy asked about it.
- `body`, `id-token` and `mcp-tool-parameters` are known names and show nothing in this version.
- `query`, `body`, `id-token`, `id-token-claims`, `mcp-tool-parameters` and `headers.<Name>` can
  hold secrets, which is why none of them is there by default. What is known to be a credential is
  never logged: headers such as `cookie` and `authorization`, in the access log also those that a
  route sets for its upstream, and query parameters such as `code` or `token` show `[redacted]`.
  The access log shows a header up to its first `?`."""


def _log_fields() -> str:
    lines = ["## Log fields", ""]
    for key, default, more in (
        ("access_log_fields", ACCESS_LOG_FIELDS, MORE_ACCESS_LOG_FIELDS),
        ("authorize_log_fields", AUTHORIZE_LOG_FIELDS, MORE_AUTHORIZE_LOG_FIELDS),
    ):
        lines += [
            f"- `{key}` by default: {_words(default)}.",
            f"  Further ones: {_words(sorted(more))}, `headers.<Name>`.",
        ]
    lines += ["- An empty list means none.", _ABOUT_LOGS]
    return "\n".join(lines) + "\n"


def _words(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(
    title: str,
    header: Sequence[str],
    rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]],
    text: str = "",
) -> str:
    lines = [f"## {title}", ""]
    if text:
        lines += [text, ""]
    lines += [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
