"""Routes that the databroker holds: their order, and what becomes of bad ones."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.config.issues import Severity
from gatehouse.common.config.load import load_settings
from gatehouse.common.config.refused_routes import OUT_OF_SERVICE
from gatehouse.common.config.resolve import resolve
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.config.route_records import (
    CONFIG,
    KEY_PAIR,
    POLICY,
    ROUTE,
    VERSIONED_CONFIG,
    ConfigRecord,
    routes_of,
)
from gatehouse.common.policy.parser import parse_policy
from gatehouse.pb import config_pb2
from tests.support.configuration import (
    CERTIFICATE,
    FILES,
    KEY,
    LOGIN,
    RANDOM,
    authority_pem,
    write,
)

BASE = {"from": "https://app.example.com", "to": ["http://app"], "allowAnyAuthenticatedUser": True}


def record(type_url: str, record_id: str, message: Message) -> ConfigRecord:
    return ConfigRecord(type_url, record_id, message.SerializeToString())


def route_message(**keys: Any) -> config_pb2.Route:
    """A sound route with some keys of its own, as protobuf JSON; None takes one away."""
    merged = {name: value for name, value in {**BASE, **keys}.items() if value is not None}
    return json_format.ParseDict(merged, config_pb2.Route())


def config(*routes: config_pb2.Route, record_id: str = "ingress") -> ConfigRecord:
    return record(CONFIG, record_id, config_pb2.Config(name="x", routes=routes))


def settings_of(folder: Path, *records: ConfigRecord, text: str = "") -> ResolvedSettings:
    def read_file(path: Path) -> bytes:
        try:
            return FILES[str(path)]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", str(path)) from None

    return resolve(
        load_settings(write(folder, LOGIN + text), {}),
        read_file=read_file,
        environ={},
        random_secret=lambda: RANDOM,
        records=records,
    )[0]


def told(settings: ResolvedSettings) -> list[str]:
    assert all(issue.file == "databroker" and issue.line is None for issue in settings.left_out)
    return [
        f"{issue.severity.value}: {issue.key}: {issue.message} ({issue.fix})"
        for issue in settings.left_out
    ]


def test_an_authority_of_one_route_shows_in_the_checksums_of_all(tmp_path: Path) -> None:
    """From then on every route asks for a certificate: answers of before are not to be kept."""
    authority = base64.b64encode(authority_pem()).decode()
    own = "routes: [{from: 'https://b.example.com', to: 'http://b', id: own, %s}]\n"
    plain = own % "allow_any_authenticated_user: true"
    armed = own % f"allow_any_authenticated_user: true, tls_downstream_client_ca: {authority}"
    other = record(ROUTE, "r", route_message(tlsDownstreamClientCa=authority))

    def first(*records: ConfigRecord, text: str = plain) -> tuple[int, bool]:
        settings = settings_of(tmp_path, *records, text=text)
        assert [issue.severity for issue in settings.left_out] in ([], [Severity.WARNING])
        return settings.routes[0].checksum, settings.refuses_bad_certificates

    alone, asks_alone = first(record(ROUTE, "r", route_message()))
    beside, asks_beside = first(other)
    assert (asks_alone, asks_beside) == (False, True)
    assert alone != beside
    stored = (record(ROUTE, "r", route_message()),)
    one = settings_of(tmp_path, *stored, text=plain)
    two = settings_of(tmp_path, *stored, text=armed)
    assert (one.refuses_bad_certificates, two.refuses_bad_certificates) == (False, True)
    assert one.routes[-1].checksum != two.routes[-1].checksum


# -- order -------------------------------------------------------------------------------------

IN_ORDER: list[dict[str, Any]] = [
    {"from": "https://*.example.com"},
    {"from": "https://a.example.com", "path": "/b"},
    {"from": "https://a.example.com", "path": "/a/b"},
    {"from": "https://a.example.com", "path": "/a"},
    {"from": "https://a.example.com", "regex": "a", "regexPriorityOrder": "9"},
    {"from": "https://a.example.com", "regex": "z", "regexPriorityOrder": "1"},
    {"from": "https://a.example.com", "regex": "y", "regexPriorityOrder": "1"},
    {"from": "https://a.example.com", "prefix": "/p", "regexPriorityOrder": "0"},
    {"from": "https://a.example.com", "regex": "z", "regexPriorityOrder": "-1"},
    {"from": "https://a.example.com", "regex": "z"},
    {"from": "https://a.example.com", "regex": "b"},
    {"from": "https://a.example.com", "prefix": "/a/b/"},
    {"from": "https://a.example.com", "prefix": "/a/b"},
    {"from": "https://a.example.com", "prefix": "/a"},
    {"from": "https://a.example.com", "id": "1"},
    {"from": "https://a.example.com", "id": "2"},
    {"from": "https://b.example.com", "path": "/z"},
]


@given(st.permutations(range(len(IN_ORDER))))
def test_the_order_does_not_depend_on_where_routes_stand(places: list[int]) -> None:
    messages = [route_message(**keys) for keys in IN_ORDER]
    mixed = [messages[place] for place in places]
    half = len(mixed) // 2
    singles = [record(ROUTE, f"r{number}", one) for number, one in enumerate(mixed[half:])]
    found, issues = routes_of([*singles, config(*mixed[:half])])
    assert issues == ()
    expected = [routes_of([config(one)])[0][0].keys for one in messages]
    assert [dict(route.keys) for route in found] == expected


texts = st.sampled_from(["", "/", "/a", "/a/b", "/b", "a.*"])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["https://a", "https://b"]),
            texts,
            st.one_of(st.none(), st.integers(-2, 2)),
            texts,
            texts,
            st.sampled_from(["", "1", "2"]),
        ),
        max_size=8,
    )
)
def test_every_two_neighbours_are_in_order(parts: list[tuple[Any, ...]]) -> None:
    messages = []
    for from_, path, order, regex, prefix, route_id in parts:
        message = config_pb2.Route(
            path=path, regex=regex, prefix=prefix, regex_priority_order=order
        )
        setattr(message, "from", from_)
        if route_id:
            message.id = route_id
        messages.append(message)
    by_place = {f"Config ingress routes[{n}]": part for n, part in enumerate(parts)}
    found = [by_place[route.place] for route in routes_of([config(*messages)])[0]]
    assert sorted(map(repr, found)) == sorted(map(repr, parts))
    for one, two in itertools.pairwise(found):
        for place, downwards in (
            (0, False),
            (1, True),
            (2, True),
            (3, True),
            (4, True),
            (5, False),
        ):
            first, second = one[place], two[place]
            if first == second:
                continue
            if place == 2:  # unset comes last
                assert second is None or (first is not None and first > second)
            else:
                assert (first > second) is downwards
            break


def test_routes_of_the_file_come_first(tmp_path: Path) -> None:
    text = "routes:\n- {from: https://z.example.com, to: http://z, allowed_users: [u]}\n"
    settings = settings_of(tmp_path, config(route_message()), text=text)
    assert [route.settings.from_ for route in settings.routes] == [
        "https://z.example.com",
        "https://app.example.com",
    ]
    assert [route.is_stored for route in settings.routes] == [False, True]
    assert settings.left_out == ()


# -- reading -----------------------------------------------------------------------------------

WHOLE = """
name: "n" stat_name: "s" description: "d" logo_url: "https://l" id: "route/1"
from: "https://app.example.com" to: "http://a" to: "http://b" load_balancing_weights: [3, 1]
prefix: "/p" prefix_rewrite: "/q" timeout { seconds: 1 nanos: 500000000 } idle_timeout {}
allow_websockets: true pass_identity_headers: false
set_request_headers { key: "X-A" value: "b" } remove_request_headers: "x-c"
rewrite_response_headers { header: "location" prefix: "a" value: "b" }
idp_access_token_allowed_audiences { values: "aud" } allow_upgrades {}
jwt_issuer_format: IssuerURI bearer_token_format: BEARER_TOKEN_FORMAT_IDP_ACCESS_TOKEN
load_balancing_policy: LOAD_BALANCING_POLICY_LEAST_REQUEST healthy_panic_threshold: 0
circuit_breaker_thresholds { max_connections: 0 }
outlier_detection { consecutive_5xx { value: 0 } interval { seconds: 9 } }
health_checks {
  timeout { seconds: 1 } interval { seconds: 2 } unhealthy_threshold { value: 3 }
  healthy_threshold { value: 1 } reuse_connection { value: false }
  http_health_check {
    path: "/h" expected_statuses { start: 200 end: 300 } codec_client_type: HTTP2
  }
}
allowed_idp_claims {
  key: "groups" value { values { string_value: "g" } values { number_value: 1 } }
}
policies { name: "p" source_ppl: "allow: {and: [{email: {is: a@example.com}}]}" rego: "package x" }
regex_priority_order: 99999999999
"""


def test_a_route_with_every_kind_of_field(tmp_path: Path) -> None:
    message = text_format.Parse(WHOLE, config_pb2.Route())
    settings = settings_of(tmp_path, config(message))
    assert told(settings) == []
    (route,) = settings.routes
    options = route.settings
    assert (route.id, route.stat_name) == ("route/1", "s")
    assert [upstream.weight for upstream in route.upstreams] == [3, 1]
    assert (options.timeout, options.idle_timeout) == (1.5, 0.0)
    assert options.pass_identity_headers is False
    assert options.set_request_headers == {"X-A": "b"}
    assert options.idp_access_token_allowed_audiences == ("aud",)
    assert options.allow_upgrades == ()
    assert options.jwt_issuer_format == "uri"
    assert options.bearer_token_format == "idp_access_token"
    assert options.load_balancing_policy == "LEAST_REQUEST"
    assert options.healthy_panic_threshold == 0
    assert options.circuit_breaker_thresholds is not None
    assert options.circuit_breaker_thresholds.max_connections == 0
    assert options.outlier_detection is not None
    assert options.outlier_detection.consecutive_5xx == 0
    (check,) = options.health_checks
    assert (check.timeout, check.unhealthy_threshold, check.reuse_connection) == (1.0, 3, False)
    assert check.http_health_check is not None
    assert check.http_health_check.codec_client_type == "HTTP2"
    assert options.allowed_idp_claims == {"groups": ["g", 1.0]}
    written = parse_policy({"allow": {"and": [{"email": {"is": "a@example.com"}}]}})
    assert route.policy.rules[1:] == written.rules


def test_the_id_is_that_of_the_same_route_in_a_file(tmp_path: Path) -> None:
    text = "routes:\n- {from: https://app.example.com, to: http://app, allowed_users: [u]}\n"
    local = settings_of(tmp_path, text=text).routes[0]
    recorded = settings_of(tmp_path, config(route_message())).routes[0]
    assert recorded.id == local.id


def test_unset_is_not_empty(tmp_path: Path) -> None:
    (route,) = settings_of(tmp_path, config(route_message(redirect={}))).routes
    assert route.settings.redirect is None
    assert route.settings.allow_upgrades is None
    assert route.settings.pass_identity_headers is None


def test_routes_name_policies_and_key_pairs(tmp_path: Path) -> None:
    policy = config_pb2.Policy(source_ppl="deny: {or: [{reject: true}]}")
    pair = config_pb2.KeyPair(certificate=CERTIFICATE, key=KEY)
    token = config_pb2.KeyPair(key=b"token\n")
    route = route_message(
        to=["https://app"],
        policyIds=["p"],
        tlsClientKeyPairId="k",
        kubernetesServiceAccountTokenKeyPairId="t",
    )
    settings = settings_of(
        tmp_path,
        record(ROUTE, "r", route),
        record(POLICY, "p", policy),
        record(KEY_PAIR, "k", pair),
        record(KEY_PAIR, "t", token),
    )
    assert told(settings) == []
    (made,) = settings.routes
    assert [rule.action for rule in made.policy.rules] == ["allow", "deny"]
    assert made.tls_client_certificate is not None
    assert made.tls_client_certificate.key_pem == KEY
    assert made.kubernetes_service_account_token == "token"


def test_versioned_configuration(tmp_path: Path) -> None:
    plain = config_pb2.VersionedConfig(config=config_pb2.Config(routes=[route_message()]))
    condition = config_pb2.VersionedConfig.Condition(at_least="0.1.0")
    bound = config_pb2.VersionedConfig(config=plain.config, conditions=[condition])
    settings = settings_of(
        tmp_path, record(VERSIONED_CONFIG, "a", plain), record(VERSIONED_CONFIG, "b", bound)
    )
    assert len(settings.routes) == 1
    assert told(settings) == [
        (
            "warning: VersionedConfig b: is for certain versions of Pomerium and left out "
            "(a Config, or one without conditions)"
        )
    ]


# -- bad ones ----------------------------------------------------------------------------------

OTHER = route_message(**{"from": "https://other.example.com"})
BAD: list[tuple[dict[str, Any], str]] = [
    ({"timeout": "-1s"}, "timeout: '-1s' is negative"),
    ({"to": ["app:80"]}, "to: unsupported scheme 'app'"),
    ({"to": None}, "from: policy should have either `to` or `redirect` or `response` defined"),
    ({"prefixRewrite": "/a\nb"}, r"prefix_rewrite: '/a\nb' holds a control character"),
    ({"setRequestHeaders": {"a b": "c"}}, "set_request_headers: 'a b' is not a header name"),
    ({"to": ["https://app"], "tlsCustomCa": "eA=="}, "tls_custom_ca: does not decode to PEM"),
    ({"policies": [{"sourcePpl": "alow: {}"}]}, "policies[0].source_ppl: alow: "),
    ({"policies": [{"sourcePpl": "a: [b"}]}, "policies[0].source_ppl: line 2: not YAML: "),
    # A lost deny would be silent.
    ({"policies": [{"sourcePpl": "allow: {}\n---\ndeny: {}"}]}, "found another document"),
    ({"policies": [{"sourcePpl": '{"allow": {}} {"deny": {}}'}]}, "source_ppl: line 1: not YAML: "),
    ({"policies": [{"sourcePpl": '{"allow": {}, "allow": {}}'}]}, "given twice, first on line 1"),
    ({"policies": [{"sourcePpl": "null"}]}, "unsupported type for rule: null"),
    ({"policies": [{"rego": ["package x"]}]}, "policies[0].rego: not available yet (source_ppl"),
    ({"policyIds": ["gone"]}, "policy_ids: there is no policy 'gone' (the id of a policy)"),
    ({"tlsClientKeyPairId": "gone"}, "tls_client_key_pair_id: there is no key pair 'gone'"),
    ({"loadBalancingWeights": [1, 2]}, "load_balancing_weights: has 2 weights for 1 upstreams"),
    ({"id": "a b"}, "id: 'a b' is no id (letters, digits and ._:/-)"),
    ({"mcp": {"server": {}}}, "mcp: not available yet"),
    ({"allowPublicUnauthenticatedAccess": True}, "policy route marked as public but contains"),
]


@pytest.mark.parametrize(("keys", "message"), BAD)
def test_a_bad_route_is_left_out_alone(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    bad = record(ROUTE, "r1", route_message(**{"prefix": "/bad", **keys}))
    settings = settings_of(tmp_path, bad, config(OTHER))
    (line,) = told(settings)
    assert line.startswith("error: Route r1.")
    assert message.replace("policies", "sub_policies", 1) in line
    refused, other = settings.routes
    assert other.settings.from_ == "https://other.example.com"
    assert (refused.settings.from_, refused.settings.prefix) == ("https://app.example.com", "/bad")
    assert refused.settings.response is not None
    assert refused.settings.response.status == 503
    assert refused.settings.response.body == OUT_OF_SERVICE
    assert refused.upstreams == ()
    assert refused.settings.to == ()
    assert refused.is_stored
    assert settings_of(tmp_path, config(OTHER)).routes[0].checksum == other.checksum


def file_keys() -> list[str]:
    return [name for name in config_pb2.Route.DESCRIPTOR.fields_by_name if name.endswith("_file")]


def test_the_message_of_a_route_names_files() -> None:
    assert len(file_keys()) >= 5


@pytest.mark.parametrize("key", file_keys())
def test_r60_a_route_of_a_record_reads_no_file(tmp_path: Path, key: str) -> None:
    """Else its writer has a file of this machine sent to an upstream, as a token for example."""
    bad = record(ROUTE, "r1", route_message(**{"to": ["https://app"], key: "/secret"}))
    opened: list[str] = []

    def read_file(path: Path) -> bytes:
        opened.append(str(path))
        return FILES.get(str(path), b"token of somebody else")

    settings, _ = resolve(
        load_settings(write(tmp_path, LOGIN), {}),
        read_file=read_file,
        environ={},
        random_secret=lambda: RANDOM,
        records=[bad],
    )
    assert "/secret" not in opened
    (line,) = told(settings)
    assert line.startswith(f"error: Route r1.{key}: names a file, which only the configuration ")
    (route,) = settings.routes
    assert route.settings.response is not None
    assert (route.upstreams, route.kubernetes_service_account_token) == ((), None)


@pytest.mark.parametrize("scheme", ["unix", "https+unix"])
def test_r59_no_record_leads_to_a_unix_socket(tmp_path: Path, scheme: str) -> None:
    """Else its writer publishes Envoy's administration, or a container engine's."""
    name = {"tlsUpstreamServerName": "a.example.com"} if scheme != "unix" else {}
    route = route_message(to=[f"{scheme}:///run/admin.sock"], **name)
    settings = settings_of(tmp_path, record(ROUTE, "r1", route))
    (line,) = told(settings)
    assert line.startswith("error: Route r1.to: leads to a Unix socket")
    (answering,) = settings.routes
    assert answering.upstreams == ()


@pytest.mark.parametrize("services", ["all", "proxy"])
@pytest.mark.parametrize(
    "host",
    ["authenticate.example.com", "AUTHENTICATE.example.com", "authenticate.example.com:8443"],
)
def test_r60_no_record_routes_the_host_of_the_sign_in(
    tmp_path: Path, services: str, host: str
) -> None:
    """Its upstream would get codes, state and cookies of everybody who signs in."""
    stolen = route_message(
        **{"from": f"https://{host}", "prefix": "/x", "allowAnyAuthenticatedUser": None},
        allowPublicUnauthenticatedAccess=True,
    )
    apart = "databroker_service_url: http://broker\nauthorize_service_url: http://authorize\n"
    text = f"services: {services}\n" + (apart if services == "proxy" else "")
    settings = settings_of(tmp_path, config(stolen, OTHER), text=text)
    errors = [line for line in told(settings) if line.startswith("error: ")]
    assert errors == [
        (
            "error: Config ingress routes[0].from: is the host of authenticate_service_url, which "
            "only the file may route (another host)"
        )
    ]
    assert [route.settings.from_ for route in settings.routes] == ["https://other.example.com"]


@pytest.mark.parametrize(
    "keys",
    [
        {"from": ""},
        {"from": "https://"},
        {"from": "nonsense"},
        {"from": "ssh://app.example.com"},
        {"from": "http://app.example.com"},
        {"path": "x"},
        {"regex": "("},
        {"path": "/a", "prefix": "/b"},
    ],
)
def test_where_it_is_unclear_what_a_route_matches_nothing_answers(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    settings = settings_of(tmp_path, config(route_message(**keys), OTHER))
    assert told(settings)
    assert [route.settings.from_ for route in settings.routes] == ["https://other.example.com"]


def test_what_cannot_be_decoded(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, ConfigRecord(ROUTE, "r", b"\xff"), config(OTHER))
    assert told(settings) == [
        "error: Route r: cannot be decoded (write it again, with the messages of pomerium.config)"
    ]
    assert len(settings.routes) == 1


def test_a_stand_in_keeps_the_place_of_its_route(tmp_path: Path) -> None:
    """Else the requests of a route with a mistake would reach a wider one."""
    narrow = route_message(prefix="/secret", to=["nonsense"])
    settings = settings_of(tmp_path, config(route_message(), narrow))
    assert [route.settings.prefix for route in settings.routes] == ["/secret", ""]


def test_the_same_as_in_the_file_is_dropped(tmp_path: Path) -> None:
    text = "routes:\n- {from: https://app.example.com, to: http://app, allowed_users: [u]}\n"
    settings = settings_of(tmp_path, config(route_message(), OTHER), text=text)
    assert [route.is_stored for route in settings.routes] == [False, True]
    (line,) = told(settings)
    local = settings.routes[0].id
    assert line.startswith(
        f"warning: Config ingress routes[0].from: route {local} is left out: the file has it, too ("
    )


@pytest.mark.parametrize("own", [{}, {"id": "one"}])
def test_of_two_equal_ones_the_second_is_left_out(tmp_path: Path, own: dict[str, str]) -> None:
    first = record(ROUTE, "a", route_message(name="x", **own))
    second = record(ROUTE, "b", route_message(name="y", **own))
    settings = settings_of(tmp_path, second, first)
    (route,) = settings.routes
    assert route.settings.name == "x"
    (line,) = told(settings)
    assert line.startswith("error: Route b.from: route ")
    assert "is left out: Route a is the same" in line


def test_a_route_that_needs_a_sign_in_where_there_is_none(tmp_path: Path) -> None:
    text = "certificate_file: /tls/cert.pem\ncertificate_key_file: /tls/key.pem\n"

    def read_file(path: Path) -> bytes:
        return FILES[str(path)]

    settings, _ = resolve(
        load_settings(write(tmp_path, text), {}),
        read_file=read_file,
        environ={},
        random_secret=lambda: RANDOM,
        records=[config(route_message())],
    )
    (line,) = told(settings)
    assert "routes[0].from: needs a sign-in, but authenticate_service_url is not set" in line
    assert settings.routes[0].settings.response is not None


def test_warnings_do_not_cost_a_route(tmp_path: Path) -> None:
    message = route_message(allowAnyAuthenticatedUser=None)
    settings = settings_of(tmp_path, config(message))
    (line,) = told(settings)
    assert line.startswith("warning: Config ingress routes[0].from: nobody may use this route")
    assert settings.routes[0].upstreams


APP = "routes: [{from: 'https://app.example.com', to: 'http://u', allowed_users: [a@b.c]}]\n"
WIDE = "routes: [{from: 'https://*.example.com', to: 'http://u', allowed_users: [a@b.c]}]\n"


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        (
            APP,
            {"prefix": "/x"},
            "can never be reached: routes[0] (line 11, https://app.example.com) before it",
        ),
        (
            "",
            {"path": "/ping"},
            "can never be reached: Gatehouse itself answers",
        ),
        (
            WIDE,
            {"prefix": "/x"},
            "hides routes[0] (line 11, https://*.example.com) on app.example.com",
        ),
        (
            APP.replace("to:", "prefix: /x, to:"),
            {"from": "https://*.example.com"},
            "is hidden on app.example.com by routes[0] (line 11, https://app.example.com, prefix",
        ),
    ],
)
def test_stored_routes_are_told_what_stands_in_their_way(
    tmp_path: Path, text: str, keys: dict[str, Any], message: str
) -> None:
    settings = settings_of(tmp_path, config(route_message(**keys)), text=text)
    (line,) = told(settings)
    assert line.startswith(f"warning: Config ingress routes[0].from: {message}")
    assert settings.routes[-1].upstreams


def test_stored_routes_hide_each_other(tmp_path: Path) -> None:
    routes = (route_message(prefix="/a"), route_message(prefix="/a/b", id="x"))
    settings = settings_of(tmp_path, config(*routes))
    assert told(settings) == []  # the longer prefix comes first
    settings = settings_of(tmp_path, config(*routes, route_message(prefix="/a/b", id="y")))
    (line,) = told(settings)
    assert "routes[2].from: can never be reached: Config ingress routes[1] (https://app" in line
    assert "has the same from and path" in line


def test_every_change_of_a_record_is_another_generation(tmp_path: Path) -> None:
    generations = {
        settings_of(tmp_path, *records).generation
        for records in ((), (config(OTHER),), (config(OTHER, OTHER),), (config(route_message()),))
    }
    assert len(generations) == 4


def test_no_message_holds_a_secret(tmp_path: Path) -> None:
    keys = {
        "idpClientSecret": "hunter2",
        "tlsClientKey": base64.b64encode(b"hunter2").decode(),
        "tlsClientCert": "eA==",
        "kubernetesServiceAccountToken": "hunter2",
        "kubernetesServiceAccountTokenFile": "/none",
    }
    settings = settings_of(tmp_path, config(route_message(**keys)))
    assert any(issue.severity is Severity.ERROR for issue in settings.left_out)
    assert "hunter2" not in str(told(settings)) + repr(settings.routes) + repr(settings)
