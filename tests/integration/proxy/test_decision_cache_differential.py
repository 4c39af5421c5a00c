"""Random traffic and random changes: what is remembered is what would be decided anew."""

from __future__ import annotations

import base64
import json
import os
import random  # noqa: TID251 - repeatable by its seed
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.ids import DIRECTORY_GROUP, DIRECTORY_USER
from gatehouse.common.record_keys import record_key, type_key
from gatehouse.pb.databroker_pb2 import Record
from tests.support.check import handle_token
from tests.support.decision_memory import Memory
from tests.support.envoy import proxy
from tests.support.lagging_authorize import LaggingAuthorize, Log
from tests.support.policy import service_account_record, session_record, user_record
from tests.support.raw_http import Answer, http1
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

HISTORY = 4242
USERS = ("u0", "u1", "u2")
SESSIONS = ("s0", "s1", "s2", "s3", "sa")
CLEARED = "example.com/cleared"
STEPS = 700


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with EchoUpstream().running() as running:
        yield running


def routes(upstream: EchoUpstream) -> list[dict[str, Any]]:
    def route(host: str, *criteria: dict[str, Any], **keys: Any) -> dict[str, Any]:
        return {
            "from": f"http://{host}.example.com",
            "to": upstream.url,
            "pass_identity_headers": True,
            "policy": [{"allow": {"or": list(criteria)}}],
            **keys,
        }

    team = '${pomerium.request.headers["X-Team"]}'
    return [
        route("email", {"email": {"ends_with": "@good.test"}}, set_request_headers={"X-T": team}),
        route("groups", {"groups": {"has": "g1"}}),
        route("anybody", {"accept": True}),
        route("record", {"record": {"type": CLEARED, "field": "level", "is": "3"}}),
        {
            **route("deny", {"authenticated_user": True}),
            "policy": [
                {"allow": {"or": [{"authenticated_user": True}]}},
                {"deny": {"or": [{"http_path": {"starts_with": "/secret"}}]}},
                {"deny": {"and": [{"http_method": "PUT"}, {"groups": {"has": "g0"}}]}},
            ],
        },
    ]


def structured(type_url: str, record_id: str, **fields: Any) -> Record:
    values = Struct()
    values.update(fields)
    record = Record(type=type_url, id=record_id)
    record.data.Pack(values)
    return record


def some_record(rng: random.Random) -> Record:
    user = rng.choice(USERS)
    match rng.randrange(6):
        case 0:
            impersonate = rng.choice(["", "", "", "s3"])
            return session_record(
                rng.choice(SESSIONS[:4]), user, expires_at_s=None, impersonate=impersonate
            )
        case 1:
            domain = rng.choice(["good.test", "bad.test"])
            return user_record(user, f"{user}@{domain}", claims={"name": [rng.choice("ab")]})
        case 2:
            groups = rng.sample(["g0", "g1", "g2"], rng.randrange(3))
            return structured(DIRECTORY_USER, user, group_ids=groups)
        case 3:
            return structured(
                DIRECTORY_GROUP, rng.choice(["g0", "g1", "g2"]), name=rng.choice("xy")
            )
        case 4:
            return service_account_record("sa", user)
        case _:
            return structured(CLEARED, user, level=rng.choice(["2", "3"]))


def some_request(rng: random.Random, settings: ResolvedSettings) -> dict[str, Any]:
    lines = []
    name = rng.choice([*SESSIONS[:3], "sa", "", "forged"])
    token = "forged" if name == "forged" else handle_token(settings.shared_secrets[0], name or "-")
    if name:
        carried = rng.choice(
            ["Cookie: _pomerium={}", "Cookie: _pomerium={}", "X-Pomerium-Authorization: {}"]
        )
        lines.append(carried.format(token))
    if rng.random() < 0.4:
        lines.append(f"X-Team: {rng.choice(['red', 'blue'])}")
    return {
        "path": rng.choice(["/", "/a", "/secret", "/%zz", "/a?b=c"]),
        "host": f"{rng.choice(['email', 'groups', 'anybody', 'record', 'deny'])}.example.com",
        "method": rng.choice(["GET", "GET", "PUT"]),
        "lines": lines,
    }


def told(answer: Answer) -> Any:
    """What a client and, where it was let through, the upstream got to see."""
    if answer.status != 200:
        return answer.status
    seen = json.loads(answer.body)
    headers = []
    for name, value in seen["headers"]:
        if name == "x-pomerium-jwt-assertion":
            payload = value.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            for moment in ("jti", "iat", "exp"):
                claims.pop(moment)
            headers.append((name, json.dumps(claims, sort_keys=True)))
        elif name != "x-request-id":
            headers.append((name, value))
    return seen["method"], seen["path"], sorted(headers)


async def test_what_is_remembered_is_what_would_be_decided(upstream: EchoUpstream):
    """Two authorizes lag behind at random; one that does not says what is right.

    Every answer from memory must be its answer, whoever made it, and when. `SEED` picks another
    course of events.
    """
    seed = int(os.environ.get("SEED", "1"))
    rng = random.Random(seed)
    config = {"routes": routes(upstream), "jwt_claims_headers": {"X-Name": "name"}}
    async with (
        proxy(config) as remembering,
        proxy(config, decision_cache=False) as asking,
    ):
        settings = remembering.settings(config)
        log = Log(HISTORY)
        for _ in range(40):
            log.commit(some_record(rng))
        made = [LaggingAuthorize(settings, log, SystemClock(), SystemRng()) for _ in range(2)]
        right = LaggingAuthorize(asking.settings(config), log, SystemClock(), SystemRng())
        remembering.authorize.decide = lambda request: rng.choice(made).check(request)
        asking.authorize.decide = right.check
        memory = Memory(remembering)
        memory.begin(HISTORY, log.latest)
        hits = 0
        for _ in range(STEPS):
            choice = rng.random()
            if choice < 0.05:
                record = log.commit(some_record(rng), deleted=rng.random() < 0.2)
                for key in (record_key(record.type, record.id), type_key(record.type)):
                    memory.table.raise_slot(key, record.version)
                right.follow()
            elif choice < 0.15:
                one = rng.choice(made)
                one.follow(rng.randint(one.at, log.latest))
            elif choice < 0.153:
                memory.table.configure(64 << 20)
            else:
                request = some_request(rng, settings)
                memory.refresh()
                before = len(remembering.authorize.requests)
                answer = await http1(remembering.port, **request)
                if len(remembering.authorize.requests) == before and answer.status == 200:
                    hits += 1
                    assert told(answer) == told(await http1(asking.port, **request)), (
                        seed,
                        request,
                    )
        counted = memory.counted()
        assert counted["hits"] == hits > STEPS // 50
        assert counted["outdated"] > 0
