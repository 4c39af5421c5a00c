"""The audit line: which fields, and what never."""

from __future__ import annotations

import io
import json

import pytest

from gatehouse.authorize.core.check_request import read_check_request
from gatehouse.authorize.core.evaluator import Evaluation, Verdict
from gatehouse.authorize.edge.authorize_log import AuthorizeLog, Line
from gatehouse.common.config.model import AUTHORIZE_LOG_FIELDS
from gatehouse.common.observability.logging import configure_logging
from tests.support.check import SECRET, check_request, handle_token
from tests.support.policy import NOW_S, example_identity

EVALUATION = Evaluation(
    Verdict(value=True, reasons=frozenset({"b", "a"})), Verdict(value=False, reasons=frozenset())
)


def line(who: str = "s1", **request) -> Line:
    facts = read_check_request(check_request(**request), NOW_S)
    return Line(facts, example_identity(who), None, EVALUATION, (5, 6), NOW_S)


def test_fields_come_in_the_order_asked_for_and_the_verdict_last() -> None:
    values = AuthorizeLog(("query", "path", "user")).values(line(path="/a?b=c"))
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
    values = AuthorizeLog(AUTHORIZE_LOG_FIELDS).values(line())
    assert values["databroker-server-version"] == 5
    assert values["databroker-record-version"] == 6
    assert "databroker-record-version" not in AuthorizeLog(("path",)).values(line())


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
    values = AuthorizeLog(AUTHORIZE_LOG_FIELDS).values(line(who))
    assert present.items() <= values.items()
    assert not absent & values.keys()


def test_r25_credentials_never_show_in_headers() -> None:
    secrets = {
        "cookie": "_pomerium=x",
        "authorization": "Bearer x",
        "x-pomerium-authorization": "x",
    }
    fields = ("headers", "headers.Cookie", "headers.authorization", "headers.Accept")
    values = AuthorizeLog(fields).values(line(headers={**secrets, "accept": "text/plain"}))
    assert values["headers.Accept"] == "text/plain"
    assert values["headers.Cookie"] == "[redacted]"
    headers = values["headers"]
    assert isinstance(headers, dict)
    assert {headers[name] for name in secrets} == {"[redacted]"}


def test_unknown_fields_are_reported_and_ignored() -> None:
    log = AuthorizeLog(("path", "nonsense", "headers.", "body", "mcp-tool"))
    assert log.unknown == ["nonsense", "headers."]
    assert "path" in log.values(line())


def test_a_line_is_one_json_object_whatever_the_client_sends() -> None:
    """R24: forged lines and secrets in free text stay inside, or out."""
    stream = io.StringIO()
    configure_logging("info", stream=stream)
    try:
        secret = handle_token(SECRET, "s1")
        evil = f'/x\n{{"message": "forged"}}\x1b[0m;{secret}'
        AuthorizeLog(AUTHORIZE_LOG_FIELDS).write(line(path=evil, host='a"b\n'))
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
        AuthorizeLog(AUTHORIZE_LOG_FIELDS).write(line())
    finally:
        configure_logging("info")
    assert stream.getvalue() == ""
