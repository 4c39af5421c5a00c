"""Check over gRPC, fed by a real databroker."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from gatehouse.authorize.core.evaluator import CompiledPolicy
from gatehouse.common.config.issues import ConfigError
from gatehouse.common.databroker.records import record_of, tombstone_of
from gatehouse.common.ids import SESSION
from gatehouse.common.jose.keys import derive_signing_key, verify_jwt
from gatehouse.common.observability.logging import configure_logging
from gatehouse.common.observability.metrics import REGISTRY
from gatehouse.common.runtime.health import ServiceStatus
from gatehouse.pb.databroker_pb2 import WITHOUT_TOKENS, Record
from gatehouse.pb.session_pb2 import Session
from tests.integration.authorize.conftest import (
    Checker,
    channel_to,
    running_authorize,
    running_databroker,
    writer_to,
)
from tests.support.check import (
    OTHER_SECRET,
    SECRET,
    check_request,
    handle_token,
    is_allowed,
    resolved_settings,
    route,
    set_headers,
    status_of,
)
from tests.support.policy import policy_of, session_record, user_record

U1 = policy_of("allow: {or: [{email: ann@example.com}]}")
PUBLIC = policy_of("allow: {or: [{accept: true}]}")


def settings_for(port: int, policy=U1, *, route_keys=None, **keys):
    return resolved_settings(
        route(policy, pass_identity_headers=True, **(route_keys or {})),
        databroker_urls=(f"http://127.0.0.1:{port}",),
        **keys,
    )


def session(session_id: str = "s1", **changes: Any) -> Record:
    return session_record(session_id, "u1", expires_at_s=4_000_000_000, **changes)


def signed_in(session_id: str = "s1", versions: tuple[int, int] | None = None, **request: Any):
    server, record = versions or (None, None)
    token = handle_token(
        SECRET, session_id, idp_id="idp-1", server_version=server, record_version=record
    )
    return check_request(headers={"cookie": f"_pomerium={token}"}, **request)


async def eventually(authorize: Checker, condition: Callable[[], Awaitable[bool]]) -> None:
    """The copy follows by a stream: ask again after each change of it, with an end."""
    changed = asyncio.Event()
    unsubscribe = authorize.service._replica.subscribe(lambda _change: changed.set())
    try:
        async with asyncio.timeout(60):
            while not await condition():
                await changed.wait()
                changed.clear()
    finally:
        unsubscribe()


async def test_records_decide_and_changes_reach_decisions(tmp_path: Path) -> None:
    async with (
        running_databroker(tmp_path / "d") as broker,
        writer_to(broker.port) as writer,
    ):
        await writer.put([user_record("u1", "ann@example.com"), session()])
        async with running_authorize(tmp_path / "a", settings_for(broker.port)) as authorize:
            response = await authorize.check(signed_in())
            assert is_allowed(response)
            claims = verify_jwt(
                set_headers(response)["x-pomerium-jwt-assertion"], [derive_signing_key(SECRET)]
            )
            assert (claims["sub"], claims["email"]) == ("u1", "ann@example.com")
            assert status_of(await authorize.check(check_request())) == 302

            # R43: a changed user
            await writer.put([user_record("u1", "bob@example.com")])

            async def refused() -> bool:
                return not is_allowed(await authorize.check(signed_in()))

            await eventually(authorize, refused)
            assert status_of(await authorize.check(signed_in())) == 403

            # R44: a deleted session
            await writer.put([tombstone_of(SESSION, "s1", now_s=1_800_000_000)])

            async def gone() -> bool:
                return status_of(await authorize.check(signed_in())) == 302

            await eventually(authorize, gone)


async def test_a_handle_ahead_of_the_copy_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is cut off: only a Get can know the session that has just been made."""
    async with (
        running_databroker(tmp_path / "d") as broker,
        writer_to(broker.port) as writer,
        running_authorize(tmp_path / "a", settings_for(broker.port)) as authorize,
    ):
        replica = authorize.service._replica
        monkeypatch.setattr(replica, "apply", lambda _record: None)
        monkeypatch.setattr(replica, "advance", lambda *_, **__: None)
        put = await writer.put([user_record("u1", "ann@example.com"), session()])
        version = put.records[-1].version
        assert replica.get(SESSION, "s1") is None
        ahead = signed_in(versions=(put.server_version, version))
        assert is_allowed(await authorize.check(ahead))
        # A hint of another history says nothing: the copy answers, and knows no such session.
        other = signed_in(versions=(put.server_version + 1, version))
        assert status_of(await authorize.check(other)) == 302


async def test_r51_without_a_databroker_known_sessions_go_on_and_unknown_ones_get_503(
    tmp_path: Path,
) -> None:
    async with running_databroker(tmp_path / "d") as broker:
        settings = settings_for(broker.port, policy=U1)
        async with writer_to(broker.port) as writer:
            put = await writer.put([user_record("u1", "ann@example.com"), session()])
        authorize_context = running_authorize(tmp_path / "a", settings)
        authorize = await authorize_context.__aenter__()
    try:
        assert is_allowed(await authorize.check(signed_in()))
        newer = signed_in("s2", versions=(put.server_version, put.records[-1].version + 1))
        assert await authorize.code(newer) is grpc.StatusCode.UNAVAILABLE
        assert status_of(await authorize.check(check_request())) == 302
    finally:
        await authorize_context.__aexit__(None, None, None)


async def test_a_cold_copy_that_cannot_be_filled_is_503_and_never_a_sign_in(
    tmp_path: Path,
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        public = route(PUBLIC, route_id="aaaaaaaaaaaaaaaa")
        settings = resolved_settings(
            route(U1), public, databroker_urls=(f"http://127.0.0.1:{port}",)
        )
        async with running_authorize(tmp_path / "a", settings, wait=False) as authorize:
            assert await authorize.code(signed_in()) is grpc.StatusCode.UNAVAILABLE
            assert not authorize.node.ready.is_set()
            assert not authorize.node.health.ready()
            assert (
                authorize.node.health.service_status("pomerium-authorize")
                is ServiceStatus.NOT_SERVING
            )
            # Nobody needs to be known for these.
            assert is_allowed(await authorize.check(check_request(route_id="aaaaaaaaaaaaaaaa")))
            assert status_of(await authorize.check(check_request())) == 302


async def test_a_record_that_cannot_be_read_is_503(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        broken = session()
        broken.data.value = b"\xff\xff\xff"
        await writer.put([user_record("u1", "ann@example.com"), broken])
        async with running_authorize(tmp_path / "a", settings_for(broker.port)) as authorize:
            assert await authorize.code(signed_in()) is grpc.StatusCode.UNAVAILABLE


async def test_a_stale_copy_is_confirmed_and_refused_when_it_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        await writer.put([user_record("u1", "ann@example.com"), session()])
        settings = settings_for(broker.port, max_staleness="50s")
        async with running_authorize(tmp_path / "a", settings) as authorize:
            monkeypatch.setattr(authorize.service._replica, "staleness_s", lambda _now: 60.0)
            assert is_allowed(await authorize.check(signed_in()))
            await authorize.service._databroker._channel.close()
            assert await authorize.code(signed_in()) is grpc.StatusCode.UNAVAILABLE


async def test_an_unexpected_error_while_deciding_is_503_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a detail that must not get out")

    async with running_databroker(tmp_path / "d") as broker:
        settings = settings_for(broker.port, policy=PUBLIC)
        async with running_authorize(tmp_path / "a", settings) as authorize:
            monkeypatch.setattr(CompiledPolicy, "evaluate", broken)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await authorize.check(check_request())
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert "detail" not in (caught.value.details() or "")


async def test_check_needs_the_service_token(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker:
        settings = settings_for(broker.port, policy=PUBLIC)
        async with running_authorize(tmp_path / "a", settings) as authorize:
            address = f"127.0.0.1:{authorize.node.port}"
            async with grpc.aio.insecure_channel(address) as bare:
                method: Any = bare.unary_unary(
                    "/envoy.service.auth.v3.Authorization/Check",
                    request_serializer=lambda message: message.SerializeToString(),
                )
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await method(check_request(), timeout=60)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_new_configuration_takes_effect_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker:
        first = settings_for(broker.port, policy=PUBLIC)
        async with running_authorize(tmp_path / "a", first) as authorize:
            assert is_allowed(await authorize.check(check_request()))
            bad = settings_for(
                broker.port,
                policy=policy_of("allow: {or: [{reject: 1}]}"),
                route_keys={"bearer_token_format": "jwt"},
            )
            with pytest.raises(ConfigError, match="jwt needs identity_providers"):
                await authorize.node.hub.apply(bad)
            assert is_allowed(await authorize.check(check_request()))
            closed = settings_for(broker.port, policy=policy_of("allow: {or: [{reject: 1}]}"))
            await authorize.node.hub.apply(closed)
            assert status_of(await authorize.check(check_request())) == 403


async def test_a_new_secret_ends_the_handles_of_the_old_one(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        await writer.put([user_record("u1", "ann@example.com"), session()])
        async with running_authorize(tmp_path / "a", settings_for(broker.port)) as authorize:
            assert is_allowed(await authorize.check(signed_in()))
            both = settings_for(broker.port, secrets=(OTHER_SECRET, SECRET))
            await authorize.node.hub.apply(both)
            assert is_allowed(await authorize.check(signed_in()))


async def test_the_databroker_may_move(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d1") as first:
        async with writer_to(first.port) as writer:
            await writer.put([user_record("u1", "ann@example.com"), session()])
        async with (
            running_authorize(tmp_path / "a", settings_for(first.port)) as authorize,
            running_databroker(tmp_path / "d2") as second,
        ):
            assert is_allowed(await authorize.check(signed_in()))
            await authorize.node.hub.apply(settings_for(second.port))

            async def gone() -> bool:
                return status_of(await authorize.check(signed_in())) == 302

            await eventually(authorize, gone)


async def test_templates_get_tokens_by_asking(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        await writer.put(
            [
                user_record("u1", "ann@example.com"),
                session(access_token="access-1", id_token="id-1"),
            ]
        )
        settings = settings_for(
            broker.port,
            route_keys={"set_request_headers": {"x-at": "${pomerium.access_token}"}},
        )
        async with running_authorize(tmp_path / "a", settings) as authorize:
            headers = set_headers(await authorize.check(signed_in()))
            assert headers["x-at"] == "access-1"
            await writer.put([session(access_token="access-2")])

            async def renewed() -> bool:
                headers = set_headers(await authorize.check(signed_in()))
                return headers["x-at"] == "access-2"

            await eventually(authorize, renewed)


async def test_each_decision_is_one_line_without_secrets(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        await writer.put([user_record("u1", "ann@example.com"), session()])
        settings = settings_for(broker.port)
        stream = io.StringIO()
        configure_logging("info", stream=stream)
        try:
            async with running_authorize(tmp_path / "a", settings) as authorize:
                await authorize.check(signed_in(path="/p?secret=1"))
                await authorize.check(check_request())
                await authorize.check(check_request(path="/%zz"))
        finally:
            configure_logging("info")
        lines = [json.loads(text) for text in stream.getvalue().splitlines()]
        checks = [line for line in lines if line["message"] == "authorize check"]
        assert len(checks) == 2
        assert handle_token(SECRET, "s1", idp_id="idp-1") not in stream.getvalue()
        first, second = checks
        assert {
            "service": "authorize",
            "check-request-id": "req-1",  # of the request; `request-id` is the Check's own
            "method": "GET",
            "path": "/p",
            "host": "app.example.com",
            "ip": "10.1.2.3",
            "session-id": "s1",
            "user": "u1",
            "email": "ann@example.com",
            "envoy-route-id": "0123456789abcdef",
            "envoy-route-checksum": "1",
            "route-id": "0123456789abcdef",
            "route-checksum": "7",
            "allow": True,
            "allow-why-true": ["email-ok"],
            "deny": False,
            "deny-why-false": [],
        }.items() <= first.items()
        assert first["request-id"] != second["request-id"]
        assert first["databroker-server-version"] > 0
        assert "session-id" not in second
        assert second["allow-why-false"] == ["user-unauthenticated"]


async def test_every_part_of_a_decision_is_counted(tmp_path: Path) -> None:
    counted = {
        f"pomerium_authorize_{name}": number
        for name, number in (
            ("evaluator_evaluations_total", 3),
            ("evaluator_allowals_total", 1),
            ("evaluator_denials_total", 2),
            ("evaluator_evaluation_duration_count", 3),
            ("header_evaluator_evaluations_total", 1),
            ("header_evaluator_evaluation_duration_count", 1),
            ("log_duration_count", 3),
        )
    }

    def values() -> dict[str, float]:
        return {name: REGISTRY.get_sample_value(name) or 0.0 for name in counted}

    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        await writer.put([user_record("u1", "ann@example.com"), session()])
        async with running_authorize(tmp_path / "a", settings_for(broker.port)) as authorize:
            before = values()
            assert is_allowed(await authorize.check(signed_in()))
            for request in (check_request(), check_request(headers={"cookie": "_pomerium=x"})):
                assert status_of(await authorize.check(request)) == 302
            # Refused before policy: no evaluation.
            assert status_of(await authorize.check(check_request(method="get"))) == 400
            after = values()
    assert {name: after[name] - before[name] for name in counted} == counted
    assert REGISTRY.get_sample_value("pomerium_authorize_log_duration_sum")


async def test_the_copy_knows_of_a_refresh_token_it_was_not_sent(tmp_path: Path) -> None:
    """An access token that has run out ends the session only where nothing can renew it."""
    async with (
        running_databroker(tmp_path / "d") as broker,
        writer_to(broker.port) as writer,
    ):
        records = [user_record("u1", "ann@example.com")]
        for id_, refresh_token in (("s1", "rt-secret"), ("s2", "")):
            made = Session(id=id_, user_id="u1", expires_at=Timestamp(seconds=4_000_000_000))
            made.oauth_token.access_token = "at-secret"
            made.oauth_token.refresh_token = refresh_token
            made.oauth_token.expires_at.seconds = 1_000_000_000
            records.append(record_of(made, id_))
        await writer.put(records)
        async with running_authorize(tmp_path / "a", settings_for(broker.port)) as authorize:
            assert is_allowed(await authorize.check(signed_in("s1")))
            assert status_of(await authorize.check(signed_in("s2"))) == 302
            stream = writer.sync_latest(SESSION, WITHOUT_TOKENS)
            shown = [item async for item in stream]
            assert not any(b"secret" in item.SerializeToString() for item in shown)


async def test_it_stops_promptly(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker:
        loop = asyncio.get_running_loop()
        async with running_authorize(tmp_path / "a", settings_for(broker.port)):
            started = loop.time()
        assert loop.time() - started < 8


async def test_another_service_may_not_ask(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker:
        settings = settings_for(broker.port, policy=PUBLIC)
        async with running_authorize(tmp_path / "a", settings) as authorize:
            channel = channel_to(authorize.node.port, "authorize", "", "authenticate")
            ready = await channel.ready_channel(5)
            method: Any = ready.unary_unary(
                "/envoy.service.auth.v3.Authorization/Check",
                request_serializer=lambda message: message.SerializeToString(),
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(check_request(), timeout=60)
            await channel.close()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


HR = policy_of("allow: {or: [{record: {type: hr.example/Person, field: level, '>=': 3}}]}")


def person(level: int, user_id: str = "u1") -> Record:
    struct = Struct()
    struct.update({"level": level})
    record = Record(type="hr.example/Person", id=user_id)
    record.data.Pack(struct)
    return record


async def external_synced(authorize: Checker) -> None:
    replica = authorize.service._external
    assert replica is not None
    changed = asyncio.Event()
    unsubscribe = replica.subscribe(lambda _change: changed.set())
    try:
        async with asyncio.timeout(60):
            while not replica.ready:
                await changed.wait()
                changed.clear()
    finally:
        unsubscribe()


async def test_records_of_external_sources_decide_and_their_changes_too(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        await writer.put([session(), user_record("u1", "ann@example.com"), person(2)])
        async with running_authorize(tmp_path / "a", settings_for(broker.port, HR)) as authorize:

            async def status() -> int:
                return status_of(await authorize.check(signed_in()))

            assert await status() == 403  # asked for, or from the copy: the answer is the same
            await external_synced(authorize)
            assert await status() == 403
            changed = asyncio.Event()
            external = authorize.service._external
            assert external is not None
            external.subscribe(lambda _change: changed.set())
            await writer.put([person(3)])
            async with asyncio.timeout(60):
                await changed.wait()
            assert await status() == 200
            assert status_of(await authorize.check(check_request())) == 302


async def test_a_new_configuration_may_ask_for_other_records(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        await writer.put([session(), user_record("u1", "ann@example.com"), person(3)])
        settings = settings_for(broker.port, PUBLIC)
        async with running_authorize(tmp_path / "a", settings) as authorize:
            assert authorize.service._external is None
            await authorize.node.hub.apply(settings_for(broker.port, HR))
            assert status_of(await authorize.check(signed_in())) == 200
            await external_synced(authorize)
            assert status_of(await authorize.check(signed_in())) == 200


async def test_external_records_that_cannot_be_had_or_read_are_503(tmp_path: Path) -> None:
    unreadable = Record(type="hr.example/Person", id="u1")
    unreadable.data.type_url = "type.googleapis.com/google.protobuf.Struct"
    unreadable.data.value = b"\xff\xff"
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        await writer.put([session(), unreadable])
        async with running_authorize(tmp_path / "a", settings_for(broker.port, HR)) as authorize:
            assert await authorize.code(signed_in()) is grpc.StatusCode.UNAVAILABLE
            await external_synced(authorize)
            assert await authorize.code(signed_in()) is grpc.StatusCode.UNAVAILABLE
