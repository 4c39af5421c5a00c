"""What Envoy does with a request that a route matches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
from envoy.extensions.filters.http.ext_proc.v3 import ext_proc_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from google.protobuf.struct_pb2 import Struct

from gatehouse.common import extauthz_context
from gatehouse.common.config.decision_inputs import DecisionDeclarations, DecisionInputs
from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings
from gatehouse.common.config.route_model import Redirect
from gatehouse.proxy.core.xds.resource import digest, packed, serialize
from gatehouse.proxy.core.xds.resources.hosts import Host
from gatehouse.proxy.core.xds.resources.lua_scripts import LUA_NAMESPACE, ROUTE_ID
from gatehouse.proxy.core.xds.resources.response_headers import header_options, route_headers
from gatehouse.proxy.core.xds.resources.route_timeouts import (
    add_timeouts,
    free_from_global_limit,
    stays_open,
)
from gatehouse.proxy.core.xds.resources.scalars import boolean, seconds
from gatehouse.proxy.core.xds.resources.upgrades import (
    WEBSOCKET,
    allows_websockets,
    is_kubernetes,
    is_tunnel,
    upgrade_configs,
)
from gatehouse.proxy.errors import SnapshotError

EXT_AUTHZ: Final = "envoy.filters.http.ext_authz"
EXT_PROC: Final = "envoy.filters.http.ext_proc"
_WATCHED: Final = packed(ext_proc_pb2.ExtProcPerRoute(overrides={}))

_ASSERTION_HEADERS: Final = ("x-pomerium-jwt-assertion", "x-pomerium-jwt-assertion-for")
_ALWAYS_REMOVED: Final = ("x-pomerium-reproxy-policy", "x-pomerium-reproxy-policy-hmac")
_FORWARDED_HOST: Final = "x-forwarded-host"
_PATH_CHARACTERS: Final = "/!$&'()*+,;=:@"

_NOT_ALPHANUMERIC: Final = re.compile(r"[^0-9a-z]")

_REDIRECT_CODES: Final = {
    301: route_components_pb2.RedirectAction.MOVED_PERMANENTLY,
    302: route_components_pb2.RedirectAction.FOUND,
    303: route_components_pb2.RedirectAction.SEE_OTHER,
    307: route_components_pb2.RedirectAction.TEMPORARY_REDIRECT,
    308: route_components_pb2.RedirectAction.PERMANENT_REDIRECT,
}


def policy_routes(
    route: ResolvedRoute,
    resolved: ResolvedSettings,
    declarations: DecisionDeclarations,
    cluster: str | None,
    *,
    wildcard: Host | None = None,
    fronts_authenticate: bool = False,
    sets_headers: bool = True,
) -> list[route_components_pb2.Route]:
    """The Envoy routes of one configured route, one or two.

    `wildcard` restricts them to a host pattern (in the catch-all virtual host). On the host of a
    remote authenticate service nothing is decided or cleaned: it looks at its own cookies. Without
    `sets_headers` the virtual host sets the response headers of all its routes.
    """
    plain = _route(
        route, resolved, declarations, cluster, wildcard, fronts_authenticate=fronts_authenticate
    )
    if not sets_headers:
        assert not route.settings.set_response_headers, "these are of one route alone"
        plain.ClearField("response_headers_to_add")
    if not plain.HasField("route"):
        return [plain]
    if is_tunnel(route):
        free_from_global_limit(plain.route, route)
        return [plain]
    if not allows_websockets(route, resolved.settings):
        return [plain]
    # Upgraded streams are free of the global limit, plain requests are not (dataplane, route
    # timeouts). Both headers are asked for, so that a plain request cannot pass for an upgrade.
    upgraded = route_components_pb2.Route()
    upgraded.CopyFrom(plain)
    upgraded.name = f"{plain.name}-websocket"
    upgraded.match.headers.extend(
        [
            _header("upgrade", string_pb2.StringMatcher(exact=WEBSOCKET, ignore_case=True)),
            _header("connection", string_pb2.StringMatcher(contains="upgrade", ignore_case=True)),
        ]
    )
    free_from_global_limit(upgraded.route, route)
    return [upgraded, plain]


def _route(
    route: ResolvedRoute,
    resolved: ResolvedSettings,
    declarations: DecisionDeclarations,
    cluster: str | None,
    wildcard: Host | None,
    *,
    fronts_authenticate: bool,
) -> route_components_pb2.Route:
    options = route.settings
    result = route_components_pb2.Route(
        name=f"policy-{route.id}",
        match=_match(route, wildcard),
        decorator=_decorator("ingress", resolved),
        request_headers_to_remove=_removed_headers(route, resolved),
        response_headers_to_add=header_options(
            route_headers(resolved, options.set_response_headers)
        ),
    )
    if options.redirect is not None:
        result.redirect.CopyFrom(_redirect(options.redirect))
    elif options.response is not None:
        result.direct_response.status = options.response.status
        result.direct_response.body.inline_string = options.response.body
    else:
        if cluster is None:
            raise SnapshotError(f"route {route.id} ({options.from_}) leads nowhere")
        _add_action(result.route, route, resolved, cluster)
    watched = not fronts_authenticate and stays_open(route, resolved.settings)
    if watched:
        result.typed_per_filter_config[EXT_PROC].CopyFrom(_WATCHED)
    if fronts_authenticate:
        _decide(result, None)
    else:
        _decide(
            result,
            {
                extauthz_context.INTERNAL: "false",
                extauthz_context.ROUTE_ID: str(route.id),
                extauthz_context.ROUTE_CHECKSUM: str(route.checksum),
            },
        )
    metadata = _lua_metadata(route, resolved, cleans=not fronts_authenticate)
    if not fronts_authenticate:
        metadata[ROUTE_ID] = str(route.id)
        if watched:
            metadata["stays_open"] = True
    inputs = None if fronts_authenticate else declarations.of(route)
    if inputs is not None:
        metadata["decision"] = _declaration(route, inputs)
    _tell_scripts(result, resolved, metadata)
    return result


def control_plane_route(
    *,
    cluster: str,
    resolved: ResolvedSettings,
    path: str = "",
    tree: str = "",
    decided: bool = True,
    sets_headers: bool = True,
) -> route_components_pb2.Route:
    """A route to a page of our own: `path`, or `tree` and all below it.

    `decided` asks authorize, which lets internal paths pass. Without `sets_headers` the virtual
    host sets the response headers of all its routes.
    """
    match = (
        route_components_pb2.RouteMatch(path=path)
        if path
        else route_components_pb2.RouteMatch(path_separated_prefix=tree)
    )
    result = route_components_pb2.Route(
        name=f"{cluster}-{path or tree}",
        match=match,
        decorator=_decorator("internal", resolved),
        response_headers_to_add=header_options(route_headers(resolved, {})) if sets_headers else (),
    )
    result.route.cluster = cluster
    context = {
        extauthz_context.INTERNAL: "true",
        extauthz_context.ROUTE_ID: "",
        extauthz_context.ROUTE_CHECKSUM: "0",
    }
    _decide(result, context if decided else None)
    _tell_scripts(result, resolved, Struct())
    return result


def grpc_route(cluster: str, resolved: ResolvedSettings) -> route_components_pb2.Route:
    """Every gRPC call of a host to our own gRPC server, for as long as it takes.

    Nobody decides here: the server asks each caller for its service JWT.
    """
    match = route_components_pb2.RouteMatch(
        prefix="/", grpc=route_components_pb2.RouteMatch.GrpcRouteMatchOptions()
    )
    result = route_components_pb2.Route(
        name=cluster, match=match, decorator=_decorator("internal", resolved)
    )
    result.route.cluster = cluster
    result.route.timeout.CopyFrom(seconds(0.0))
    result.route.idle_timeout.CopyFrom(seconds(0.0))
    result.route.max_stream_duration.max_stream_duration.CopyFrom(seconds(0.0))
    _decide(result, None)
    _tell_scripts(result, resolved, Struct())
    return result


def _decorator(kind: str, resolved: ResolvedSettings) -> route_components_pb2.Decorator | None:
    """How spans of the route are called; without tracing it would only cost Envoy time."""
    if resolved.tracing is None:
        return None
    return route_components_pb2.Decorator(
        operation=f"{kind}: ${{method}} ${{host}}${{path}}", propagate=boolean(value=False)
    )


def _decide(result: route_components_pb2.Route, context: Mapping[str, str] | None) -> None:
    """Tell authorize which route this is; None switches it off here, and says so to the scripts."""
    if context is None:
        per_route = ext_authz_pb2.ExtAuthzPerRoute(disabled=True)
        result.metadata.filter_metadata[LUA_NAMESPACE]["undecided"] = True
    else:
        per_route = ext_authz_pb2.ExtAuthzPerRoute(
            check_settings=ext_authz_pb2.CheckSettings(context_extensions=dict(context))
        )
    result.typed_per_filter_config[EXT_AUTHZ].CopyFrom(packed(per_route))


def _match(route: ResolvedRoute, wildcard: Host | None) -> route_components_pb2.RouteMatch:
    options = route.settings
    match = route_components_pb2.RouteMatch()
    if is_tunnel(route):
        match.connect_matcher.SetInParent()
    elif options.regex:
        match.safe_regex.CopyFrom(regex_pb2.RegexMatcher(regex=options.regex))
    elif options.path:
        match.path = options.path
    else:
        match.prefix = options.prefix or "/"
    if wildcard is not None:
        expression = regex_pb2.RegexMatcher(regex=wildcard.authority_regex())
        match.headers.append(_header(":authority", string_pb2.StringMatcher(safe_regex=expression)))
    return match


def _header(name: str, matcher: string_pb2.StringMatcher) -> route_components_pb2.HeaderMatcher:
    return route_components_pb2.HeaderMatcher(name=name, string_match=matcher)


def _add_action(
    action: route_components_pb2.RouteAction,
    route: ResolvedRoute,
    resolved: ResolvedSettings,
    cluster: str,
) -> None:
    action.cluster = cluster
    _add_path_rewrite(action, route)
    _add_host_rewrite(action, route)
    add_timeouts(action, route, resolved.settings)
    action.upgrade_configs.extend(upgrade_configs(route, resolved.settings))
    action.hash_policy.extend(
        [
            route_components_pb2.RouteAction.HashPolicy(
                header=route_components_pb2.RouteAction.HashPolicy.Header(
                    header_name="x-pomerium-routing-key"
                ),
                terminal=True,
            ),
            route_components_pb2.RouteAction.HashPolicy(
                connection_properties=route_components_pb2.RouteAction.HashPolicy.ConnectionProperties(
                    source_ip=True
                ),
                terminal=True,
            ),
        ]
    )


def _add_path_rewrite(action: route_components_pb2.RouteAction, route: ResolvedRoute) -> None:
    options = route.settings
    if is_tunnel(route):
        return
    if options.prefix_rewrite:
        action.prefix_rewrite = options.prefix_rewrite
    elif options.regex_rewrite_pattern:
        action.regex_rewrite.pattern.regex = options.regex_rewrite_pattern
        action.regex_rewrite.substitution = options.regex_rewrite_substitution
    elif route.upstreams and route.upstreams[0].scheme not in {"unix", "https+unix"}:
        # Envoy replaces the matched part, and only that: `to` without a final slash glues. What it
        # puts there goes out as it is, so blanks and the like are escaped (RFC 3986, 3.3).
        action.prefix_rewrite = quote(route.upstreams[0].path, safe=_PATH_CHARACTERS)


def _add_host_rewrite(action: route_components_pb2.RouteAction, route: ResolvedRoute) -> None:
    options = route.settings
    if is_tunnel(route):
        return
    if options.host_rewrite:
        action.host_rewrite_literal = options.host_rewrite
    elif options.host_rewrite_header:
        action.host_rewrite_header = options.host_rewrite_header
    elif options.host_path_regex_rewrite_pattern:
        rewrite = action.host_rewrite_path_regex
        rewrite.pattern.regex = options.host_path_regex_rewrite_pattern
        rewrite.substitution = options.host_path_regex_rewrite_substitution
    elif options.preserve_host_header:
        action.auto_host_rewrite.CopyFrom(boolean(value=False))
        return
    else:
        action.auto_host_rewrite.CopyFrom(boolean(value=True))
    removed = {name.lower() for name in options.remove_request_headers}
    action.append_x_forwarded_host = _FORWARDED_HOST not in removed


def _redirect(redirect: Redirect) -> route_components_pb2.RedirectAction:
    result = route_components_pb2.RedirectAction(strip_query=bool(redirect.strip_query))
    if redirect.https_redirect is not None:
        result.https_redirect = redirect.https_redirect
    elif redirect.scheme_redirect is not None:
        result.scheme_redirect = redirect.scheme_redirect
    if redirect.host_redirect is not None:
        result.host_redirect = redirect.host_redirect
    if redirect.port_redirect is not None:
        result.port_redirect = redirect.port_redirect
    if redirect.path_redirect is not None:
        result.path_redirect = redirect.path_redirect
    elif redirect.prefix_rewrite is not None:
        result.prefix_rewrite = redirect.prefix_rewrite
    code = redirect.response_code
    if code is not None:
        if code not in _REDIRECT_CODES:
            raise SnapshotError(f"unsupported redirect response code {code}")
        result.response_code = _REDIRECT_CODES[code]
    return result


def _removed_headers(route: ResolvedRoute, resolved: ResolvedSettings) -> list[str]:
    options, settings = route.settings, resolved.settings
    removed = {name.lower() for name in options.remove_request_headers} | set(_ALWAYS_REMOVED)
    passes = options.pass_identity_headers
    if passes is None:
        passes = bool(settings.pass_identity_headers)
    if not passes:
        removed.update(_ASSERTION_HEADERS)
        removed.update(name.lower() for name in settings.jwt_claims_headers)
    return sorted(removed)


def _asserted_headers(route: ResolvedRoute, resolved: ResolvedSettings) -> list[str]:
    """What a trailer must not be called: as CGI reads names, and without our own prefix.

    Authorize or the route says what these hold, or that the upstream gets none.
    """
    names = {
        *resolved.settings.jwt_claims_headers,
        *(route.settings.set_request_headers or {}),
        *route.settings.remove_request_headers,
    }
    read_alike = {_NOT_ALPHANUMERIC.sub("-", name.lower()) for name in names}
    return sorted(name for name in read_alike if not name.startswith("x-pomerium-"))


def _tell_scripts(
    result: route_components_pb2.Route, resolved: ResolvedSettings, metadata: Struct
) -> None:
    if resolved.settings.xff_num_trusted_hops > 0:
        metadata["trusts_proxies"] = True
    if metadata.fields or LUA_NAMESPACE in result.metadata.filter_metadata:
        told = result.metadata.filter_metadata[LUA_NAMESPACE]
        told.MergeFrom(metadata)
        # Scripts read metadata with an equal mark only once.
        told["mark"] = digest(serialize(told))


def _declaration(route: ResolvedRoute, inputs: DecisionInputs) -> dict[str, Any]:
    """By what the decisions of a route are found again."""
    flags = {
        "method": inputs.method,
        "path": inputs.path,
        "source": inputs.source,
        "forwarded": inputs.forwarded,
        "certificate": inputs.certificate,
    }
    declared: dict[str, Any] = {name: True for name, value in flags.items() if value}
    if inputs.headers:
        declared["headers"] = list(inputs.headers)
    return {"name": f"{route.id}:{route.checksum}", **declared}


def _lua_metadata(route: ResolvedRoute, resolved: ResolvedSettings, *, cleans: bool) -> Struct:
    metadata = Struct()
    if cleans:
        metadata["remove_pomerium_cookie"] = resolved.settings.cookie_name
        metadata["remove_pomerium_authorization"] = True
    asserted = _asserted_headers(route, resolved)
    if asserted:
        metadata["asserted_headers"] = asserted
    if is_kubernetes(route):
        metadata["remove_impersonate_headers"] = True
    rules = route.settings.rewrite_response_headers
    if rules:
        metadata["rewrite_response_headers"] = [
            {"header": rule.header.lower(), "prefix": rule.prefix, "value": rule.value}
            for rule in rules
        ]
    return metadata
