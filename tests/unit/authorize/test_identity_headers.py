"""What upstreams are told about who asks."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.authorize.core.claims import claim_text
from gatehouse.authorize.core.identity import ANONYMOUS
from gatehouse.authorize.core.identity_headers import (
    RENEW_AFTER_S,
    Tokens,
    request_headers,
    told_groups,
)
from gatehouse.authorize.core.route_plan import compile_plans
from gatehouse.common.config.header_templates import Reference, Source, parse_template
from gatehouse.common.jose.keys import SigningKey, derive_signing_key, jwks, sign_jwt, verify_jwt
from tests.support.check import (
    SECRET,
    Desk,
    check_request,
    is_allowed,
    resolved_settings,
    route,
    set_headers,
)
from tests.support.clock import SeededRng
from tests.support.policy import (
    NOW_S,
    World,
    directory_group_record,
    directory_user_record,
    policy_of,
    request_facts,
    session_record,
    user_record,
)

KEY = derive_signing_key(SECRET)
OTHER_KEY = derive_signing_key(b"x" * 32)
PUBLIC = policy_of("allow: {or: [{accept: true}]}")
ASSERTION = "x-pomerium-jwt-assertion"

WORLD = World(
    session_record(
        "s1",
        "u1",
        claims={
            "name": ["Ann"],
            "dept": ["session"],
            "level": [7],
            "big": [1_700_000_000],
            "nested": [["x"], "y", None, {"z": 1}],
            "bad": ["a\r\nx-evil: 1"],
            "email": ["claim@example.com"],
        },
    ),
    user_record("u1", "ann@example.com", claims={"dept": ["user"], "only": ["user"]}),
    directory_user_record("u1", group_ids=["g1", "g2"]),
    directory_group_record("g1", "Admins"),
)


def desk(world: World = WORLD, route_keys=None, rng: SeededRng | None = None, **keys) -> Desk:
    route_keys = {"pass_identity_headers": True} | (route_keys or {})
    return Desk(resolved_settings(route(PUBLIC, **route_keys), **keys), world, rng)


def claims_of(response) -> dict[str, Any]:
    return verify_jwt(set_headers(response)[ASSERTION], [KEY])


def test_the_assertion_says_who_asks() -> None:
    one = desk()
    claims = claims_of(one.check(headers=one.cookie("s1"), host="app.example.com:8443"))
    token_id = claims.pop("jti")
    assert len(token_id) == 36
    assert claims == {
        "iss": "app.example.com",
        "aud": "app.example.com",
        "iat": NOW_S,
        "exp": NOW_S + 300,
        "sub": "u1",
        "user": "u1",
        "email": "ann@example.com",
        "groups": ["g1", "g2", "Admins"],
        "sid": "s1",
        "name": "Ann",
    }


def test_anonymous_requests_get_an_assertion_with_an_empty_identity() -> None:
    claims = claims_of(desk().check())
    assert (claims["sub"], claims["email"], claims["groups"], claims["sid"]) == ("", "", [], "")


def test_the_issuer_may_be_a_url() -> None:
    for keys in (
        {"jwt_issuer_format": "uri"},
        {"route_keys": {"jwt_issuer_format": "uri"}},
    ):
        assert claims_of(desk(**keys).check())["iss"] == "https://app.example.com/"


def test_claims_are_sent_as_headers_and_added_to_the_assertion() -> None:
    one = desk(
        jwt_claims_headers={
            "X-Dept": "dept",
            "X-Email": "email",
            "X-Groups": "groups",
            "X-Big": "big",
            "X-Missing": "missing",
            "X-Nested": "nested",
            "X-Only": "only",
        }
    )
    response = one.check(headers={**one.cookie("s1"), "x-missing": "forged"})
    headers = set_headers(response)
    assert headers.pop(ASSERTION)
    assert headers == {
        "x-dept": "session",  # here session beats user; in policy it is the other way round
        "x-email": "ann@example.com",
        "x-groups": "g1,g2,Admins",
        "x-big": "1.7e+09",
        "x-missing": "",
        "x-nested": "y",
        "x-only": "user",
    }
    claims = claims_of(response)
    assert (claims["dept"], claims["big"], claims["only"]) == ("session", "1.7e+09", "user")
    assert "missing" not in claims


def test_headers_are_sorted_and_overwrite() -> None:
    response = desk(jwt_claims_headers={"b": "x", "a": "y"}).check()
    names = [option.header.key for option in response.ok_response.headers]
    assert names == sorted(names)
    assert {option.append_action for option in response.ok_response.headers} == {2}


def test_r15_claims_cannot_smuggle_headers() -> None:
    one = desk(jwt_claims_headers={"x-bad": "bad"})
    assert set_headers(one.check(headers=one.cookie("s1")))["x-bad"] == "a  x-evil: 1"


def test_r15_without_identity_headers_the_clients_own_are_removed() -> None:
    one = desk(route_keys={"pass_identity_headers": False}, jwt_claims_headers={"X-Email": "email"})
    response = one.check(headers={**one.cookie("s1"), "x-email": "forged"})
    assert set_headers(response) == {}
    assert list(response.ok_response.headers_to_remove) == ["x-email"]


def test_the_global_default_counts_when_the_route_says_nothing() -> None:
    policy_route = route(PUBLIC)
    on = Desk(resolved_settings(policy_route, pass_identity_headers=True))
    off = Desk(resolved_settings(policy_route))
    assert ASSERTION in set_headers(on.check())
    assert ASSERTION not in set_headers(off.check())


def test_one_assertion_serves_a_session_for_a_renewal_period() -> None:
    one = desk()
    cookie = one.cookie("s1")
    first = set_headers(one.check(headers=cookie))[ASSERTION]
    one.now_s += RENEW_AFTER_S - 1
    assert set_headers(one.check(headers=cookie, path="/other"))[ASSERTION] == first
    assert set_headers(one.check(headers=cookie, host="b.example.com"))[ASSERTION] != first
    one.now_s += 1
    renewed = set_headers(one.check(headers=cookie))[ASSERTION]
    assert renewed != first
    assert verify_jwt(renewed, [KEY])["exp"] == int(one.now_s) + 300
    one.now_s -= 30  # the clock was set back
    assert verify_jwt(set_headers(one.check(headers=cookie))[ASSERTION], [KEY])["iat"] <= one.now_s


class CountingRng(SeededRng):
    """Each signature takes one new id."""

    signed = 0

    def uuid4(self) -> str:
        self.signed += 1
        return super().uuid4()


def signatures(one: Desk, requests: list[dict[str, Any]]) -> int:
    """How many signatures these requests cost."""
    assert isinstance(one.rng, CountingRng)
    before = one.rng.signed
    for request in requests:
        assert is_allowed(one.check(**request))
    return one.rng.signed - before


def test_how_often_is_signed() -> None:
    """Once for each session, audience and renewal period; never where nobody looks."""
    world = World(*(session_record(f"s{n}", f"u{n}") for n in range(3)))
    one = desk(world, rng=CountingRng())
    requests: list[dict[str, Any]] = [
        {"headers": one.cookie(f"s{n % 3}"), "host": f"{'ab'[n % 2]}.example.com", "path": f"/{n}"}
        for n in range(60)
    ]
    assert signatures(one, requests) == 6
    one.now_s += RENEW_AFTER_S - 1
    assert signatures(one, requests) == 0
    one.now_s += 1
    assert signatures(one, requests) == 6

    unseen = desk(world, rng=CountingRng(), route_keys={"pass_identity_headers": False})
    assert signatures(unseen, requests) == 0
    assert signatures(unseen, [{"internal": True, "host": f"h{n}.x"} for n in range(9)]) == 0
    template = {"pass_identity_headers": False, "set_request_headers": {"X-T": "$pomerium.jwt"}}
    seen = desk(world, rng=CountingRng(), route_keys=template)
    assert signatures(seen, requests) == 6


def test_the_first_key_signs_and_every_key_is_believed() -> None:
    """What is published meanwhile is test_public_documents' to show."""
    old = desk(WORLD, signing_keys=(OTHER_KEY,))
    token = set_headers(old.check(headers=old.cookie("s1")))[ASSERTION]
    rotated = desk(WORLD, signing_keys=(KEY, OTHER_KEY))
    fresh = set_headers(rotated.check(headers=rotated.cookie("s1")))[ASSERTION]
    assert jwt.get_unverified_header(token)["kid"] == OTHER_KEY.kid
    assert jwt.get_unverified_header(fresh)["kid"] == KEY.kid
    published = jwt.PyJWKSet.from_dict(jwks((KEY, OTHER_KEY)))
    for one in (token, fresh):
        key = published[jwt.get_unverified_header(one)["kid"]]
        options: Any = {"verify_exp": False, "verify_aud": False, "verify_iat": False}
        assert jwt.decode(one, key, ["ES256"], options=options)["sub"] == "u1"
    name = "x-pomerium-jwt-assertion-for"
    assert set_headers(rotated.check(client_assertion=token))[name] == token
    dropped = desk(WORLD, signing_keys=(KEY,))
    assert name not in set_headers(dropped.check(client_assertion=token))


def test_r43_a_changed_record_changes_the_next_assertion() -> None:
    world = World(session_record("s1", "u1"), user_record("u1", "old@example.com"))
    one = desk(world)
    assert claims_of(one.check(headers=one.cookie("s1")))["email"] == "old@example.com"
    record = user_record("u1", "new@example.com")
    world.records[record.type, "u1"] = record
    assert claims_of(one.check(headers=one.cookie("s1")))["email"] == "new@example.com"


def test_sessions_do_not_share_assertions() -> None:
    world = World(session_record("s1", "u1"), session_record("s2", "u2"))
    one = desk(world)
    for _ in range(2):
        assert claims_of(one.check(headers=one.cookie("s1")))["sub"] == "u1"
        assert claims_of(one.check(headers=one.cookie("s2")))["sub"] == "u2"


def test_impersonation_shows_the_other_person_under_the_real_session_id() -> None:
    world = World(
        session_record("imp", "boss", impersonate="s1"),
        session_record("s1", "u1"),
        user_record("u1", "ann@example.com"),
        user_record("boss", "boss@example.com"),
    )
    one = desk(world)
    answer = one.check(headers=one.cookie("imp"))
    claims = claims_of(answer)
    assert (claims["sub"], claims["email"], claims["sid"]) == ("u1", "ann@example.com", "imp")
    assert answer.dynamic_metadata["user"] == "boss"


@pytest.mark.parametrize(
    ("directory", "email"),
    [({"email": "d@x.y"}, "d@x.y"), ({"email": ""}, ""), ({}, "u@x.y")],
)
def test_the_directorys_email_wins_even_when_it_is_empty(directory, email) -> None:
    world = World(
        session_record("s1", "u1"),
        user_record("u1", "u@x.y"),
        directory_user_record("u1", **directory),
    )
    one = desk(world)
    assert claims_of(one.check(headers=one.cookie("s1")))["email"] == email


def test_without_directory_groups_the_sessions_claim_is_used() -> None:
    world = World(session_record("s1", "u1", claims={"groups": ["x", "y"]}))
    one = desk(world)
    assert claims_of(one.check(headers=one.cookie("s1")))["groups"] == ["x", "y"]


@pytest.mark.parametrize("groups", ["g1", None, [["g1"]], {"g1": True}, [None], [1]])
def test_r42_groups_in_another_shape_are_no_groups(groups) -> None:
    world = World(session_record("s1", "u1"), directory_user_record("u1", group_ids=groups))
    settings = resolved_settings(route(policy_of("allow: {or: [{groups: g1}]}")))
    one = Desk(settings, world)
    assert not is_allowed(one.check(headers=one.cookie("s1")))


def test_r42_a_group_rule_without_a_directory_denies() -> None:
    world = World(session_record("s1", "u1", claims={"groups": ["g1"]}))
    settings = resolved_settings(route(policy_of("allow: {or: [{groups: g1}]}")))
    one = Desk(settings, world)
    assert not is_allowed(one.check(headers=one.cookie("s1")))


def test_a_clients_assertion_is_handed_on_only_if_it_is_ours() -> None:
    one = desk()
    ours = sign_jwt({"sub": "x", "exp": int(NOW_S) + 10, "iat": int(NOW_S)}, KEY)
    expired = sign_jwt({"sub": "x", "exp": int(NOW_S), "iat": int(NOW_S) - 10}, KEY)
    forged = sign_jwt({"sub": "x", "exp": int(NOW_S) + 10}, OTHER_KEY)
    name = "x-pomerium-jwt-assertion-for"
    assert set_headers(one.check(client_assertion=ours))[name] == ours
    for bad in (expired, forged, "x", "x" * 20_000):
        assert name not in set_headers(one.check(client_assertion=bad))
    closed = desk(route_keys={"pass_identity_headers": False})
    assert name not in set_headers(closed.check(client_assertion=ours))


def test_signing_errors_reach_no_upstream() -> None:
    broken = SigningKey("ES256", "kid", object())  # type: ignore[arg-type]
    one = Desk(
        resolved_settings(route(PUBLIC, pass_identity_headers=True), signing_keys=(broken,)), WORLD
    )
    with pytest.raises(Exception, match=r".+"):
        one.check()
    unused = Desk(resolved_settings(route(PUBLIC), signing_keys=(broken,)), WORLD)
    assert is_allowed(unused.check())


def test_set_request_headers_are_filled_in() -> None:
    one = desk(
        route_keys={
            "pass_identity_headers": False,
            "set_request_headers": {
                "X-Plain": "a$$b",
                "X-Agent": 'ua=${pomerium.request.headers["User-Agent"]}',
                "X-Token": "Bearer $pomerium.jwt",
                "X-Unknown": "<${pomerium.nothing}>",
            },
        }
    )
    headers = set_headers(one.check(headers={"user-agent": "curl$pomerium.jwt"}))
    assert headers["x-plain"] == "a$b"
    assert headers["x-agent"] == "ua=curl$pomerium.jwt"
    assert verify_jwt(headers["x-token"].removeprefix("Bearer "), [KEY])["aud"] == "app.example.com"
    assert headers["x-unknown"] == "<>"
    assert ASSERTION not in headers


def test_headers_that_read_the_request_are_not_remembered() -> None:
    one = desk(route_keys={"set_request_headers": {"x-a": '${pomerium.request.headers["X-B"]}'}})
    assert set_headers(one.check(headers={"x-b": "1"}))["x-a"] == "1"
    assert set_headers(one.check(headers={"x-b": "2"}))["x-a"] == "2"


def test_tokens_are_filled_in_where_they_are_asked_for() -> None:
    plans = compile_plans(
        resolved_settings(
            route(
                PUBLIC,
                set_request_headers={
                    "a": "${pomerium.access_token}",
                    "b": "${pomerium.id_token}",
                },
            )
        )
    )
    plan = plans.routes["0123456789abcdef"]
    assert plan.needs_tokens
    assert not plan.needs_assertion
    tokens = Tokens("at", "it")
    headers = request_headers(plan.headers, ANONYMOUS, request_facts(), None, tokens)
    assert headers == [("a", "at"), ("b", "it")]
    assert "at" not in repr(tokens)


def test_repeated_names_are_joined() -> None:
    one = desk(
        route_keys={"set_request_headers": {"X-Email": "second"}},
        jwt_claims_headers={"x-email": "email"},
    )
    headers = set_headers(one.check(headers=one.cookie("s1")))
    assert headers["x-email"] == "ann@example.com,second"


def test_hashing_balancers_get_a_key_that_hides_the_session() -> None:
    one = desk(route_keys={"load_balancing_policy": "MAGLEV", "pass_identity_headers": False})
    key = set_headers(one.check(headers=one.cookie("s1")))["x-pomerium-routing-key"]
    assert key == hashlib.sha256(b"s1").hexdigest()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("plain", ("plain",)),
        ("$$", ("$",)),
        ("$pomerium.jwt", (Reference(Source.JWT),)),
        ("${ pomerium . jwt }", (Reference(Source.JWT),)),
        ('${pomerium["jwt"]}', (Reference(Source.JWT),)),
        ("$pomerium.jwt.", (Reference(Source.JWT), ".")),
        ("${pomerium.jwt", ("${pomerium.jwt",)),
        ("$", ("$",)),
        ("$1", ("$1",)),
        ("${}", ("${}",)),
        ("$a", (Reference(Source.NOTHING),)),
        (
            '${pomerium.request.headers["X-\\"A"]}',
            (Reference(Source.REQUEST_HEADER, 'x-"a'),),
        ),
        ("${pomerium.request.headers.Accept}", (Reference(Source.REQUEST_HEADER, "accept"),)),
    ],
)
def test_templates(text, parts) -> None:
    assert parse_template(text).parts == parts


@given(st.text(alphabet='${}[]".ab \\', max_size=40))
def test_templates_never_fail_and_escape_by_doubling(text: str) -> None:
    parse_template(text).render(lambda _: "")
    assert parse_template(text.replace("$", "$$")).render(lambda _: "!") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (1_700_000_000, "1.7e+09"),
        (123456, "123456"),
        (1_000_000, "1e+06"),
        (1234567, "1.234567e+06"),
        (0, "0"),
        (-1.5, "-1.5"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (100, "100"),
        (12.25, "12.25"),
        (1e100, "1e+100"),
        (True, "true"),
        (False, "false"),
        ("x", "x"),
    ],
)
def test_numbers_look_as_they_always_have(value, text) -> None:
    assert claim_text((value,)) == text


def test_an_identity_is_compared_by_object() -> None:
    assert dataclasses.replace(ANONYMOUS) != ANONYMOUS


def test_the_groups_filter_keeps_ids_and_their_names_and_counts_the_rest() -> None:
    identity = WORLD.identity("s1")
    assert told_groups(identity, None) == (("g1", "g2", "Admins"), 0)
    assert told_groups(identity, frozenset({"g1"})) == (("g1", "Admins"), 1)
    assert told_groups(identity, frozenset({"g2", "g9"})) == (("g2",), 1)
    assert told_groups(identity, frozenset({"Admins"})) == ((), 2)  # ids, never names
    assert told_groups(ANONYMOUS, frozenset({"g1"})) == ((), 0)


def test_groups_of_a_claim_are_not_filtered() -> None:
    world = World(session_record("s1", "u1", claims={"groups": ["c1", "c2"]}))
    assert told_groups(world.identity("s1"), frozenset({"c1"})) == (("c1", "c2"), 0)


def kubernetes_desk(world: World = WORLD) -> Desk:
    one = dataclasses.replace(route(PUBLIC), kubernetes_service_account_token="sa-token")
    return Desk(resolved_settings(one), world)


def test_kubernetes_gets_the_user_to_impersonate_and_each_group_apart() -> None:
    one = kubernetes_desk()
    response = one.check(headers=one.cookie("s1"))
    headers = set_headers(response)
    assert headers["authorization"] == "Bearer sa-token"
    assert headers["impersonate-user"] == "ann@example.com"
    assert list(response.dynamic_metadata["impersonate-groups"]) == ["g1", "g2", "Admins"]
    assert "impersonate-group" not in headers


def test_r15_nobody_acts_as_the_service_account_itself() -> None:
    one = kubernetes_desk(World(session_record("s1", "u1")))
    assert not is_allowed(one.check())
    response = one.check(headers=one.cookie("s1"))  # a session without an email
    assert not is_allowed(response)
    assert "sa-token" not in str(response)


def test_the_filters_of_configuration_and_route_are_joined() -> None:
    one = dataclasses.replace(
        route(PUBLIC, jwt_groups_filter=["g1"]), kubernetes_service_account_token="sa-token"
    )
    desk = Desk(resolved_settings(one, jwt_groups_filter=["g9"]), WORLD)
    response = desk.check(headers=desk.cookie("s1"))
    assert list(response.dynamic_metadata["impersonate-groups"]) == ["g1", "Admins"]
    (plan,) = desk.decider.plans.routes.values()
    assert plan.headers.groups_filter == frozenset({"g1", "g9"})
    (plan,) = kubernetes_desk().decider.plans.routes.values()
    assert plan.headers.groups_filter is None


def test_groups_that_would_arrive_as_others_do_not_go_along() -> None:
    odd = [
        "a, b",
        " system:masters",
        "system:masters\t",
        "x\r\nImpersonate-User: root",
        "",
        "käfer",
    ]
    world = World(
        session_record("s1", "u1", claims={"groups": odd}), user_record("u1", "ann@example.com")
    )
    one = kubernetes_desk(world)
    response = one.check(headers=one.cookie("s1"))
    assert list(response.dynamic_metadata["impersonate-groups"]) == ["a, b", "käfer"]


@pytest.mark.parametrize("email", ["ann@example.com\n", " ann@example.com", "a\0b@example.com"])
def test_a_user_that_would_arrive_as_another_is_refused(email: str) -> None:
    world = World(session_record("s1", "u1"), user_record("u1", email))
    one = kubernetes_desk(world)
    assert not is_allowed(one.check(headers=one.cookie("s1")))


@pytest.mark.parametrize(
    ("keys", "removed"),
    [({}, 0), ({"jwt_groups_filter": ["g1"]}, 1), ({"jwt_groups_filter": ["g9"]}, 2)],
)
def test_the_log_is_told_how_many_groups_were_kept_back(keys: dict[str, Any], removed: int) -> None:
    one = Desk(resolved_settings(route(PUBLIC, pass_identity_headers=True, **keys)), WORLD)
    for _ in range(2):  # made, and given again
        answer = one.answer(check_request(headers=one.cookie("s1")))
        assert answer.removed_groups == removed
