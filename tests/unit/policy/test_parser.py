"""What a policy may look like, and what is said about one that may not."""

from __future__ import annotations

import datetime as dt

import pytest

from gatehouse.common.policy.ast import (
    Criterion,
    FrozenObject,
    Policy,
    Rule,
    canonical,
    freeze,
    same,
)
from gatehouse.common.policy.parser import PolicyError, parse_policy


def criterion(name: str, data: object = True, sub_path: str = "") -> Criterion:
    return Criterion(name, sub_path, freeze(data))


def problems(value: object) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(PolicyError) as caught:
        parse_policy(value)
    return [(problem.path, problem.message) for problem in caught.value.problems]


def test_one_object_holds_allow_before_deny() -> None:
    policy = parse_policy(
        {"deny": {"or": [{"reject": 1}]}, "allow": {"nor": [{"accept": 1}], "action": "ignored"}}
    )
    assert policy == Policy(
        (
            Rule("allow", nor=(criterion("accept", 1),)),
            Rule("deny", or_=(criterion("reject", 1),)),
        )
    )


def test_arrays_keep_their_order_and_repeated_actions() -> None:
    policy = parse_policy(
        [{"allow": {"or": [{"user": "a"}]}}, {"allow": {"not": [{"user": "b"}]}}, {}]
    )
    assert [rule.action for rule in policy.rules] == ["allow", "allow"]
    assert policy.rules[0].or_ == (criterion("user", "a"),)
    assert policy.rules[1].not_ == (criterion("user", "b"),)


@pytest.mark.parametrize("value", [{}, [], [{}]])
def test_empty_forms_say_nothing(value: object) -> None:
    assert parse_policy(value) == Policy()


def test_empty_bodies_keep_their_rule() -> None:
    assert parse_policy({"allow": {"and": []}}) == Policy((Rule("allow"),))


def test_sub_paths_end_at_the_first_slash() -> None:
    policy = parse_policy({"allow": {"or": [{"claim/example.com/key": "x"}]}})
    assert policy.rules[0].or_ == (criterion("claim", "x", "example.com/key"),)
    assert policy.rules[0].or_[0].key == "claim/example.com/key"


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        (None, (), "unsupported type for rule: null"),
        ("allow", (), "unsupported type for rule: string"),
        (True, (), "unsupported type for rule: boolean"),
        ([1], (0,), "unsupported type for rules array: number"),
        ({"permit": {}}, ("permit",), "invalid action in rule: unsupported action: permit"),
        ({"Allow": {}}, ("Allow",), "invalid action in rule: unsupported action: Allow"),
        ({"allow": []}, ("allow",), "invalid value for action in rule, expected Object, got array"),
        ({"allow": None}, ("allow",), "invalid value for action in rule, expected Object"),
        (
            {"allow": {"xor": []}},
            ("allow", "xor"),
            'unsupported conditional "xor", only and, or, not, nor and action are allowed',
        ),
        (
            {"allow": {"and": None}},
            ("allow", "and"),
            'invalid criteria in "and"): unsupported type for criteria: null',
        ),
        (
            {"allow": {"or": ["accept"]}},
            ("allow", "or", 0),
            'invalid criteria in "or"): unsupported type for criteria array: string',
        ),
        (
            {"deny": {"or": [{}]}},
            ("deny", "or", 0),
            'invalid criteria in "or"): each criteria may only contain a single key and value',
        ),
        (
            {"deny": {"or": [{"user": "a", "email": "b"}]}},
            ("deny", "or", 0),
            'invalid criteria in "or"): each criteria may only contain a single key and value',
        ),
    ],
)
def test_structure_errors(value, path, message) -> None:
    ((found_path, found),) = problems(value)
    assert found_path == path
    assert found.startswith(f"invalid rules in policy: {message}")


@pytest.mark.parametrize(
    ("key", "data", "message"),
    [
        ("pomerium_routes", True, "unknown policy criterion: pomerium_routes"),
        ("Email", "a", "unknown policy criterion: Email"),
        ("email", {"matches": "a"}, "unknown string matcher operator: matches"),
        ("groups", {"in": ["a"]}, "unknown string list matcher operator: in"),
        ("claim/x", {"starts_with": "a"}, "unknown string list matcher operator: starts_with"),
        ("user", {"in": "a"}, "in matcher requires an array of strings"),
        ("user", {"not_in": "a"}, "not_in matcher requires an array of strings"),
        ("http_path", {"starts_with": 1}, "starts_with matcher requires a string"),
        ("http_path", {"contains": ["a"]}, "contains matcher requires a string"),
        ("domain", 1, "is matcher requires a string here"),
        ("domain", ["a.b"], "is matcher requires a string here, got array; use in"),
        ("domain", {"not": None}, "not matcher requires a string here"),
        ("source_ip", 1, "expected string or array of strings, got: number"),
        ("source_ip", ["10.0.0.1", 1], "expected string value, got: number"),
        ("source_ip", "10.0.0.256", 'expected IP or CIDR range, got: "10.0.0.256"'),
        ("source_ip", "10.0.0.0/255.0.0.0", "expected IP or CIDR range"),
        ("source_ip", "fe80::1%eth0", "expected IP or CIDR range"),
        ("source_ip", "10.0.0.0/33", "expected IP or CIDR range"),
        ("source_ip", " 10.0.0.1", "expected IP or CIDR range"),
        ("client_certificate", "x", "expected object for certificate matcher, got: string"),
        (
            "client_certificate",
            {"issuer": "x"},
            "unsupported certificate matcher condition: issuer",
        ),
        (
            "client_certificate",
            {"fingerprint": 1},
            "certificate fingerprint condition expects a string or array of strings",
        ),
        (
            "client_certificate",
            {"fingerprint": [1]},
            "certificate fingerprint must be a string (was number)",
        ),
        (
            "client_certificate",
            {"fingerprint": ""},
            "certificate fingerprint must not be empty",
        ),
        (
            "client_certificate",
            {"fingerprint": "AB" * 32},
            "unsupported certificate fingerprint format",
        ),
        (
            "client_certificate",
            {"spki_hash": "YQ=="},
            "certificate SPKI hash must be a base64-encoded SHA-256 hash (was YQ==)",
        ),
        ("client_certificate", {"san_dns": {"not_in": ["x"]}}, "not_in cannot be used"),
        ("device", "x", "expected object for device criterion, got: string"),
        ("device", {"os": "x"}, "unexpected field in device criterion: os"),
        ("device", {"is": 1}, "expected string for device criterion is operator"),
        ("mcp_tool", {"like": "x"}, "unknown string matcher operator: like"),
        ("ssh_username_matches_claim", 1, "expected string value, got: number"),
        ("ssh_publickey", 1, "expected string or array of strings"),
        ("ssh_publickey", [1], "expected string value, got: number"),
        ("ssh_publickey", "ssh-ed25519 AAAA", "not an SSH public key"),
        ("ssh_publickey", "ssh-ed25519", "not an SSH public key"),
        ("ssh_ca", "ssh-rsa !", "not an SSH public key"),
        ("ssh_ca", ["", "x"], "not an SSH public key"),
        ("ssh_ca", "ssh-rsa A\nssh-rsa B", "holds several lines"),
        ("date", {"since": "2024-01-01"}, "unexpected field in date criterion: since"),
        ("date", {}, "date needs after or before"),
        ("date", {"after": 2024}, "expected an ISO 8601 date"),
        ("date", {"after": "2024-02-30"}, 'not a date: "2024-02-30"'),
        ("date", {"after": "2024-1-1"}, 'not a date: "2024-1-1"'),
        ("date", {"after": "2024-01-02", "before": "2024-01-02"}, "date is never true"),
        ("date", {"after": "2024-01-02", "timezone": "Mars/Olympus"}, "unknown time zone"),
        ("time_of_day", {"after": "9 AM"}, "time_of_day needs timezone"),
        ("time_of_day", {"timezone": "UTC"}, "time_of_day needs after or before"),
        ("time_of_day", {"timezone": "UTC", "after": 900}, "expected a time such as"),
        ("time_of_day", {"timezone": "UTC", "after": "24:00"}, 'not a time of day: "24:00"'),
        ("time_of_day", {"timezone": "UTC", "after": "13 PM"}, 'not a time of day: "13 PM"'),
        ("time_of_day", {"timezone": "UTC", "after": "0:30 AM"}, "not a time of day"),
        ("time_of_day", {"timezone": "../UTC", "after": "9:00"}, "unknown time zone"),
        ("time_of_day", {"timezone": "localtime", "after": "9:00"}, "unknown time zone"),
        ("time_of_day", {"timezone": "right/UTC", "after": "9:00"}, "unknown time zone"),
        ("time_of_day", {"timezone": "America", "after": "9:00"}, "unknown time zone"),
        ("time_of_day", {"timezone": "UTC", "after": "9:00", "before": "9 AM"}, "time_of_day with"),
        ("day_of_week", "", 'not a day of the week: ""'),
        ("day_of_week", "mon,", 'not a day of the week: ""'),
        ("day_of_week", "mon-fri-sun", 'not a day of the week: "mon-fri-sun"'),
        ("day_of_week", "tues", 'not a day of the week: "tues"'),
        ("day_of_week", ["mon"], "expected"),
        ("day_of_week", {"timezone": "UTC"}, "day_of_week needs days"),
        ("record", {"type": "x"}, "record needs field"),
        ("record", {"type": "x", "field": "f"}, "record needs an operator"),
        ("record", {"type": "x", "field": "f", "like": 1}, "unknown record operator: like"),
        ("record", {"type": "x", "field": "f", ">": "1"}, "> requires a number, got string"),
        ("record", {"type": "x", "field": "f", "<": True}, "< requires a number, got boolean"),
        ("record", {"type": "x", "field": "f", "exists": 1}, "expected true or false"),
        ("record", {"type": "x", "field": "f", "exists": False, "is": 1}, "record is never true"),
        ("record", {"type": "x", "field": "f", "foreign_key": "ip", "is": 1}, "expected one of"),
        (
            "record",
            {"type": "type.googleapis.com/session.Session", "field": "id", "exists": True},
            "record cannot read records of type",
        ),
    ],
)
def test_criterion_errors(key, data, message) -> None:
    ((path, found),) = problems({"allow": {"or": [{"accept": 1}, {key: data}]}})
    assert path[:4] == ("allow", "or", 1, key)
    assert found.startswith(message)


def test_all_mistakes_are_reported_at_once() -> None:
    found = problems([{"allow": {"or": [{"a": 1}, {"b": 1}], "if": []}}, {"x": {}}, 3])
    assert [path for path, _ in found] == [
        (0, "allow", "if"),
        (0, "allow", "or", 0, "a"),
        (0, "allow", "or", 1, "b"),
        (1, "x"),
        (2,),
    ]


def test_an_error_tells_its_place_in_words() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy([{"allow": {"or": [{"user": {"in": 3}}]}}])
    assert str(caught.value).startswith("[0].allow.or[0].user.in: in matcher requires an array")
    assert caught.value.below("routes", 4).path[:3] == ("routes", 4, 0)


def test_data_keeps_its_types() -> None:
    data = freeze({"a": [1, True, None, 1.5, "x"], "d": dt.date(2024, 2, 3), 7: {}})
    assert data == FrozenObject(
        {"a": (1, True, None, 1.5, "x"), "d": "2024-02-03", "7": FrozenObject({})}
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"x", {(1,): 2}, {1, 2}])
def test_data_is_what_json_can_hold(value) -> None:
    with pytest.raises(PolicyError):
        freeze(value)


def test_endless_nesting_is_refused() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(PolicyError, match="nested too deeply"):
        freeze(value)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        ("1", 1, False),
        (None, False, False),
        ((1, 2), (1, 2), True),
        ((1, True), (1, 1), False),
        (FrozenObject({"a": 1}), FrozenObject({"a": 1}), True),
        (FrozenObject({"a": 1}), FrozenObject({"a": True}), False),
    ],
)
def test_equality_is_by_type_and_value(left, right, equal) -> None:
    assert same(left, right) is equal
    assert same(right, left) is equal


def test_policies_that_differ_only_in_type_are_different() -> None:
    one, true = (parse_policy({"allow": {"or": [{"claim/a": v}]}}) for v in (1, True))
    assert one != true
    assert len({one, true}) == 2
    assert canonical(one) != canonical(true)


def test_the_canonical_form_is_frozen() -> None:
    """It is part of the route checksum: two versions must agree on it while both run."""
    policy = parse_policy(
        [
            {"allow": {"or": [{"claim/a/b": {"has": "ü"}}], "and": [{"user": "x"}]}},
            {"deny": {"nor": [{"source_ip": ["10.0.0.0/8"]}]}},
        ]
    )
    assert canonical(policy) == (
        b'[["allow",[["and",[["user","","x"]]],["or",[["claim","a/b",{"has":"\\u00fc"}]]]]],'
        b'["deny",[["nor",[["source_ip","",["10.0.0.0/8"]]]]]]]'
    )
