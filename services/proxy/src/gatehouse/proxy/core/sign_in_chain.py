"""How one sign-in reaches the further hosts that a route depends on (`depends_on`).

A callback URL is honoured only in the browser that holds the host's binding cookie (security R31),
and the further hosts have not given it one yet. So the browser makes two rounds. The route's host
R, already signed in, sends it past each host H1..Hn for a cookie; the digests are collected in the
signed URL and brought back to R, where the binding of R's own sign-in shows that it is still the
same browser. Only then does the session go round, each callback bound to its host's own cookie:

    A -> R -> H1 -> H2 -> R -> H1 -> H2 -> the page that was asked for

R has its session before any other host is asked, so that one that is down costs R nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from gatehouse.common.clock import Rng
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.pages.refusal import RefusedRequestError
from gatehouse.common.session import query_params
from gatehouse.common.session.login_binding import binding_cookie, held_nonce, new_login_binding
from gatehouse.proxy.core.pages_view import PagesView
from gatehouse.proxy.core.sign_in_links import CALLBACK_PATH

MAX_HOSTS: Final = 5

_CARRIED: Final = (
    query_params.REDIRECT_URI,
    query_params.SESSION_ENCRYPTED,
    query_params.LOGIN,
    query_params.TRACEPARENT,
    query_params.TRACESTATE,
)


@dataclass(frozen=True, slots=True)
class Hop:
    """Where the browser goes next."""

    location: str
    set_cookies: tuple[str, ...] = ()


def is_asking_for_cookie(params: Mapping[str, str]) -> bool:
    """Whether a callback URL is one of the first round: it carries no session to this host."""
    return query_params.CHAIN_STEP in params


def give_cookie(
    view: PagesView,
    params: Mapping[str, str],
    cookie_lines: Sequence[str],
    *,
    host: str,
    now_s: float,
    rng: Rng,
) -> Hop:
    """This host's part in the first round. Raises RefusedRequestError (400)."""
    hosts, digests = _hosts(view, params), _split(params, query_params.CHAIN)
    step = len(digests)
    if params[query_params.CHAIN_STEP] != str(step + 1) or hosts[step : step + 1] != (host,):
        raise _refused("this host is not the next one")
    origin = _known(view, params.get(query_params.CHAIN_ORIGIN, ""))
    binding = new_login_binding(rng, held_nonce(cookie_lines, view.cookie_name))
    digests = (*digests, binding.digest)
    is_last = len(digests) == len(hosts)
    query = {
        **_carried(params),
        query_params.ADDITIONAL_HOSTS: ",".join(hosts),
        query_params.CHAIN: ",".join(digests),
        query_params.CHAIN_ORIGIN: origin,
        **({} if is_last else {query_params.CHAIN_STEP: str(len(digests) + 1)}),
    }
    target = origin if is_last else hosts[len(digests)]
    cookie = binding_cookie(view.cookie_name, binding)
    return Hop(_callback(view, target, query, now_s=now_s), (cookie,))


def next_hop(view: PagesView, params: Mapping[str, str], *, host: str, now_s: float) -> Hop | None:
    """Where a browser that has just got its session on `host` goes next; None: to its page.

    Raises RefusedRequestError (400).
    """
    if query_params.ADDITIONAL_HOSTS not in params or not _is_possible(view):
        return None
    hosts, digests = _hosts(view, params), _split(params, query_params.CHAIN)
    if not digests:
        hosts = tuple(one for one in hosts if one != host)
        if not hosts:
            return None
        query = {
            **_carried(params),
            query_params.ADDITIONAL_HOSTS: ",".join(hosts),
            query_params.CHAIN_ORIGIN: host,
            query_params.CHAIN_STEP: "1",
        }
        return Hop(_callback(view, hosts[0], query, now_s=now_s))
    if len(digests) != len(hosts):
        raise _refused("hosts and cookies do not match")
    if params.get(query_params.CHAIN_ORIGIN, host) != host:
        raise _refused("the first round did not begin here")
    query = {
        **_carried(params),
        query_params.LOGIN: digests[0],
        query_params.ADDITIONAL_HOSTS: ",".join(hosts[1:]),
        query_params.CHAIN: ",".join(digests[1:]),
    }
    return Hop(_callback(view, hosts[0], query, now_s=now_s))


def _is_possible(view: PagesView) -> bool:
    """One cookie for a whole domain needs no round, and a strict one would not survive it.

    A browser does not send a SameSite=Strict cookie when another site has sent it along.
    """
    return not view.cookie_domain and view.cookie_same_site.lower() != "strict"


def _hosts(view: PagesView, params: Mapping[str, str]) -> tuple[str, ...]:
    hosts = _split(params, query_params.ADDITIONAL_HOSTS)
    if len(hosts) > MAX_HOSTS:
        raise _refused(f"more than {MAX_HOSTS} hosts")
    return tuple(_known(view, host) for host in hosts)


def _known(view: PagesView, host: str) -> str:
    canonical = view.canonical_host(host)
    if canonical is None:
        raise _refused("a host that is not served here")
    return canonical


def _split(params: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(part for part in params.get(name, "").lower().split(",") if part)


def _carried(params: Mapping[str, str]) -> dict[str, str]:
    return {name: params[name] for name in _CARRIED if params.get(name)}


def _callback(view: PagesView, host: str, query: Mapping[str, str], *, now_s: float) -> str:
    given = {name: value for name, value in query.items() if value}
    return sign_url(
        f"https://{host}{CALLBACK_PATH}?{urlencode(given)}", view.shared_secrets[0], now_s=now_s
    )


def _refused(message: str) -> RefusedRequestError:
    return RefusedRequestError(
        HTTPStatus.BAD_REQUEST,
        "This sign-in cannot go on to the other sites",
        message=f"sign-in chain: {message}",
        reason="sign-in-chain",
        next_steps=("Open the application again from its own address.",),
    )
