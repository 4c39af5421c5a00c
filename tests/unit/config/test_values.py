"""Each decoder: what it takes, what it refuses, and what it says then."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from gatehouse.common.config.keys import fields_of
from gatehouse.common.config.model import (
    RUNTIME_FLAGS,
    BearerTokenFormat,
    CodecType,
    CookieSameSite,
    HeadersWithUnderscoresAction,
    JWTIssuerFormat,
    MTLSEnforcement,
    PathWithEscapedSlashesAction,
    Settings,
)
from gatehouse.common.config.values import (
    ENVIRON,
    expand_path,
    parse_go_duration,
    parse_host_port,
    shorten,
)


def value(key: str, raw: Any) -> Any:
    return getattr(Settings.model_validate({key: raw}), key)


def refusal(key: str, raw: Any) -> tuple[str, str]:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({key: raw})
    (error,) = caught.value.errors()
    return error["ctx"]["message"], error["ctx"]["fix"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300ms", 0.3),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("0s", 0),
        ("0", 0),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("1m0.5s", 60.5),
        ("2us", 2e-6),
        ("2µs", 2e-6),
        ("7ns", 7e-9),
        ("-5s", -5),
        ("5", None),
        ("", None),
        ("s", None),
        ("5 s", None),
        ("1d", None),
        ("5s3", None),
        ("1h-5m", None),
        ("-", None),
    ],
)
def test_go_durations(text: str, seconds: float | None) -> None:
    assert parse_go_duration(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("zero", [0, "0s", "0", 0.0])
def test_a_bare_zero_is_a_duration(zero: object) -> None:
    assert value("timeout_write", zero) == 0


@pytest.mark.parametrize("number", [30, 1.5, "30", -1])
def test_a_duration_without_unit_shows_the_string_form(number: object) -> None:
    message, fix = refusal("timeout_read", number)
    assert str(number) in message
    if number != -1:
        assert f'"{number}s"' in fix


@pytest.mark.parametrize("raw", ["-1s", "soon", True, [], {}, "200000000h"])
def test_bad_durations(raw: object) -> None:
    refusal("timeout_read", raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (True, True),
        ("true", True),
        ("1", True),
        (1, True),
        ("T", True),
        ("False", False),
        (0, False),
    ],
)
def test_booleans(raw: object, expected: bool) -> None:
    assert value("insecure_server", raw) is expected


@pytest.mark.parametrize("raw", ["nonsense", 2, [], {}, 1.0])
def test_bad_booleans(raw: object) -> None:
    assert refusal("insecure_server", raw)[1] == "true or false"


@pytest.mark.parametrize(
    ("raw", "meant"), [("yes", "true"), ("On", "true"), ("no", "false"), ("OFF", "false")]
)
def test_booleans_of_other_languages(raw: str, meant: str) -> None:
    assert refusal("insecure_server", raw)[1] == f"did you mean {meant}? true or false"


@pytest.mark.parametrize(
    ("raw", "written"),
    [
        ("5 minutes", "5m"),
        ("5 Mins", "5m"),
        ("30sec", "30s"),
        ("14 h", "14h"),
        ("2hours", "2h"),
        ("10 msec", "10ms"),
        ("2 days", "48h"),
    ],
)
def test_durations_in_words(raw: str, written: str) -> None:
    message, fix = refusal("timeout_read", raw)
    assert message.startswith(f"{raw!r} is not a duration")
    assert fix.startswith(f'write "{written}"; ')


def test_numbers_from_text_and_their_range() -> None:
    assert value("xff_num_trusted_hops", "3") == 3
    assert refusal("xff_num_trusted_hops", -1)[0] == "-1 is out of range"
    assert refusal("xff_num_trusted_hops", 2**32)[1] == "a whole number from 0 to 4294967295"
    assert refusal("xff_num_trusted_hops", True)[0] == "is a boolean"
    assert refusal("xff_num_trusted_hops", "3.5")[0] == "'3.5' is not a whole number"


def test_lists_from_text_split_on_commas_without_trimming() -> None:
    assert value("idp_scopes", "openid, profile") == ("openid", " profile")
    assert value("idp_scopes", ["a", 1]) == ("a", "1")
    assert value("idp_scopes", 7) == ("7",)
    assert value("idp_scopes", "") == ()
    assert refusal("idp_scopes", {"a": 1})[0] == "is a map"


def test_maps_from_json_text() -> None:
    assert value("idp_request_params", '{"k": "v"}') == {"k": "v"}
    assert value("idp_request_params", {}) == {}
    assert value("idp_request_params", None) is None
    assert refusal("idp_request_params", "k=v")[0] == "is a string"
    assert refusal("idp_request_params", "{k=v}")[0] == "is a string that is not JSON"
    assert refusal("idp_request_params", {"k": ["v"]})[0] == "the value of 'k' is a list"


def test_runtime_flags_are_laid_over_the_defaults() -> None:
    flags = value("runtime_flags", '{"mcp": false, "other": true}')
    assert flags == {**RUNTIME_FLAGS, "mcp": False, "other": True}
    assert Settings().runtime_flags == RUNTIME_FLAGS


@pytest.mark.parametrize(
    ("key", "raw", "expected"),
    [
        ("codec_type", "CODEC_TYPE_HTTP1", CodecType.HTTP1),
        ("codec_type", "http1", CodecType.HTTP1),
        ("codec_type", "Type_Http3", CodecType.HTTP3),
        ("codec_type", "", CodecType.AUTO),
        ("bearer_token_format", "JWT", BearerTokenFormat.JWT),
        ("bearer_token_format", "", BearerTokenFormat.DEFAULT),
        (
            "bearer_token_format",
            "BEARER_TOKEN_FORMAT_IDP_ACCESS_TOKEN",
            BearerTokenFormat.IDP_ACCESS_TOKEN,
        ),
        ("jwt_issuer_format", "uri", JWTIssuerFormat.URI),
        ("jwt_issuer_format", "hostonly", JWTIssuerFormat.HOST_ONLY),
        ("headers_with_underscores_action", "", HeadersWithUnderscoresAction.ALLOW),
        (
            "headers_with_underscores_action",
            "DROP_HEADER",
            HeadersWithUnderscoresAction.DROP_HEADER,
        ),
        (
            "path_with_escaped_slashes_action",
            "unchanged",
            PathWithEscapedSlashesAction.KEEP_UNCHANGED,
        ),
        (
            "path_with_escaped_slashes_action",
            "",
            PathWithEscapedSlashesAction.KEEP_UNCHANGED,
        ),
        ("jwt_issuer_format", "IssuerURI", JWTIssuerFormat.URI),
        ("jwt_issuer_format", "", JWTIssuerFormat.HOST_ONLY),
        ("cookie_same_site", "LAX", CookieSameSite.LAX),
        ("cookie_same_site", "", CookieSameSite.UNSET),
    ],
)
def test_enums(key: str, raw: str, expected: object) -> None:
    assert value(key, raw) is expected


@pytest.mark.parametrize(
    ("key", "raw", "message"),
    [
        ("codec_type", "http4", "unsupported value 'http4'"),
        ("cookie_same_site", "maybe", "unknown cookie_same_site 'maybe'"),
        ("log_level", "INFO", "unknown level 'INFO'"),
        ("dns_lookup_family", "v4_only", "unknown dns_lookup_family 'v4_only'"),
        ("databroker_storage_type", "redis", "unknown databroker storage backend type 'redis'"),
    ],
)
def test_bad_enums_list_what_is_allowed(key: str, raw: str, message: str) -> None:
    said, fix = refusal(key, raw)
    assert said == message
    assert len(fix) > 5


def test_mtls_enforcement() -> None:
    settings = Settings.model_validate({"downstream_mtls": {"enforcement": "Reject_Connection"}})
    assert settings.downstream_mtls.enforcement is MTLSEnforcement.REJECT_CONNECTION


def test_an_empty_log_level_is_info() -> None:
    assert value("log_level", "") == "info"
    assert Settings().proxy_log_level is None


@pytest.mark.parametrize("key", ["log_level", "proxy_log_level"])
def test_log_levels(key: str) -> None:
    levels = [
        *("trace", "debug", "info", "warn", "warning", "error"),
        *("critical", "fatal", "panic", "off", "none", "disabled"),
    ]
    assert [value(key, level) for level in levels] == levels


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"X-Email": "email"}, {"X-Email": "email"}),
        (
            ["email", "groups"],
            {"x-pomerium-claim-email": "email", "x-pomerium-claim-groups": "groups"},
        ),
        ("email, groups", {"x-pomerium-claim-email": "email", "x-pomerium-claim-groups": "groups"}),
        ("email\tgroups", {"x-pomerium-claim-email": "email", "x-pomerium-claim-groups": "groups"}),
        ('{"X-A": "a"}', {"X-A": "a"}),
    ],
)
def test_jwt_claims_headers(raw: object, expected: dict[str, str]) -> None:
    assert value("jwt_claims_headers", raw) == expected


def test_header_names_and_values_are_checked() -> None:
    assert "is not a header name" in refusal("jwt_claims_headers", {"a b": "c"})[0]
    assert "is not a header name" in refusal("jwt_claims_headers", ["a/b"])[0]
    assert "control character" in refusal("set_response_headers", {"a": "b\r\nc: d"})[0]


@pytest.mark.parametrize(
    "raw",
    [
        "authenticate.example.com",
        "https://",
        "https:///path",
        "https://a b",
        "https://a:99999",
        "https://a\\b",
        "https://user:hunter2@a",
        "https://a:0",
        "https://[::1",
    ],
)
def test_bad_urls(raw: str) -> None:
    message, _ = refusal("authenticate_service_url", raw)
    assert "hunter2" not in message


def test_service_urls_are_http() -> None:
    assert refusal("databroker_service_url", "grpc://db")[1] == "http:// or https://"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":443", ("", 443)),
        ("host:1", ("host", 1)),
        ("[::1]:8443", ("::1", 8443)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("443", None),
        ("host", None),
        ("::1:80", None),
        ("a:70000", None),
        ("http://a:80", None),
    ],
)
def test_host_port(text: str, expected: tuple[str, int] | None) -> None:
    assert parse_host_port(text) == expected


@pytest.mark.parametrize("raw", ["127.0.0.1", "127.0.0.1:0", ":x", "a:b:c"])
def test_addresses_need_a_port(raw: str) -> None:
    assert refusal("health_check_addr", raw)[1] == "host:port with a port above 0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$HOME/a", "/home/me/a"),
        ("${HOME}b", "/home/meb"),
        ("~/a", "/home/me/a"),
        ("~", "/home/me"),
        ("~other/a", "~other/a"),
        ("/a/~/b", "/a/~/b"),
        ("/price$", "/price$"),
        ("/a$1", "/a$1"),
    ],
)
def test_paths_expand(text: str, expected: str) -> None:
    assert expand_path(text, {"HOME": "/home/me"}) == expected


def test_an_unset_variable_in_a_path_is_named() -> None:
    with pytest.raises(ValueError, match="the environment variable CERTS is not set"):
        expand_path("$CERTS/a.pem", {"HOME": "/h"})


def test_only_paths_expand() -> None:
    settings = Settings.model_validate(
        {
            "certificate_file": "$D/a",
            "certificates": [{"cert": "${D}/b", "key": "~/c"}],
            "idp_client_secret": "$D",
            "ssh_host_key_files": ["$D/k"],
            "routes": [
                {
                    "from": "https://a",
                    "tls_custom_ca_file": "$D/ca",
                    "set_request_headers": {"x": "$pomerium.jwt ${D}"},
                }
            ],
        },
        context={ENVIRON: {"D": "/d", "HOME": "/h"}},
    )
    assert settings.certificate_file == "/d/a"
    assert settings.certificates[0].cert == "/d/b"
    assert settings.certificates[0].key == "/h/c"
    assert settings.idp_client_secret.get_secret_value() == "$D"
    assert settings.ssh_host_key_files == ("/d/k",)
    assert settings.routes[0].tls_custom_ca_file == "/d/ca"
    assert settings.routes[0].set_request_headers == {"x": "$pomerium.jwt ${D}"}


@pytest.mark.parametrize(("raw", "seconds"), [("10s", 10), ("0.5s", 0.5), (0, 0)])
def test_protobuf_durations(raw: object, seconds: float) -> None:
    settings = Settings.model_validate({"routes": [{"outlier_detection": {"interval": raw}}]})
    detection = settings.routes[0].outlier_detection
    assert detection is not None
    assert detection.interval == seconds


@pytest.mark.parametrize("raw", ["1m", "10", 10, "10ms", "-1s"])
def test_protobuf_durations_are_seconds_only(raw: object) -> None:
    with pytest.raises(ValidationError, match=r"is not a duration in seconds|has no unit"):
        Settings.model_validate({"routes": [{"outlier_detection": {"interval": raw}}]})


def test_null_means_unset() -> None:
    settings = Settings.model_validate({"address": None, "routes": [{"from": "a", "prefix": None}]})
    assert settings.address == ":443"
    assert settings.routes[0].prefix == ""


def test_scalars_become_text() -> None:
    assert value("idp_client_id", 12345) == "12345"
    assert refusal("idp_client_id", ["a"])[0] == "is a list"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().address = ":1"  # type: ignore[misc]


def test_every_key_says_what_it_means() -> None:
    todo: list[type[BaseModel]] = [Settings]
    seen: set[type[BaseModel]] = set()
    while todo:
        model = todo.pop()
        seen.add(model)
        for name, info in model.model_fields.items():
            assert info.description, (model.__name__, name)
        todo.extend(inner for inner in fields_of(model).values() if inner and inner not in seen)
    assert len(seen) > 15


def test_shown_values_are_short_and_hold_no_password() -> None:
    assert shorten("https://me:hunter2@host/x") == "'https://host/x'"
    assert len(shorten("x" * 1000)) < 70
    assert "\n" not in shorten("a\nb")
