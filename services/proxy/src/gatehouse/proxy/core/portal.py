"""The routes portal: what it says about each route, what a search finds, and how it is paged.

Which of the routes somebody may open is authorize's to say; nothing here knows policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal, TypeAlias
from urllib.parse import quote, urlsplit

from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings
from gatehouse.common.pages import Link
from gatehouse.common.pages.branding import is_image_url
from gatehouse.common.pages.refusal import RETRY_AFTER_S, RefusedRequestError, bad_request
from gatehouse.common.pages.routes_portal import PortalCard, PortalPage

Kind: TypeAlias = Literal["http", "tcp", "udp", "mcp"]

PORTAL_PATH: Final = "/.pomerium/routes"
PORTAL_API_PATH: Final = "/.pomerium/api/v1/routes"
MAX_ROUTES: Final = 10_000  # that one answer speaks of
PAGE_SIZE: Final = 60
MAX_SEARCH: Final = 200
_WEB: Final = frozenset({"https", "http"})


@dataclass(frozen=True, slots=True)
class PortalEntry:
    """One route, as people know it."""

    id: str
    name: str
    kind: Kind
    from_: str
    description: str
    connect_command: str
    logo_url: str
    host: str  # lower case; "" when no browser can open it
    port: int | None  # None: whichever port the portal itself is reached by
    path: str
    found_by: str = field(repr=False)  # what a search looks through

    def href(self, own_port: str) -> str:
        """Where a browser opens it; `own_port` as in ":8443", "" for the usual one."""
        if not self.host:
            return ""
        port = own_port if self.port is None else f":{self.port}"
        return f"https://{self.host}{port}{quote(self.path, safe='/%:@!$&()*+,;=~-._')}"

    def document(self) -> dict[str, str]:
        """The entry as JSON has it."""
        return {
            "id": self.id,
            "name": self.name,
            "type": self.kind,
            "from": self.from_,
            "description": self.description,
            "connect_command": self.connect_command,
            "logo_url": self.logo_url,
        }


def portal_entries(settings: ResolvedSettings) -> tuple[PortalEntry, ...]:
    """Every route but those of SSH, in order of configuration; the first of equal ids."""
    found: dict[str, PortalEntry] = {}
    for route in settings.routes:
        if route.from_url.scheme != "ssh":
            found.setdefault(route.id, _entry(route))
    return tuple(found.values())


def searched(entries: Iterable[PortalEntry], text: str) -> list[PortalEntry]:
    """The entries that hold every word of `text`, in any of name, address and description."""
    words = text.casefold().split()
    return [entry for entry in entries if all(word in entry.found_by for word in words)]


def search_text(params: Mapping[str, str]) -> str:
    """What is searched for. RefusedRequestError (400) when it is too long."""
    text = params.get("q", "").strip()
    if len(text) > MAX_SEARCH:
        raise bad_request(
            "The search is too long",
            reason="search-size",
            detail=f"At most {MAX_SEARCH} characters are looked for.",
        )
    return text


def portal_page(
    entries: Sequence[PortalEntry],
    *,
    search: str,
    page: str,
    host: str,
    devices: AbstractSet[str],
    is_cut: bool,
) -> PortalPage:
    """One page of what may be opened. A page number that makes no sense is the first or last."""
    count = max(1, -(-len(entries) // PAGE_SIZE))
    number = int(page) if page.isascii() and page.isdigit() and len(page) <= 4 else 1
    number = min(max(number, 1), count)
    own_port = urlsplit(f"//{host}").port
    shown_port = f":{own_port}" if own_port else ""
    first = (number - 1) * PAGE_SIZE
    return PortalPage(
        cards=tuple(
            _card(entry, shown_port, needs_device=entry.id in devices)
            for entry in entries[first : first + PAGE_SIZE]
        ),
        search=search,
        total=len(entries),
        number=number,
        pages=count,
        is_cut=is_cut,
    )


def portal_unavailable(message: str) -> RefusedRequestError:
    """503: authorize did not say which routes may be opened, or not in time."""
    return RefusedRequestError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The list cannot be shown right now",
        message=message,
        reason="authorize-unavailable",
        detail="The service that knows what you may open does not answer. Your account is fine.",
        next_steps=(
            "Wait a few seconds and load the page again.",
            "Applications whose address you know may work: open them directly.",
        ),
        links=(Link("Try again", PORTAL_PATH),),
        headers=(("retry-after", str(RETRY_AFTER_S)),),
    )


def _card(entry: PortalEntry, own_port: str, *, needs_device: bool) -> PortalCard:
    return PortalCard(
        name=entry.name,
        address=_without_scheme(entry.from_) + (entry.path if entry.path != "/" else ""),
        description=entry.description,
        logo_url=entry.logo_url,
        href=entry.href(own_port),
        connect_command=entry.connect_command,
        needs_device=needs_device,
    )


def _entry(route: ResolvedRoute) -> PortalEntry:
    keys, url = route.settings, route.from_url
    path = keys.path or keys.prefix or "/"
    is_web = url.scheme in _WEB and not url.is_wildcard
    name = keys.name or url.host + (path if path != "/" else "")
    return PortalEntry(
        id=route.id,
        name=name,
        kind=_kind(route),
        from_=keys.from_,
        description=keys.description,
        connect_command=_connect_command(route),
        logo_url=keys.logo_url if is_image_url(keys.logo_url) else "",
        host=url.host if is_web else "",
        port=url.port,
        path=path,
        found_by=f"{name}\n{keys.from_}{path}\n{keys.description}".casefold(),
    )


def _kind(route: ResolvedRoute) -> Kind:
    if route.from_url.scheme == "tcp+https":
        return "tcp"
    if route.from_url.scheme == "udp+https":
        return "udp"
    mcp = route.settings.mcp
    return "mcp" if mcp is not None and mcp.server is not None else "http"


def _connect_command(route: ResolvedRoute) -> str:
    kind = _kind(route)
    if kind not in {"tcp", "udp"}:
        return ""
    parts = urlsplit(route.settings.from_)
    target = parts.netloc if parts.path in {"", "/"} else route.settings.from_
    return f"pomerium-cli {kind} {target}"


def _without_scheme(from_: str) -> str:
    return from_.partition("://")[2].rstrip("/")
