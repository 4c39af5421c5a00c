"""The audit line: which fields, and what never."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Sequence

import pytest

from gatehouse.authorize.core.check_request import MCPRequest, read_check_request
from gatehouse.authorize.core.evaluator import Evaluation, Verdict
from gatehouse.authorize.edge.authorize_log import AuthorizeLog, Line
from gatehouse.common.config.model import AUTHORIZE_LOG_FIELDS
from gatehouse.common.observability.logging import configure_logging
from tests.support.check import SECRET, check_request, handle_token
from tests.support.policy import NOW_S, example_identity

EVALUATION = Evaluation(
    Verdict(value=True, reasons=frozenset({"b", "a"})), Verdict(value=False, reasons=frozenset())
)


def line(who: str = "s1", mcp: MCPRequest | None = None, **request) -> Line:
    facts = read_check_request(check_request(**request), NOW_S)
    facts.mcp = mcp
    return Line(facts, example_identity(who), None, EVALUATION, (5, 6), NOW_S)


def authorize_log(fields: Sequence[str]) -> AuthorizeLog:
    calls = itertools.count(1)
    return AuthorizeLog(fields, lambda: f"call-{next(calls)}")


def test_fields_come_in_the_order_asked_for_and_the_verdict_last() -> None:
    values = authorize_log(("query", "path", "user")).values(line(path="/a?b=c"))
    assert list(values.items()) == [
        ("query", "b=c"),
        ("path", "/a"),
        ("user", "u1"),
        ("allow", True),
        ("allow-why-true", ["a", "b"]),
        ("deny", False),
        ("deny-why-false", []),
    ]


def test_the_default_adds_the_versions_of_the_data() -> None:
    values = authorize_log(AUTHORIZE_LOG_FIELDS).values(line())
    assert values["databroker-server-version"] == 5
    assert values["databroker-record-version"] == 6
    assert "databroker-record-version" not in authorize_log(("path",)).values(line())


def test_groups_that_were_kept_back_are_counted_where_there_are_any() -> None:
    log = authorize_log(("removed-groups-count",))
    assert "removed-groups-count" not in log.values(line())
    assert log.values(dataclasses.replace(line(), removed_groups=2))["removed-groups-count"] == 2


def test_the_call_and_the_request_it_is_about_have_ids_of_their_own() -> None:
    log = authorize_log(("request-id", "check-request-id"))
    ids = ("request-id", "check-request-id")
    sent = line(headers={"x-request-id": "user-1"})
    for call in ("call-1", "call-2"):
        values = log.values(sent)
        assert [values[name] for name in ids] == [call, "user-1"]
    assert authorize_log(("request-id",)).unknown == []


@pytest.mark.parametrize(
    ("who", "present", "absent"),
    [
        ("s1", {"session-id": "s1", "user": "u1"}, {"service-account-id", "impersonate-email"}),
        ("sa1", {"service-account-id": "sa1", "user": "u1"}, {"session-id"}),
        ("nobody", {"user": "", "email": ""}, {"session-id", "service-account-id"}),
        (
            "imp",
            {
                "session-id": "imp",
                "user": "boss",
                "email": "boss@example.com",
                "impersonate-session-id": "s1",
                "impersonate-user-id": "u1",
                "impersonate-email": "a@example.com",
            },
            {"service-account-id"},
        ),
    ],
)
def test_fields_that_do_not_apply_are_left_out(who, present, absent) -> None:
    values = authorize_log(AUTHORIZE_LOG_FIELDS).values(line(who))
    assert present.items() <= values.items()
    assert not absent & values.keys()


def test_r25_credentials_never_show_in_headers() -> None:
    secrets = {
        "cookie": "_pomerium=x",
        "authorization": "Bearer x",
        "x-pomerium-authorization": "x",
    }
    sent = line(headers={**secrets, "accept": "text/plain", "x": "y"})
    chosen = authorize_log(("headers.Cookie", "headers.Accept", "headers.X-None")).values(sent)
    assert chosen["headers"] == {"Cookie": "[redacted]", "Accept": "text/plain", "X-None": ""}
    headers = authorize_log(("headers",)).values(sent)["headers"]
    assert isinstance(headers, dict)
    assert {headers[name] for name in secrets} == {"[redacted]"}
    assert headers["x"] == "y"
    both = authorize_log(("headers", "headers.Accept")).values(sent)["headers"]
    assert both == {**headers, "Accept": "text/plain"}


def test_mcp_fields_are_there_on_mcp_requests_alone() -> None:
    log = authorize_log(("mcp-method", "mcp-tool", "mcp-tool-parameters"))
    names = ("mcp-method", "mcp-tool", "mcp-tool-parameters")
    assert not set(names) & log.values(line()).keys()
    call = log.values(line(mcp=MCPRequest("tools/call", "drop")))
    assert [call.get(name) for name in names] == ["tools/call", "drop", None]
    listing = log.values(line(mcp=MCPRequest("tools/list")))
    assert [listing.get(name) for name in names] == ["tools/list", None, None]
    assert log.unknown == []


def test_unknown_fields_are_reported_and_ignored() -> None:
    log = authorize_log(("path", "nonsense", "headers.", "body", "mcp-tool"))
    assert log.unknown == ["nonsense", "headers."]
    assert "path" in log.values(line())


def test_a_line_is_one_json_object_whatever_the_client_sends() -> None:
    """R24: forged lines and secrets in free text stay inside, or out."""
    stream = io.StringIO()
    configure_logging("info", stream=stream)
    try:
        secret = handle_token(SECRET, "s1")
        evil = f'/x\n{{"message": "forged"}}\x1b[0m;{secret}'
        authorize_log(AUTHORIZE_LOG_FIELDS).write(line(path=evil, host='a"b\n'))
    finally:
        configure_logging("info")
    (text,) = stream.getvalue().splitlines()
    found = json.loads(text)
    assert found["message"] == "authorize check"
    assert found["service"] == "authorize"
    assert found["level"] == "info"
    assert found["time"] == "2027-01-15T08:00:00Z"
    assert found["path"].startswith('/x\n{"message"')
    assert secret not in text


def test_no_line_is_written_below_its_level() -> None:
    stream = io.StringIO()
    configure_logging("error", stream=stream)
    try:
        authorize_log(AUTHORIZE_LOG_FIELDS).write(line())
    finally:
        configure_logging("info")
    assert stream.getvalue() == ""
