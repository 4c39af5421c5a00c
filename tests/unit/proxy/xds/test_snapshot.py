"""The snapshot as a function: same bytes, own references, and the tables of the specification."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from envoy.extensions.clusters.common.dns.v3 import dns_pb2
from envoy.extensions.clusters.dns.v3 import dns_cluster_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
from envoy.extensions.transport_sockets.quic.v3 import quic_transport_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2

from gatehouse.common.config.resolved import ListenAddress, ResolvedSettings
from gatehouse.common.ids import RouteId
from gatehouse.proxy.core.xds.resource import CLUSTER, LISTENER, ROUTE_CONFIGURATION, SECRET
from gatehouse.proxy.core.xds.resources.bootstrap import CONTROL_PLANE_GRPC
from gatehouse.proxy.core.xds.snapshot import build_snapshot
from gatehouse.proxy.errors import SnapshotError
from tests.support.envoy import environment, messages, resolved
from tests.support.golden_settings import (
    CERTIFICATE,
    CONFIGURATIONS,
    KEY,
    golden_environment,
    golden_settings,
)

ENVIRONMENT = environment("/run/gatehouse", system_ca_pem=CERTIFICATE.read_bytes())
TLS = {"certificate_file": str(CERTIFICATE), "certificate_key_file": str(KEY)}


def config(*routes: dict[str, Any], **keys: Any) -> ResolvedSettings:
    return resolved({"address": "127.0.0.1:443", **TLS, **keys, "routes": list(routes)})


def route(**keys: Any) -> dict[str, Any]:
    target = {} if {"redirect", "response"} & keys.keys() else {"to": "http://127.0.0.1:8001"}
    return {
        "from": "https://app.example.com",
        "allow_public_unauthenticated_access": True,
        **target,
        **keys,
    }


def virtual_hosts(settings: ResolvedSettings) -> dict[str, Any]:
    found = messages(build_snapshot(settings, ENVIRONMENT))[ROUTE_CONFIGURATION][0]
    return {each.name: each for each in found.virtual_hosts}


def policy_routes(settings: ResolvedSettings, host: str = "app.example.com") -> list[Any]:
    return [each for each in virtual_hosts(settings)[host].routes if "policy-" in each.name]


def clusters(settings: ResolvedSettings) -> dict[str, Any]:
    found = messages(build_snapshot(settings, ENVIRONMENT))[CLUSTER]
    return {each.name: each for each in found}


def _shuffled(settings: ResolvedSettings, seed: int) -> ResolvedSettings:
    """The same settings with every map filled in another order."""

    def shuffle(mapping: Any) -> Any:
        return dict(sorted(mapping.items(), key=lambda item: hash((seed, item[0]))))

    keys = settings.settings
    update = {
        "jwt_claims_headers": shuffle(keys.jwt_claims_headers),
        "runtime_flags": shuffle(keys.runtime_flags),
    }
    if keys.set_response_headers:
        update["set_response_headers"] = shuffle(keys.set_response_headers)
    routes = tuple(
        replace(
            each,
            settings=each.settings.model_copy(
                update={
                    "set_response_headers": shuffle(each.settings.set_response_headers),
                    "set_request_headers": shuffle(each.settings.set_request_headers),
                }
            ),
        )
        for each in settings.routes
    )
    return replace(settings, settings=keys.model_copy(update=update), routes=routes)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_equal_settings_give_equal_bytes_however_maps_were_filled(name: str):
    settings = golden_settings(name)
    first = build_snapshot(settings, golden_environment())
    for seed in range(3):
        again = build_snapshot(_shuffled(settings, seed), golden_environment())
        assert again == first


def test_a_changed_route_changes_the_route_configuration_alone():
    one = build_snapshot(config(route()), ENVIRONMENT)
    two = build_snapshot(config(route(prefix_rewrite="/x")), ENVIRONMENT)
    assert one.version != two.version
    assert one.resources[CLUSTER] == two.resources[CLUSTER]
    assert one.resources[LISTENER] == two.resources[LISTENER]
    assert one.resources[ROUTE_CONFIGURATION] != two.resources[ROUTE_CONFIGURATION]


def test_an_edited_policy_changes_the_checksum_of_its_route_alone():
    members = {"allow_public_unauthenticated_access": False, "allowed_users": ["a@example.com"]}
    before, after = config(route(name="one")), config(route(name="one", **members))
    one, two = build_snapshot(before, ENVIRONMENT), build_snapshot(after, ENVIRONMENT)
    for kind in one.resources.keys() - {ROUTE_CONFIGURATION}:
        assert one.resources[kind] == two.resources[kind]
    (old,), (new,) = policy_routes(before), policy_routes(after)
    assert old != new
    for found in (old, new):
        # What scripts remember decisions by holds the checksum, too.
        found.ClearField("typed_per_filter_config")
        found.ClearField("metadata")
    assert old == new


def test_a_new_service_token_changes_nothing_but_itself():
    settings = config(route())
    one = build_snapshot(settings, ENVIRONMENT)
    two = build_snapshot(settings, replace(ENVIRONMENT, authorize_jwt="other"))
    changed = [kind for kind in one.resources if one.resources[kind] != two.resources[kind]]
    assert changed == [SECRET]


def test_a_rotated_certificate_is_another_file_and_so_another_listener():
    settings = config(route())
    (pair,) = settings.certificates
    rotated = replace(pair, certificate_pem=pair.certificate_pem + b"\n")
    one = build_snapshot(settings, ENVIRONMENT)
    two = build_snapshot(replace(settings, certificates=(rotated,)), ENVIRONMENT)
    assert one.resources[LISTENER] != two.resources[LISTENER]
    assert one.files.keys() != two.files.keys()


def test_every_tcp_listener_has_reuse_port_and_the_buffer_limit():
    settings = config(
        route(),
        codec_type="http3",
        http_redirect_addr=":80",
        envoy_admin_address="127.0.0.1:9901",
    )
    found = messages(build_snapshot(settings, ENVIRONMENT))[LISTENER]
    assert [each.name for each in found] == [
        "https-ingress",
        "quic-ingress",
        "http-ingress",
        "envoy-admin",
    ]
    for each in found:
        assert each.enable_reuse_port.value
        assert each.per_connection_buffer_limit_bytes.value == 32768


def test_where_ports_cannot_be_shared_http3_shares_its_own_all_the_same():
    settings = config(route(), codec_type="http3", http_redirect_addr=":80")
    elsewhere = replace(ENVIRONMENT, reuse_port=False)
    found = messages(build_snapshot(settings, elsewhere))[LISTENER]
    shares = {each.name: each.enable_reuse_port.value for each in found}
    assert shares == {"https-ingress": False, "quic-ingress": True, "http-ingress": False}


def test_proxy_protocol_is_for_people_over_tcp_alone():
    settings = config(
        route(),
        use_proxy_protocol=True,
        codec_type="http3",
        http_redirect_addr=":80",
        metrics_address="127.0.0.1:9902",
        envoy_admin_address="127.0.0.1:9901",
    )
    found = messages(build_snapshot(settings, ENVIRONMENT))[LISTENER]
    first = {
        each.name.partition("-ingress-")[0]: [one.name for one in each.listener_filters]
        for each in found
    }
    proxied, tls = "envoy.filters.listener.proxy_protocol", "envoy.filters.listener.tls_inspector"
    assert first == {
        "https-ingress": [proxied, tls],
        "quic-ingress": [],
        "http-ingress": [proxied],
        "metrics": [],
        "envoy-admin": [],
    }


def test_the_redirect_has_another_name_where_the_main_listener_is_plain():
    settings = config(
        {**route(), "from": "http://app.example.com"},
        insecure_server=True,
        http_redirect_addr=":8080",
    )
    found = messages(build_snapshot(settings, ENVIRONMENT))[LISTENER]
    assert {each.name for each in found} == {"http-ingress", "http-redirect-ingress"}


def addresses(settings: ResolvedSettings, *, ipv6: bool) -> list[str]:
    built = build_snapshot(settings, replace(ENVIRONMENT, ipv6=ipv6))
    listener = messages(built)[LISTENER][0]
    found = [listener.address, *(each.address for each in listener.additional_addresses)]
    return [each.socket_address.address for each in found]


def test_an_empty_host_binds_every_address_the_machine_has():
    settings = replace(config(route()), address=ListenAddress("", 443))
    assert addresses(settings, ipv6=True) == ["::", "0.0.0.0"]
    assert addresses(settings, ipv6=False) == ["0.0.0.0"]
    mapped = replace(settings, address=ListenAddress("::ffff:10.0.0.1", 443))
    assert addresses(mapped, ipv6=True) == ["::ffff:10.0.0.1", "10.0.0.1"]
    with pytest.raises(SnapshotError, match="not an IP address"):
        addresses(replace(settings, address=ListenAddress("host.internal", 443)), ipv6=True)


KUBERNETES = {"kubernetes_service_account_token": "token"}
# (route keys, timeout, idle timeout): dataplane, route timeouts; routes, timeouts
TIMEOUTS = [
    ({}, 30, None),
    ({"timeout": "10s"}, 10, None),
    ({"timeout": "0s"}, 0, None),
    ({"idle_timeout": "5s"}, 0, 5),
    ({"idle_timeout": "0s"}, 0, 0),
    ({"timeout": "0s", "idle_timeout": "0s"}, 0, 0),
    ({"timeout": "7s", "idle_timeout": "5s"}, 7, 5),
    ({"allow_websockets": True}, 0, 0),
    ({"allow_spdy": True}, 30, None),
    ({"allow_websockets": True, "timeout": "9s", "idle_timeout": "3s"}, 9, 3),
    ({"timeout": "1h", "idle_timeout": "1h"}, 60, 300),
    (KUBERNETES, 0, 0),
    ({**KUBERNETES, "timeout": "9s", "idle_timeout": "3s"}, 9, 3),
]


@pytest.mark.parametrize(("keys", "timeout_s", "idle_s"), TIMEOUTS)
def test_route_timeouts(keys: dict[str, Any], timeout_s: int, idle_s: int | None):
    for each in policy_routes(config(route(**keys), timeout_write="60s")):
        assert each.route.timeout.seconds == timeout_s
        assert each.route.HasField("idle_timeout") == (idle_s is not None)
        assert each.route.idle_timeout.seconds == (idle_s or 0)


def test_websocket_routes_have_a_route_of_their_own_for_upgrades():
    upgraded, plain = policy_routes(config(route(allow_websockets=True, timeout="20s")))
    assert upgraded.route.max_stream_duration.max_stream_duration.seconds == 20
    assert not plain.route.HasField("max_stream_duration")
    assert [each.name for each in upgraded.match.headers] == ["upgrade", "connection"]
    assert not plain.match.headers
    assert upgraded.typed_per_filter_config == plain.typed_per_filter_config


def test_websockets_force_http1_upstream_and_others_negotiate():
    def options(**keys: Any) -> bytes:
        (name,) = {each.route.cluster for each in policy_routes(config(route(**keys)))}
        (value,) = clusters(config(route(**keys)))[name].typed_extension_protocol_options.values()
        return bytes(value.value)

    http1 = options()
    assert options(to="https://10.0.0.1", allow_websockets=True) == http1
    assert options(to="https://10.0.0.1") not in {http1, options(to="h2c://10.0.0.1")}
    assert options(to=["h2c://10.0.0.1", "http://10.0.0.2"]) == http1


def test_unnamed_routes_with_equal_upstreams_share_a_cluster_and_named_ones_do_not():
    settings = config(
        route(prefix="/a"),
        route(prefix="/b", timeout="5s"),
        route(prefix="/c", to="http://127.0.0.1:8002"),
        route(prefix="/d", name="mine"),
    )
    names = [each.route.cluster for each in policy_routes(settings)]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert names[3] == f"mine-{settings.routes[3].id}"
    assert clusters(settings)[names[3]].alt_stat_name == "mine"


def test_adding_or_removing_a_sharing_route_leaves_the_shared_cluster_alone():
    """A cluster that goes takes the open connections of all its routes with it."""
    both = build_snapshot(config(route(prefix="/a"), route(prefix="/b")), ENVIRONMENT)
    one = build_snapshot(config(route(prefix="/b")), ENVIRONMENT)
    assert both.resources[CLUSTER] == one.resources[CLUSTER]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_inserted_route_renames_nothing_that_was_there(place: int):
    """Statistics, declared decisions and open streams are known by these names."""
    written = [
        route(prefix="/a"),
        route(prefix="/b", name="mine"),
        route(prefix="/c", to="http://127.0.0.1:8002"),
    ]
    more = [*written[:place], route(prefix="/new", to="http://127.0.0.1:8003"), *written[place:]]
    before, after = config(*written), config(*more)
    kept = [each for each in policy_routes(after) if each.match.prefix != "/new"]
    assert kept == policy_routes(before)
    one, two = build_snapshot(before, ENVIRONMENT), build_snapshot(after, ENVIRONMENT)
    assert one.resources[LISTENER] == two.resources[LISTENER]
    known = one.resources[CLUSTER]
    assert {name: two.resources[CLUSTER][name] for name in known} == known
    assert len(two.resources[CLUSTER]) == len(known) + 1


def test_r57_http3_takes_no_early_data():
    """What is sent before the handshake is over can be sent again by anybody who saw it."""
    found = messages(build_snapshot(config(route(), codec_type="http3"), ENVIRONMENT))[LISTENER]
    (quic,) = (each for each in found if each.name == "quic-ingress")
    for chain in quic.filter_chains:
        transport = quic_transport_pb2.QuicDownstreamTransport()
        assert chain.transport_socket.typed_config.Unpack(transport)
        assert transport.HasField("enable_early_data")
        assert not transport.enable_early_data.value


def test_our_own_paths_come_first_on_every_host_and_probes_are_not_decided():
    found = virtual_hosts(config(route(), route(**{"from": "https://*.w.example.com"})))
    assert list(found)[-1] == "catch-all"
    for name in ("app.example.com", "catch-all"):
        first = found[name].routes[:4]
        assert [(each.match.path, each.match.path_separated_prefix) for each in first] == [
            ("/ping", ""),
            ("/healthz", ""),
            ("", "/.pomerium"),
            ("", "/.well-known/pomerium"),
        ]
        disabled = [
            b"\x08\x01" in bytes(each.typed_per_filter_config["envoy.filters.http.ext_authz"].value)
            for each in first
        ]
        assert disabled == [True, True, False, False]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_route_is_undecided_for_the_scripts_exactly_where_nobody_is_asked(name: str):
    """And every route has a name: one without would pass for no route at all."""
    for host in virtual_hosts(golden_settings(name)).values():
        for each in host.routes:
            assert each.name
            per_route = ext_authz_pb2.ExtAuthzPerRoute()
            assert each.typed_per_filter_config["envoy.filters.http.ext_authz"].Unpack(per_route)
            told = each.metadata.filter_metadata["envoy.filters.http.lua"]
            assert (dict(told).get("undecided") is True) == per_route.disabled


def test_scripts_know_whether_a_hop_in_front_is_trusted():
    for hops, told in ((0, None), (1, True)):
        for host in virtual_hosts(config(route(), xff_num_trusted_hops=hops)).values():
            for each in host.routes:
                metadata = each.metadata.filter_metadata["envoy.filters.http.lua"]
                assert dict(metadata).get("trusts_proxies") is told


def test_the_authenticate_host_leads_to_the_service_beside_us():
    found = virtual_hosts(config(route()))["authenticate.example.com"]
    where = {
        each.match.path or each.match.path_separated_prefix or each.match.prefix: each.route.cluster
        for each in found.routes
    }
    assert where["/ping"] == "pomerium-control-plane-http"
    assert {where[path] for path in ("/", "/oauth2/callback", "/.pomerium")} == {
        "pomerium-authenticate"
    }


def test_a_proxy_before_a_remote_authenticate_leaves_its_host_alone():
    settings = config(
        route(**{"from": "https://authenticate.example.com"}),
        route(),
        services="proxy",
        authorize_service_url="http://127.0.0.1:5443",
    )
    found = virtual_hosts(settings)
    (only,) = found["authenticate.example.com"].routes
    assert only.name.startswith("policy-")
    value = bytes(only.typed_per_filter_config["envoy.filters.http.ext_authz"].value)
    assert value == b"\x08\x01"  # disabled: true
    # Nobody decides, and nothing is cleaned.
    told = dict(only.metadata.filter_metadata["envoy.filters.http.lua"])
    assert told == {"undecided": True, "mark": told["mark"]}
    assert "pomerium-authenticate" not in clusters(settings)


def test_a_name_that_clients_ask_tls_for_is_a_host():
    settings = config(route(tls_downstream_server_name="Certificate.Example.COM"))
    found = virtual_hosts(settings)["certificate.example.com"]
    assert list(found.domains) == ["certificate.example.com", "certificate.example.com:*"]
    assert not [each.name for each in found.routes if each.name.startswith("policy-")]


@pytest.mark.parametrize(
    ("override", "sni", "exact", "pattern"),
    [
        ("", "authorize.internal", "authorize.internal", ""),
        ("z.example.com", "z.example.com", "z.example.com", ""),
        ("*.example.com", "example.example.com", "", r"^.*\.example\.com$"),
    ],
)
def test_authorize_must_prove_the_name_of_its_url_or_another_one(
    override: str, sni: str, exact: str, pattern: str
):
    settings = config(
        route(),
        services="proxy",
        authorize_service_url="https://authorize.internal:5443",
        override_certificate_name=override,
    )
    tls = tls_pb2.UpstreamTlsContext()
    assert clusters(settings)["pomerium-authorize"].transport_socket.typed_config.Unpack(tls)
    assert tls.sni == sni
    assert list(tls.common_tls_context.alpn_protocols) == ["h2", "http/1.1"]
    validation = tls.common_tls_context.combined_validation_context
    (name,) = validation.default_validation_context.match_typed_subject_alt_names
    assert (name.matcher.exact, name.matcher.safe_regex.regex) == (exact, pattern)


def test_ports_of_hosts():
    found = virtual_hosts(
        config(
            route(),
            route(**{"from": "https://app.example.com:8443"}),
            route(**{"from": "https://b.example.com:443"}),
        )
    )
    assert list(found["app.example.com"].domains) == ["app.example.com", "app.example.com:*"]
    assert list(found["app.example.com:8443"].domains) == ["app.example.com:8443"]
    assert list(found["b.example.com"].domains) == ["b.example.com", "b.example.com:*"]
    off = virtual_hosts(config(route(), runtime_flags={"match_any_incoming_port": False}))
    assert list(off["app.example.com"].domains) == ["app.example.com", "app.example.com:443"]


def response_headers(settings: ResolvedSettings, name: str = "", at: int = 0) -> dict[str, str]:
    """Of one route, or the configured one at a place: its own, or its virtual host's, never some
    of each."""
    host = virtual_hosts(settings)["app.example.com"]
    name = name or f"policy-{settings.routes[at].id}"
    (only,) = [each for each in host.routes if each.name == name]
    assert not (only.response_headers_to_add and host.response_headers_to_add)
    found = only.response_headers_to_add or host.response_headers_to_add
    return {each.header.key: each.header.value for each in found}


def test_a_route_with_response_headers_of_its_own_leaves_those_of_its_neighbours():
    routes = (route(set_response_headers={"disable": "true"}), route(prefix="/b"))
    settings = config(*routes, set_response_headers={"X-A": "1"})
    assert response_headers(settings) == {}
    assert response_headers(settings, at=1) == {"x-a": "1"}
    assert response_headers(settings, "pomerium-control-plane-http-/ping") == {"x-a": "1"}


def test_response_headers():
    default = response_headers(config(route()))
    assert list(default) == ["strict-transport-security", "x-frame-options", "x-xss-protection"]
    bare = replace(config(route()), certificates=())
    bare = replace(bare, fallback_certificate=config(route()).certificates[0])
    assert "strict-transport-security" not in response_headers(bare)
    (pair,) = config(route()).certificates
    derived = replace(bare, certificates=(replace(pair, source="tls_derive"),))
    assert "strict-transport-security" not in response_headers(derived)
    staging = response_headers(config(route(), autocert_use_staging=True))
    assert list(staging) == ["x-frame-options", "x-xss-protection"]
    custom = {"X-A": "1", "X-B": "2"}
    merged = config(route(set_response_headers={"X-B": "3"}), set_response_headers=custom)
    assert response_headers(merged) == {"x-a": "1", "x-b": "3"}
    off = config(route(set_response_headers={"X-B": "50%"}), set_response_headers={"disable": "y"})
    assert response_headers(off) == {"x-b": "50%%"}
    assert response_headers(config(route(set_response_headers={"disable": "true"}))) == {}


def removed(settings: ResolvedSettings) -> list[str]:
    (only,) = policy_routes(settings)
    return list(only.request_headers_to_remove)


def test_identity_headers_are_removed_unless_they_are_passed():
    claims = {"jwt_claims_headers": {"X-Email": "email"}}
    always = ["x-pomerium-reproxy-policy", "x-pomerium-reproxy-policy-hmac"]
    stripped = ["x-email", "x-pomerium-jwt-assertion", "x-pomerium-jwt-assertion-for", *always]
    assert removed(config(route(), **claims)) == stripped
    assert removed(config(route(pass_identity_headers=True), **claims)) == always
    assert removed(config(route(), pass_identity_headers=True, **claims)) == always
    mixed = config(route(pass_identity_headers=False), pass_identity_headers=True, **claims)
    assert removed(mixed) == stripped


def test_without_any_certificate_or_authority_nothing_is_built():
    settings = replace(config(route()), certificates=(), fallback_certificate=None)
    with pytest.raises(SnapshotError, match="no certificate"):
        build_snapshot(settings, ENVIRONMENT)
    secure = config(route(to="https://upstream.internal"))
    with pytest.raises(SnapshotError, match="certificate_authority_file"):
        build_snapshot(secure, replace(ENVIRONMENT, system_ca_pem=b""))


def test_bad_resolvers_are_named():
    settings = config(route(to="http://name.internal"))
    keys = settings.settings.model_copy(update={"dns_resolvers": ("udp://name:53",)})
    with pytest.raises(SnapshotError, match="udp://name:53"):
        build_snapshot(replace(settings, settings=keys), ENVIRONMENT)


def test_two_routes_of_one_name_and_id_cannot_be_built():
    settings = config(route(name="same", prefix="/a"), route(name="same", prefix="/b"))
    one, two = settings.routes
    # As from a databroker: same id, other upstream.
    clash = replace(two, id=one.id, upstreams=(replace(two.upstreams[0], port=9),))
    with pytest.raises(SnapshotError, match=f"same-{one.id} is not unique"):
        build_snapshot(replace(settings, routes=(one, clash)), ENVIRONMENT)
    same = replace(two, id=one.id)
    build_snapshot(replace(settings, routes=(one, same)), ENVIRONMENT)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("pomerium", "authorize"), ("x", "y")),
        (("pomerium-control-plane", "http"), ("pomerium-control-plane", "grpc")),
        (("a-b", "c"), ("a", "b-c")),
    ],
)
def test_r60_a_record_takes_nobodys_cluster(first: tuple[str, str], second: tuple[str, str]):
    """Else its upstream decides for all, or the whole configuration cannot be built."""
    settings = config(route(prefix="/a"), route(prefix="/b"))
    stored = [
        replace(
            one,
            id=RouteId(id_),
            stat_name=name,
            is_stored=True,
            upstreams=(replace(one.upstreams[0], port=9000 + number),),
        )
        for number, (one, (name, id_)) in enumerate(
            zip(settings.routes, (first, second), strict=True)
        )
    ]
    plain = build_snapshot(settings, ENVIRONMENT).resources[CLUSTER]
    found = build_snapshot(replace(settings, routes=tuple(stored)), ENVIRONMENT).resources[CLUSTER]
    own = {name for name in plain if name.startswith("pomerium-")}
    assert "pomerium-authorize" in own
    assert {found[name].body for name in own} == {plain[name].body for name in own}
    assert len(found) == len(own) + 2
    assert CONTROL_PLANE_GRPC not in found  # it is Envoy's from the beginning


def test_a_thousand_routes_are_built_in_a_moment():
    routes = [
        route(**{"from": f"https://h{index}.example.com", "to": f"http://127.0.0.1:{9000 + index}"})
        for index in range(1000)
    ]
    settings = config(*routes)
    snapshot = build_snapshot(settings, ENVIRONMENT)
    assert len(snapshot.resources[CLUSTER]) == 1004


@pytest.mark.parametrize(("wanted", "family"), [(True, "V4_ONLY"), (False, "V4_PREFERRED")])
def test_googles_serverless_hosts_are_asked_for_by_ipv4_alone(*, wanted: bool, family: str):
    settings = config(
        route(to="https://a.run.app", enable_google_cloud_serverless_authentication=wanted)
    )
    (cluster,) = (each for name, each in clusters(settings).items() if name.startswith("route-"))
    dns = dns_cluster_pb2.DnsCluster()
    assert cluster.cluster_type.typed_config.Unpack(dns)
    assert dns.dns_lookup_family == dns_pb2.DnsLookupFamily.Value(family)


def test_our_own_services_are_looked_up_again_whatever_the_ttl():
    """Docker's name server hands out ten minutes: new replicas were not used for so long."""
    settings = config(
        route(**{"from": "https://authenticate.example.com", "to": "https://authenticate:8443"}),
        route(to="http://wiki.example.net"),
        services="proxy",
        authenticate_service_url="https://authenticate.example.com",
        authorize_service_url="http://authorize:5443",
        databroker_service_url="http://databroker:5443",
    )
    respects = {}
    for cluster in clusters(settings).values():
        dns = dns_cluster_pb2.DnsCluster()
        if cluster.cluster_type.typed_config.Unpack(dns):
            host = cluster.load_assignment.endpoints[0].lb_endpoints[0].endpoint
            respects[host.address.socket_address.address] = dns.respect_dns_ttl
    assert respects.pop("authorize") is False
    assert respects.pop("authenticate") is False
    assert set(respects.values()) == {True}
