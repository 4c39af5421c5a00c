"""What Envoy's script remembers, what it finds again, and when it asks all the same."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from gatehouse.proxy.edge.decision_metrics import DecisionCollector
from gatehouse.proxy.edge.decision_table import ChangeTable
from tests.support.decision_memory import HISTORY, Memory, kept
from tests.support.envoy import Proxy, allow, deny, eventually, proxy
from tests.support.raw_http import Answer, http1, http2, request_headers
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

HOST = "app.example.com"
COOKIE = "Cookie: _pomerium=handle"


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with EchoUpstream().running() as running:
        yield running


def private(upstream: EchoUpstream, host: str = HOST, **keys: Any) -> dict[str, Any]:
    if not {"policy", "allow_public_unauthenticated_access"} & keys.keys():
        keys["allow_any_authenticated_user"] = True
    return {"from": f"http://{host}", "to": upstream.url, **keys}


def policy(*criteria: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"allow": {"and": list(criteria)}}]


class Client:
    """Sends requests and tells whether authorize was asked about each."""

    def __init__(self, running: Proxy) -> None:
        self.running = running
        self.memory = Memory(running)
        running.authorize.decide = lambda _request: kept(records=["a"])

    async def asked(self, path: str = "/", **options: Any) -> bool:
        options.setdefault("lines", [COOKIE])
        before = len(self.running.authorize.requests)
        self.memory.refresh()
        answer = await http1(self.running.port, path, **options)
        assert answer.status == 200, answer
        return len(self.running.authorize.requests) > before

    async def remembered(self, path: str = "/", **options: Any) -> None:
        """Ask twice: the second time nobody is asked."""
        assert await self.asked(path, **options)
        assert not await self.asked(path, **options)


async def test_an_allow_is_asked_for_once(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        await client.remembered()
        assert not await client.asked("/another?x=1", method="POST")
        counted = client.memory.counted()
        assert (counted["hits"], counted["misses"], counted["insertions"]) == (2, 1, 1)
        assert counted["decisions"] == 1
        assert 0 < counted["bytes"] < 4096
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in DecisionCollector(client.memory.counters).collect()
            for sample in family.samples
        }
        assert samples["pomerium_decision_cache_requests_total", "hit"] == 2
        assert samples["pomerium_decision_cache_requests_total", "stale"] == 0
        assert samples["pomerium_decision_cache_decisions",] == 1


async def test_what_an_allow_says_is_done_again(upstream: EchoUpstream):
    """Headers set and removed, cleaning, and who it was in the access log."""
    headers = {"x-pomerium-jwt-assertion": "jwt", "x-note": "é, and: 12:3", "x-empty": ""}
    who = {"session-id": "s1", "user": "ada"}

    def decide(_request: Any) -> Any:
        return kept(headers=headers, remove=["x-secret"], metadata=who, records=["a"])

    lines = [
        "Cookie: other=1; _pomerium=handle; more=2",
        *("X-Secret: from the client", "X-Note: from the client"),
        *("X-Pomerium-Claim-Email: forged", "X-Forwarded-Server: forged"),
    ]
    route = private(upstream, pass_identity_headers=True)
    async with proxy({"routes": [route]}) as running:
        client = Client(running)
        running.authorize.decide = decide
        await client.remembered("/?a=1", lines=lines)
        first, second = upstream.requests
        for request in (first, second):
            request["headers"] = [pair for pair in request["headers"] if pair[0] != "x-request-id"]
        assert first == second
        seen = dict(second["headers"])
        assert seen["x-pomerium-jwt-assertion"] == "jwt"
        assert seen["x-note"].encode("latin-1").decode() == headers["x-note"]
        assert seen["x-empty"] == ""
        assert seen["cookie"] == "other=1; more=2"
        assert not {"x-secret", "x-pomerium-claim-email", "x-forwarded-server"} & seen.keys()
        checked, remembered = await running.access_lines(2)
        assert checked["remembered"] is None
        assert remembered["remembered"] is True
        for name in ("session-id", "user"):
            assert checked[name] == remembered[name] == who[name]
        assert checked["route-id"] == remembered["route-id"]
        assert checked["route-id"]


async def test_groups_to_impersonate_come_along(upstream: EchoUpstream):
    groups = {"impersonate-groups": ["a,b", "c"]}
    route = private(upstream, kubernetes_service_account_token="sa")
    async with proxy({"routes": [route]}) as running:
        client = Client(running)
        running.authorize.decide = lambda _request: kept(metadata=groups, records=["a"])
        await client.remembered(lines=[COOKIE, "Impersonate-Group: root"])
        for request in upstream.requests:
            found = [value for name, value in request["headers"] if name == "impersonate-group"]
            assert found == ["a,b", "c"]


DIFFERENT: list[tuple[str, Sequence[str]]] = [
    ("another cookie", ["Cookie: _pomerium=Handle"]),
    ("another first cookie", ["Cookie: _pomerium=x; _pomerium=handle"]),
    ("one more cookie", ["Cookie: _pomerium=handle; _pomerium=x"]),
    ("no cookie", []),
    ("an empty cookie", ["Cookie: _pomerium="]),
    ("another place", ["X-Pomerium-Authorization: handle"]),
    ("and another", ["Authorization: Pomerium handle"]),
    ("both", [COOKIE, "X-Pomerium-Authorization: handle"]),
    ("a bearer token", [COOKIE, "Authorization: Bearer handle"]),
    ("two of them", [COOKIE, "Authorization: Bearer handle", "Authorization: Bearer x"]),
    ("the same, joined", [COOKIE, "Authorization: Bearer handle,Bearer x, "]),
    ("lengths that shift", ["Cookie: _pomerium=handle1:x", "Authorization: y"]),
]


async def test_case_e_every_credential_counts_by_its_full_value(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        await client.remembered()
        for what, lines in DIFFERENT:
            assert await client.asked(lines=lines), what
        for what, lines in DIFFERENT:
            assert not await client.asked(lines=lines), what
        # Lines of cookies are one, and cookies of others change nothing.
        assert not await client.asked(lines=[COOKIE, "Cookie: _pomerium=x"])
        assert await client.asked(lines=["Cookie: app=1; _pomerium=handle"])
        assert not await client.asked(lines=["Cookie: app=2; _pomerium=handle; z=3"])


async def test_case_e_a_credential_in_the_query_is_always_asked_about(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        for _ in range(2):
            assert await client.asked("/?pomerium_session=handle")
            assert await client.asked(lines=[COOKIE, "X-Pomerium-JWT-Assertion: mine"])
        assert client.memory.counted()["bypass_credential"] == 4


async def test_routes_hosts_and_schemes_are_apart(upstream: EchoUpstream):
    routes = [
        private(upstream, prefix="/a"),
        private(upstream),
        private(upstream, "other.example.com"),
        private(upstream, "*.wild.example.com"),
    ]
    async with proxy({"routes": routes}) as running:
        client = Client(running)
        for path, host in (
            *(("/a", HOST), ("/b", HOST), ("/b", f"{HOST}:80"), ("/b", "APP.example.com")),
            *(("/", "other.example.com"), ("/", "x.wild.example.com")),
            *(("/", "y.wild.example.com"), ("/", "nobody.wild.example.com:8080")),
        ):
            await client.remembered(path, host=host)


INPUTS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("method", {"http_method": {"is": "GET"}}, {}, {"method": "PUT"}),
    ("path", {"http_path": {"starts_with": "/"}}, {"path": "/a?x=1"}, {"path": "/b"}),
    ("path spelling", {"http_path": {"starts_with": "/"}}, {"path": "/a,b"}, {"path": "/a%2Cb"}),
    ("cors", {"cors_preflight": True}, {}, {"lines": [COOKIE, "Origin: https://x"]}),
]


@pytest.mark.parametrize(("name", "criterion", "one", "other"), INPUTS)
async def test_declared_inputs_count(upstream, name, criterion, one, other):
    del name
    route = private(upstream, policy=policy({"authenticated_user": True}, criterion))
    plain = private(upstream, "plain.example.com")
    async with proxy({"routes": [route, plain]}) as running:
        client = Client(running)
        await client.remembered(**one)
        assert await client.asked(**other)
        assert not await client.asked(**one)
        # A route that does not declare them does not care.
        await client.remembered(**one, host="plain.example.com")
        assert not await client.asked(**other, host="plain.example.com")


async def test_case_f_headers_that_templates_read_count(upstream: EchoUpstream):
    template = '${pomerium.request.headers["X-Team"]}/${pomerium.request.headers["Cookie"]}'
    routes = [
        private(upstream, set_request_headers={"X-Out": template}),
        private(upstream, "tokens.example.com", set_request_headers={"X": "$pomerium.id_token"}),
    ]
    async with proxy({"routes": routes}) as running:
        client = Client(running)
        await client.remembered(lines=[COOKIE, "X-Team: a"])
        for lines in (
            [COOKIE, "X-Team: b"],
            [COOKIE],
            [COOKIE, "X-Team: a", "X-Team: b"],
            ["Cookie: _pomerium=handle; a=b", "X-Team: a"],
        ):
            await client.remembered(lines=lines)
        for _ in range(2):  # tokens of the identity provider end when it says
            assert await client.asked(host="tokens.example.com")


async def test_the_source_counts_where_it_is_declared(upstream: EchoUpstream):
    route = private(upstream, policy=policy({"source_ip": ["0.0.0.0/0"]}))
    async with proxy({"routes": [route]}, xff_num_trusted_hops=1) as running:
        client = Client(running)
        await client.remembered()  # over other ports each time
        await client.remembered(lines=[COOKIE, "X-Forwarded-For: 192.0.2.1"])
        await client.remembered(lines=[COOKIE, "X-Forwarded-For: 192.0.2.2"])
        await client.remembered(lines=[COOKIE, "X-Forwarded-For: 192.0.2.9, 192.0.2.2"])


async def test_what_authorize_would_refuse_is_asked(upstream: EchoUpstream):
    """A path that does not decode, and what is decided for long, are no business of a memory."""
    async with proxy({"routes": [private(upstream, allow_websockets=True)]}) as running:
        client = Client(running)
        await client.remembered("/fine%20path")
        for path in ("/%zz", "/%", "/%2", "/a%%20", "/x%g0?q"):
            for _ in range(2):
                assert await client.asked(path), path
        upgrade = [COOKIE, "Upgrade: websocket", "Connection: upgrade"]
        before = len(running.authorize.requests)
        for _ in range(2):
            await http1(running.port, lines=upgrade)
        assert len(running.authorize.requests) == before + 2
        assert await client.asked(lines=[f"Cookie: _pomerium={'x' * 20_000}"])
        assert await client.asked(lines=[f"Cookie: _pomerium={'x' * 20_000}"])
        counted = client.memory.counted()
        assert (counted["bypass_path"], counted["bypass_upgrade"], counted["bypass_size"]) == (
            10,
            2,
            2,
        )


async def test_only_what_was_allowed_is_remembered(upstream: EchoUpstream):
    spoilt = kept(records=["a"])
    spoilt.dynamic_metadata["decision"] = "deny"
    broken = [kept(), kept(), kept(history=HISTORY + 1), kept(lifetime_ms=0), allow()]
    broken[0].dynamic_metadata["envelope"] = "garbage"
    broken[1].dynamic_metadata["envelope"] = f"{HISTORY} 1000 \n=900:short"
    invalid = kept(headers={"x-bad": "line\nbreak"})
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        for number, response in enumerate((deny(), deny(401), spoilt, invalid, *broken)):
            running.authorize.decide = functools.partial(_answer, response)
            before = len(running.authorize.requests)
            for _ in range(2):
                await http1(running.port, lines=[COOKIE, "A: b"])
            assert len(running.authorize.requests) == before + 2, number
        assert "hits" not in client.memory.counted()


def _answer(response: Any, _request: Any) -> Any:
    return response


async def test_case_a_and_b_records_and_types_end_it(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        memory = client.memory
        await client.remembered()
        memory.change("b", 11)
        assert not await client.asked()
        memory.change("a", 11)
        assert await client.asked()  # and the answer, made before the change, is not kept
        assert await client.asked()
        running.authorize.decide = lambda _request: kept(records=["a", "b"], version=11)
        await client.remembered()
        running.authorize.decide = lambda _request: kept(types=["example.com/thing"], version=11)
        await client.remembered(lines=["Cookie: _pomerium=2"])
        memory.change("nobody looked this up", 12)
        assert await client.asked(lines=["Cookie: _pomerium=2"])
        assert not await client.asked()


async def test_a_slot_only_rises(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        client.memory.change("a", 20)
        client.memory.change("a", 12)
        assert await client.asked()
        assert await client.asked()


async def test_case_d_a_lifetime_ends_by_the_monotonic_clock(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        running.authorize.decide = lambda _request: kept(lifetime_ms=1500, records=["a"])
        started_s = time.monotonic()
        assert await client.asked()

        async def over() -> bool:
            return await client.asked()

        await eventually(over)
        assert time.monotonic() - started_s >= 1.5


async def test_case_h_a_table_that_is_not_current_is_not_used(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        await client.remembered()

        async def bypassed() -> bool:  # nobody refreshes the table any more
            before = len(running.authorize.requests)
            assert (await http1(running.port, lines=[COOKIE])).status == 200
            return len(running.authorize.requests) > before

        await eventually(bypassed)
        assert await bypassed()
        assert client.memory.counted()["bypass_stale"] >= 2
        client.memory.refresh()
        assert not await bypassed()


async def test_a_new_configuration_ends_everything(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        await client.remembered()
        client.memory.table.configure(64 << 20)
        await client.remembered()

        def decide(_request: Any) -> Any:  # asked under one configuration, answered under another
            client.memory.table.configure(64 << 20)
            return kept(records=["a"])

        running.authorize.decide = decide
        for _ in range(2):
            assert await client.asked(lines=["Cookie: _pomerium=2"])


async def test_another_history_ends_everything(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        await client.remembered()
        client.memory.begin(HISTORY + 1)
        for _ in range(2):
            assert await client.asked()  # answers of the old history are not kept
        running.authorize.decide = lambda _request: kept(history=HISTORY + 1, records=["a"])
        await client.remembered()
        client.memory.table.retire()
        assert await client.asked()
        assert await client.asked()


async def test_a_table_that_is_none_switches_it_off(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        memory = client.memory
        whole = memory.path.read_bytes()
        for number, content in enumerate(
            (
                *(b"", whole[:-8], whole + bytes(8), b"\0" * len(whole), whole[:63]),
                *(b"x" + whole[1:], whole[:8] + b"\x02" + whole[9:], whole[:24]),
            )
        ):
            memory.table.retire()
            memory.path.unlink()
            memory.path.write_bytes(content)
            await eventually(lambda: _off(client))
            assert await client.asked(), number
        memory.path.unlink()
        assert await client.asked()
        memory.begin()

        async def on() -> bool:
            return not await client.asked()

        await eventually(on)


async def _off(client: Client) -> bool:
    before = client.memory.counted().get("bypass_off", 0)
    await client.asked()
    return client.memory.counted().get("bypass_off", 0) > before


async def test_memory_is_bounded(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        client.memory.table.configure(20_000)
        for number in range(60):
            assert await client.asked(lines=[f"Cookie: _pomerium={number}"])
            assert client.memory.counted()["bytes"] <= 20_000
        counted = client.memory.counted()
        assert counted["evictions"] > 10
        assert counted["decisions"] + counted["evictions"] == 60
        assert not await client.asked(lines=["Cookie: _pomerium=59"])
        # What is used stays, however many come by.
        for number in range(60, 120):
            await client.asked(lines=[f"Cookie: _pomerium={number}"])
            assert not await client.asked(lines=["Cookie: _pomerium=59"])


async def test_the_memory_of_a_flood_of_credentials_is_really_bounded(upstream: EchoUpstream):
    """Of the whole interpreter, garbage included: not only of what it counts as its own."""
    budget, besides = 6 << 20, 4 << 20
    answer = "x" * 50_000
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        client.memory.table.configure(budget)
        running.authorize.decide = lambda _request: kept(
            headers={"x-note": f"{len(running.authorize.requests)}{answer}"}, records=["a"]
        )
        most = 0
        for number in range(400):
            assert await client.asked(lines=[f"Cookie: _pomerium={number}"])
            most = max(most, client.memory.counted()["heap"])
        counted = client.memory.counted()
        assert counted["insertions"] == 400
        assert counted["bytes"] <= budget
        assert most < budget + besides, most


async def test_secrets_stay_out_of_logs_and_shared_memory(upstream: EchoUpstream):
    secret = "QUITE-SECRET-7e2f"
    headers = {"x-pomerium-jwt-assertion": f"jwt-{secret}"}
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        running.authorize.decide = lambda _request: kept(headers=headers, records=["a"])
        await client.remembered(lines=[f"Cookie: _pomerium={secret}"])
        await running.access_lines(2)
        for file in (running.access_log, client.memory.path, running.run_dir / "decision-counters"):
            assert secret.encode() not in file.read_bytes()
            assert file == running.access_log or stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_http2_finds_what_http2_left(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        for expected in (1, 1):
            answer: Answer = await http2(
                running.port, [*request_headers(), ("cookie", "a=1"), ("cookie", "_pomerium=x")]
            )
            assert answer.status == 200
            assert len(running.authorize.requests) == expected
        assert client.memory.counted()["hits"] == 1


async def test_off_is_off(upstream: EchoUpstream):
    async with proxy({"routes": [private(upstream)]}, decision_cache=False) as running:
        client = Client(running)
        for _ in range(3):
            assert await client.asked()
        assert client.memory.counted() == {}
        (checked, *_) = await running.access_lines(3)
        assert checked["remembered"] is None


async def test_a_route_that_changed_is_another(upstream: EchoUpstream):
    """(c): the checksum stands in the route, and so in what a decision is found by."""
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        await client.remembered()
        await running.push({"routes": [private(upstream, set_request_headers={"X": "y"})]})
        await client.remembered()


def test_a_table_left_behind_is_gone(tmp_path):
    path = tmp_path / "table"
    path.write_bytes(b"of another process")
    table = ChangeTable(path)
    assert not path.exists()
    table.begin(1, 5)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    words = memoryview(path.read_bytes()).cast("Q")
    assert list(words[8:12]) == [5] * 4
    table.retire()
    assert memoryview(path.read_bytes()).cast("Q")[6] == 1


async def test_an_envoy_that_starts_anew_remembers_nothing(upstream: EchoUpstream):
    """Its memory is its own: what the one before remembered, and counted as held, went with it."""
    async with proxy({"routes": [private(upstream)]}) as running:
        client = Client(running)
        await client.remembered()
        assert running.envoy.pid is not None
        os.kill(running.envoy.pid, signal.SIGKILL)

        async def serves() -> bool:
            client.memory.refresh()
            with contextlib.suppress(OSError):
                return (await http1(running.port, "/ping")).status == 200
            return False

        await eventually(lambda: _has_exited(running))
        await eventually(serves)
        await client.remembered()


async def _has_exited(running: Proxy) -> bool:
    return bool(running.exits)
