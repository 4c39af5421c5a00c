"""File and environment to settings: precedence, names, and every mistake at once."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.load import load_outcome, load_settings
from gatehouse.common.config.model import RUNTIME_FLAGS, DownstreamMTLS, Settings
from tests.support.configuration import load, shown, write


def errors(folder: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, environ)
    return [shown(issue) for issue in caught.value.issues]


def test_environment_over_file_over_default(tmp_path: Path) -> None:
    settings = load(tmp_path, "address: ':1'\ncookie_name: c\n", {"ADDRESS": ":2"}).settings
    assert (settings.address, settings.cookie_name, settings.grpc_address) == (":2", "c", ":443")


def test_the_environment_alone_is_enough() -> None:
    assert load_settings(None, {"SERVICES": "proxy"}).settings.services == "proxy"


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    assert load(tmp_path, "address: ':1'\n", {"ADDRESS": ""}).settings.address == ":1"


def test_every_key_has_an_environment_form() -> None:
    """Each scalar key takes text from the variable of its name."""
    samples = {
        "true",
        "false",
        "1",
        "1s",
        ":1",
        "a:1",
        '{"a": {"issuer": "x"}}',
        "[{}]",
        "https://a",
        "1=1",
        "[]",
        "{}",
        "x",
        "info",
        "debug",
        '{"mcp": false}',
        "3",
        "0.5",
        "AUTO",
    }
    samples |= {"memory", "file", "lax", "jwt", "uri", "http1", "allow", "keep_unchanged"}
    for name, info in Settings.model_fields.items():
        if name in {"policy", "routes", "downstream_mtls"}:
            continue
        taken = []
        for sample in samples:
            outcome = load_outcome(None, {name.upper(): sample})
            if not outcome.errors:
                assert outcome.settings is not None
                taken.append(getattr(outcome.settings, name))
        assert any(value != info.default for value in taken), name


def test_nested_environment_sets_one_leaf(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "downstream_mtls:\n  ca: abc\n  max_verify_depth: 3\n",
        {"DOWNSTREAM_MTLS_CA_FILE": "/x", "DOWNSTREAM_MTLS_ENFORCEMENT": "policy"},
    )
    assert loaded.settings.downstream_mtls == DownstreamMTLS.model_validate(
        {"ca": "abc", "ca_file": "/x", "max_verify_depth": 3, "enforcement": "policy"}
    )
    assert loaded.origins["downstream_mtls", "ca_file"].key == "DOWNSTREAM_MTLS_CA_FILE"
    assert loaded.origins["downstream_mtls", "ca"].line == 2


@pytest.mark.parametrize("key", ["POLICY", "ROUTES"])
def test_encoded_routes_replace_the_files(tmp_path: Path, key: str) -> None:
    text = "- from: https://Env.example.com\n  to: http://b\n  set_request_headers: {X-Up: v}\n"
    loaded = load(
        tmp_path,
        f"{key.lower()}:\n- from: https://file\n  to: http://a\n",
        {key: base64.b64encode(text.encode()).decode()},
    )
    (route,) = loaded.settings.all_routes
    assert route.from_ == "https://Env.example.com"
    assert route.set_request_headers == {"X-Up": "v"}  # keys keep their case here
    origin = loaded.origins[key.lower(), 0, "to"]
    assert (origin.file, origin.line, origin.key) == ("environment", 2, f"{key}[0].to")


def test_encoded_routes_may_be_json() -> None:
    text = json.dumps([{"from": "https://a", "to": "http://b"}])
    environ = {"ROUTES": base64.b64encode(text.encode()).decode()}
    assert load_settings(None, environ).settings.routes[0].to == ("http://b",)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("%%%", "is not base64"),
        (base64.b64encode(b"a: [").decode(), "not YAML"),
        (base64.b64encode(b"a: 1").decode(), "does not decode to a list"),
        (base64.b64encode(b"\xff").decode(), "is not UTF-8"),
    ],
)
def test_encoded_routes_that_cannot_be_read(tmp_path: Path, raw: str, message: str) -> None:
    (error,) = errors(tmp_path, "", {"ROUTES": raw})
    assert "ROUTES: " in error
    assert message in error


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('{"X-A": "b, c"}', {"X-A": "b, c"}),
        ("X-A:b,X-C: d:e", {"X-A": "b", "X-C": " d:e"}),
    ],
)
def test_headers_variable(tmp_path: Path, raw: str, expected: dict[str, str]) -> None:
    loaded = load(tmp_path, "set_response_headers: {a: b}\n", {"HEADERS": raw})
    assert loaded.settings.set_response_headers == expected


@pytest.mark.parametrize("raw", ["a", "{x", "a:b,c"])
def test_bad_headers_variable(tmp_path: Path, raw: str) -> None:
    (error,) = errors(tmp_path, "", {"HEADERS": raw})
    assert error.startswith("HEADERS: ")


def test_environment_forms_that_fail_upstream() -> None:
    settings = load_settings(
        None,
        {
            "DNS_USE_TCP": "true",
            "DNS_QUERY_TRIES": "3",
            "DNS_UDP_MAX_QUERIES": "5",
            "ENVOY_BIND_CONFIG_FREEBIND": "1",
            "CIRCUIT_BREAKER_THRESHOLDS": '{"max_requests": 7}',
            "BLOB_STORAGE": '{"bucket_uri": "s3://b"}',
            "CERTIFICATES": '[{"cert": "/a", "key": "/b"}]',
            "DATABROKER_CLUSTER_NODES": '[{"id": "a"}]',
            "SSH_RLS_ADDITIONAL_ENTRIES": '[{"key": "k", "value": "v"}]',
            "IDENTITY_PROVIDERS": '{"a": {"issuer": "https://i", "jwks_url": "https://k", '
            '"supported_algs": ["ES256"], "audiences": ["x"]}}',
            "RUNTIME_FLAGS": '{"mcp": false}',
        },
    ).settings
    assert settings.dns_use_tcp is True
    assert (settings.dns_query_tries, settings.dns_udp_max_queries) == (3, 5)
    assert settings.envoy_bind_config_freebind is True
    assert settings.circuit_breaker_thresholds is not None
    assert settings.circuit_breaker_thresholds.max_requests == 7
    assert settings.certificates[0].key == "/b"
    assert settings.identity_providers["a"].supported_algs == ("ES256",)
    assert settings.identity_providers["a"].jwks_url == "https://k"
    assert settings.runtime_flags == {**RUNTIME_FLAGS, "mcp": False}


def test_file_keys_are_case_insensitive_everywhere(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        """
        Routes:
          - From: https://A.example.com
            To: http://b
            Set_Request_Headers: {X-Up: Value}
            Policy: {Allow: {And: [{Email: {Is: A@b}}]}}
        """,
    )
    (route,) = loaded.settings.routes
    assert route.from_ == "https://A.example.com"
    assert route.set_request_headers == {"x-up": "Value"}
    assert route.policy == {"allow": {"and": [{"email": {"is": "A@b"}}]}}


def test_dotted_keys_nest(tmp_path: Path) -> None:
    loaded = load(tmp_path, "downstream_mtls.ca_file: /x\nruntime_flags.mcp: false\n")
    assert loaded.settings.downstream_mtls.ca_file == "/x"
    assert loaded.settings.runtime_flags["mcp"] is False
    origin = loaded.origins["downstream_mtls", "ca_file"]
    assert (origin.key, origin.line) == ("downstream_mtls.ca_file", 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("address: ':1'\nroutes.x: 1\n", "2: routes: is not a list"),
        ("address: ':1'\nidentity_providers.a.issuer: 5x\nadress.b: 1\n", "3: adress: unknown key"),
        ("address: ':1'\ndownstream_mtls.x.y: 1\n", "2: downstream_mtls.x: unknown key"),
    ],
)
def test_what_dotted_keys_make_has_their_line(tmp_path: Path, text: str, said: str) -> None:
    outcome = load_outcome(write(tmp_path, text), {})
    assert [shown(issue)[: len(said)] for issue in (*outcome.errors, *outcome.warnings)] == [said]


def test_a_dotted_key_beside_the_nested_one(tmp_path: Path) -> None:
    (error,) = errors(tmp_path, "downstream_mtls: {ca_file: /x}\ndownstream_mtls.ca_file: /y\n")
    assert error.startswith("2: downstream_mtls.ca_file: given twice")


def test_unknown_keys_are_warned_about_with_the_nearest(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        """\
        adress: ':1'
        zzz: 1
        debug: true
        directory_provider: https://x
        downstream_mtls: {ca_fil: /x}
        runtime_flags: {mpc: true}
        certificates: [{cert: /a, kei: /b}]
        identity_providers: {a: {isuer: x}}
        routes:
          - from: https://a
            to: http://b
            prefx: /c
            redirect: {host_redirct: x}
        """,
    )
    assert sorted(shown(issue) for issue in loaded.warnings) == sorted(
        [
            "1: adress: unknown key, ignored (did you mean address?)",
            "2: zzz: unknown key, ignored (`gatehouse config defaults` prints all keys)",
            "3: debug: no longer exists and is ignored (use log_level: debug)",
            "4: directory_provider: is not a key of this file and is ignored (set it in the console)",  # noqa: E501 - a message
            "5: downstream_mtls.ca_fil: unknown key, ignored (did you mean ca_file?)",
            "6: runtime_flags.mpc: unknown runtime flag (did you mean mcp?)",
            "7: certificates[0].kei: unknown key, ignored (did you mean key?)",
            "8: identity_providers.a.isuer: unknown key, ignored (did you mean issuer?)",
            "12: routes[0].prefx: unknown key, ignored (did you mean prefix?)",
            (
                "13: routes[0].redirect.host_redirct: unknown key, ignored "
                "(did you mean host_redirect?)"
            ),
        ]
    )
    assert loaded.settings.runtime_flags["mpc"] is True
    assert loaded.settings.routes[0].from_ == "https://a"


def test_unknown_keys_inside_a_policy_are_the_parsers_business(tmp_path: Path) -> None:
    loaded = load(tmp_path, "routes: [{from: a, to: b, policy: {alow: 1}}]\n")
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("authenticate_callback_path", "the path is always /oauth2/callback"),
        ("forward_auth_url", "forward auth is gone"),
        ("signing_key_algorithm", "the key decides"),
        ("grpc_client_dns_roundrobin", "balancing is always on"),
        ("cookie_secure", "cookies are always Secure"),
        ("databroker_storage_tls_skip_verify", "put sslmode into the connection string"),
    ],
)
def test_older_removals_are_ignored_and_say_what_to_use(
    tmp_path: Path, key: str, instead: str
) -> None:
    (warning,) = load(tmp_path, f"{key}: x\n").warnings
    assert shown(warning).startswith(f"1: {key}: no longer exists and is ignored ({instead}")


@pytest.mark.parametrize(
    "key",
    [
        *("http3_advertise_port", "directory_provider", "directory_provider_options"),
        *("routes[0].id", "routes[0].stat_name"),
    ],
)
def test_keys_of_the_interface_are_ignored_and_say_so(tmp_path: Path, key: str) -> None:
    name = key.rpartition(".")[2]
    text = f"routes: [{{from: a, {name}: x}}]\n" if "." in key else f"{name}: x\n"
    (warning,) = load(tmp_path, text).warnings
    said = "is not a key of this file and is ignored (set it in the console)"
    assert shown(warning) == f"1: {key}: {said}"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("identity_providers: {Corp: {Issuer: I}}", ("identity_providers", "corp")),
        ("idp_request_params: {Prompt: I}", ("idp_request_params", "prompt")),
        ("runtime_flags: {MCP: false}", ("runtime_flags", "mcp")),
        ("jwt_claims_headers: {X-Email: Email}", ("jwt_claims_headers", "x-email")),
        ("set_response_headers: {X-A: B}", ("set_response_headers", "x-a")),
        ("downstream_mtls: {Match_Subject_Alt_Names: [{DNS: A}]}", None),
    ],
)
def test_names_inside_maps_lose_their_capitals_and_values_do_not(
    tmp_path: Path, text: str, key: tuple[str, str] | None
) -> None:
    settings = load(tmp_path, f"{text}\n").settings
    if key is None:
        assert settings.downstream_mtls.match_subject_alt_names == ({"dns": "A"},)
        return
    found = getattr(settings, key[0])[key[1]]
    assert (found.issuer if key[1] == "corp" else found) in {"I", False, "Email", "B"}


REMOVED = [
    "client_ca",
    "client_ca_file",
    "idp_service_account",
    "idp_refresh_directory_timeout",
    "idp_refresh_directory_interval",
    "idp_qps",
    "tracing_datadog_address",
    "tracing_jaeger_collector_endpoint",
    "tracing_jaeger_agent_endpoint",
    "tracing_zipkin_endpoint",
    "tracing_provider",
    "tracing_sample_rate",
]


@pytest.mark.parametrize("key", REMOVED)
def test_removed_keys_are_fatal_and_say_what_to_use(tmp_path: Path, key: str) -> None:
    (error,) = errors(tmp_path, f"\n{key}: x\n")
    assert error.startswith(f"2: {key}: some configuration options are no longer supported (")
    assert not error.endswith("()")


def test_policy_file_is_fatal(tmp_path: Path) -> None:
    (error,) = errors(tmp_path, "policy_file: x\n")
    assert "policy file setting is deprecated" in error


@pytest.mark.parametrize("key", ["allowed_groups", "set_authorization_header"])
def test_removed_route_keys_are_fatal_only_under_routes(tmp_path: Path, key: str) -> None:
    (error,) = errors(tmp_path, f"routes:\n- from: a\n  {key}: x\n")
    assert error.startswith(f"3: routes[0].{key}: some configuration options are no longer")
    loaded = load(tmp_path, f"policy:\n- from: a\n  {key}: x\n")
    assert [issue.key for issue in loaded.warnings] == [f"policy[0].{key}"]


@pytest.mark.parametrize(
    ("alias", "key"),
    [("http_redirect_address", "http_redirect_addr"), ("grpc_addr", "grpc_address")],
)
def test_aliases(tmp_path: Path, alias: str, key: str) -> None:
    assert getattr(load(tmp_path, f"{alias}: ':1'\n").settings, key) == ":1"
    assert getattr(load(tmp_path, "", {alias.upper(): ":1"}).settings, key) == ":1"
    assert getattr(load(tmp_path, f"{alias}: ':1'\n{key}: ':1'\n").settings, key) == ":1"
    loaded = load(tmp_path, f"{alias}: ':1'\n", {key.upper(): ":2"})
    assert getattr(loaded.settings, key) == ":2"
    loaded = load(tmp_path, f"{key}: ':1'\n", {alias.upper(): ":2"})
    assert getattr(loaded.settings, key) == ":2"
    (error,) = errors(tmp_path, f"{alias}: ':1'\n{key}: ':2'\n")
    assert alias in error
    assert f" {key} " in error
    (error,) = errors(tmp_path, "", {alias.upper(): ":1", key.upper(): ":2"})
    assert error.startswith(f"{alias.upper()}: ")


def test_the_route_alias_lb_policy(tmp_path: Path) -> None:
    loaded = load(tmp_path, "routes: [{from: a, lb_policy: random}]\n")
    assert loaded.settings.routes[0].load_balancing_policy == "RANDOM"
    (error,) = errors(tmp_path, "routes:\n- from: a\n  lb_policy: any\n")
    assert error.startswith("3: routes[0].lb_policy: unsupported value 'any'")


def test_a_certificate_key_that_is_a_path(tmp_path: Path) -> None:
    text = "certificate_file: $D/a.pem\ncertificate_key: $D/b.pem\n"
    settings = load(tmp_path, text, {"D": "/d"}).settings
    assert settings.certificate_key_file == "/d/b.pem"
    assert settings.certificate_key.get_secret_value() == ""
    (error,) = errors(tmp_path, "certificate_key: /a\ncertificate_key_file: /b\n")
    assert error.startswith("1: certificate_key: ")
    for written, variable in (
        ("certificate_key", "CERTIFICATE_KEY_FILE"),
        ("certificate_key_file", "CERTIFICATE_KEY"),
    ):
        environ = {variable: "/b"}
        assert load(tmp_path, f"{written}: /a\n", environ).settings.certificate_key_file == "/b"
    (error,) = errors(tmp_path, "", {"CERTIFICATE_KEY": "/a", "CERTIFICATE_KEY_FILE": "/b"})
    assert error.startswith("CERTIFICATE_KEY: ")
    inline = base64.b64encode(b"-----BEGIN PRIVATE KEY-----").decode()
    assert load(tmp_path, f"certificate_key: {inline}\n").settings.certificate_key_file == ""


def test_all_mistakes_come_at_once_with_their_lines(tmp_path: Path) -> None:
    found = errors(
        tmp_path,
        """\
        timeout_read: 30
        codec_type: http9
        client_ca: x
        address: ':1'
        address: ':2'
        certificate_file: $NOWHERE/a
        routes:
          - from: https://a
            timeout: 5
            allow_websockets: maybe
          - from: https://b
            redirect: {response_code: abc}
        """,
        {"TIMEOUT_IDLE": "7"},
    )
    assert sorted(
        line.split(": ")[:2] if line[0].isdigit() else line.split(": ")[:1] for line in found
    ) == [
        ["1", "timeout_read"],
        ["10", "routes[0].allow_websockets"],
        ["12", "routes[1].redirect.response_code"],
        ["2", "codec_type"],
        ["3", "client_ca"],
        ["5", "address"],
        ["6", "certificate_file"],
        ["9", "routes[0].timeout"],
        ["TIMEOUT_IDLE"],
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("routes: 5\n", "is not a list"),
        ("routes: {from: a}\n", "is not a list"),
        ("routes: [a]\n", "is a string ("),
        ("routes: [[]]\n", "is a list"),
        ("downstream_mtls: 7\n", "is a number"),
        ("certificates: true\n", "is not a list"),
        ("identity_providers: []\n", "is not a map"),
        ("runtime_flags: []\n", "is a list"),
        ("runtime_flags: {mcp: maybe}\n", "'maybe' is not a boolean"),
        ("jwt_claims_headers: 5\n", "is a number"),
        ("ssh_host_keys: [{}]\n", "is a map"),
    ],
)
def test_wrong_shapes(tmp_path: Path, raw: str, message: str) -> None:
    (error,) = errors(tmp_path, raw)
    assert message in error
    assert error.startswith("1: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.txt", b"", "unknown kind of file '.txt'"),
        ("config", b"", "unknown kind of file ''"),
        ("config.yaml", b"a: [\n", "failed to read config: not YAML"),
        ("config.yaml", b"a: 1\n\xff\n", "not UTF-8"),
        ("config.json", b"{", "failed to read config: not JSON"),
        ("config.toml", b"a", "failed to read config: not TOML"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    (issue,) = caught.value.issues
    assert message in issue.message
    assert issue.file == str(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{"Address": ":1", "routes": [{"from": "a", "timeout": 5}]}'),
        ("c.toml", 'Address = ":1"\n[[routes]]\nfrom = "a"\ntimeout = 5\n'),
        ("c.yml", "Address: ':1'\nroutes:\n- from: a\n  timeout: 5\n"),
    ],
)
def test_every_format_reports_alike(tmp_path: Path, name: str, text: str) -> None:
    path = write(tmp_path, text, name)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    (issue,) = caught.value.issues
    assert issue.key == "routes[0].timeout"
    assert issue.line is not None
    assert "timeout" in text.splitlines()[issue.line - 1]


def test_env_file(tmp_path: Path) -> None:
    path = write(tmp_path, "ADDRESS=:1\nIDP_SCOPES=a,b\n", ".env")
    settings = load_settings(path, {"ADDRESS": ":2"}).settings
    assert (settings.address, settings.idp_scopes) == (":2", ("a", "b"))


def test_removed_names_in_the_environment_only_warn(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "",
        {
            "TRACING_PROVIDER": "x",
            "DOWNSTREAM_MTLS": '{"ca_file": "/x"}',
            "DEBUG_FORCE_AUTHENTICATE_FLOW": "stateless",
        },
    )
    assert {issue.key for issue in loaded.warnings} == {
        "TRACING_PROVIDER",
        "DOWNSTREAM_MTLS",
        "DEBUG_FORCE_AUTHENTICATE_FLOW",
    }


SENTINEL = "hunter2-sentinel"
SECRET_KEYS = [
    name for name, info in Settings.model_fields.items() if "Secret" in str(info.annotation)
]


@pytest.mark.parametrize("key", SECRET_KEYS)
@pytest.mark.parametrize("shape", ["{}", "[{}]", "{{a: {}}}"])
def test_no_message_holds_a_secret(tmp_path: Path, key: str, shape: str) -> None:
    outcome = load_outcome(write(tmp_path, f"{key}: {shape.format(SENTINEL)}\n"), {})
    for issue in (*outcome.errors, *outcome.warnings):
        assert SENTINEL not in str(issue)
    assert SENTINEL not in repr(outcome.settings)


def test_secret_keys_are_secret() -> None:
    assert {"shared_secret", "cookie_secret", "signing_key", "idp_client_secret"} <= set(
        SECRET_KEYS
    )
    assert len(SECRET_KEYS) >= 14
