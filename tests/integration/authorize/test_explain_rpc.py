"""The Explain RPC, asked as the command asks it, about real sessions."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from rich.console import Console

from gatehouse.authorize.core.explain_answer import document
from gatehouse.cli.explain import show
from gatehouse.cli.explain_live import ask, explain_live, explanation_of
from gatehouse.common.errors import GatehouseError, InvalidArgumentError, NotFoundError
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.pb import authorize_pb2, authorize_pb2_grpc
from tests.integration.authorize.conftest import (
    Checker,
    running_authorize,
    running_databroker,
    writer_to,
)
from tests.support.check import SECRET, resolved_settings, route
from tests.support.policy import policy_of, session_record, user_record

POLICY = policy_of("allow: {and: [{email: ann@example.com}, {http_method: GET}]}")


@pytest.fixture
async def authorize(tmp_path: Path) -> AsyncIterator[Checker]:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as writer:
        await writer.put(
            [
                user_record("u1", "ann@example.com"),
                session_record("s1", "u1", expires_at_s=4_000_000_000),
                session_record("old", "u1", expires_at_s=1_000_000_000),
            ]
        )
        settings = resolved_settings(
            route(POLICY, name="wiki"), databroker_urls=(f"http://127.0.0.1:{broker.port}",)
        )
        async with running_authorize(tmp_path / "a", settings) as running:
            yield running


async def explained(
    authorize: Checker, session_id: str = "s1", wanted: str = "wiki", **facts: Any
) -> authorize_pb2.ExplainResponse:
    request = authorize_pb2.ExplainRequest(session_id=session_id, route=wanted)
    ParseDict(facts, request.facts)
    settings = authorize.node.hub.current
    return await ask(settings, f"127.0.0.1:{authorize.node.port}", request)


async def test_a_real_session(authorize: Checker) -> None:
    answer = await explained(authorize)
    assert (answer.outcome, answer.user_id, answer.email) == ("allowed", "u1", "ann@example.com")
    refused = await explained(authorize, method="POST")
    assert refused.outcome == "denied 403"
    (change,) = refused.changes
    assert change.outcome == "allowed"
    assert [need.now for need in change.needs] == ["http-method-unauthorized"]
    found = document(refused)
    assert json.loads(json.dumps(found))["operators"][0]["criteria"][1]["facts"] == {
        "method": "POST"
    }
    text = io.StringIO()
    show(explanation_of(refused), Console(file=text, width=200), title="t")
    assert "denied 403" in text.getvalue()
    assert "http-method-unauthorized" in text.getvalue()


@pytest.mark.parametrize("wanted", ["0", "0123456789abcdef", "https://app.example.com/"])
async def test_routes_by_any_name(authorize: Checker, wanted: str) -> None:
    assert (await explained(authorize, wanted=wanted)).route_from == "https://app.example.com"


async def test_nobody_signed_in(authorize: Checker) -> None:
    assert (await explained(authorize, "")).outcome == "sign-in"


@pytest.mark.parametrize(
    ("session_id", "wanted", "facts", "error"),
    [
        ("none", "wiki", {}, NotFoundError),
        ("old", "wiki", {}, NotFoundError),
        ("s1", "nowhere", {}, NotFoundError),
        ("s1", "", {}, NotFoundError),
        ("s1", "wiki", {"email": "other@example.com"}, InvalidArgumentError),
        ("s1", "wiki", {"groups": ["admin"]}, InvalidArgumentError),
        ("s1", "wiki", {"method": 7}, InvalidArgumentError),
        ("s" * 600, "wiki", {}, InvalidArgumentError),
    ],
)
async def test_what_cannot_be_explained(
    authorize: Checker,
    session_id: str,
    wanted: str,
    facts: dict[str, Any],
    error: type[GatehouseError],
) -> None:
    with pytest.raises(error):
        await explained(authorize, session_id, wanted, **facts)


async def test_r39_only_operators_may_ask(authorize: Checker) -> None:
    clock = authorize.node.context.clock

    def metadata(subject: str, secret: bytes = SECRET, audience: str = "authorize") -> Any:
        return ServiceCredentials(subject, lambda: (secret,), clock).metadata(audience)

    plain_only = metadata("operator")[:1]
    cases = {
        (): grpc.StatusCode.UNAUTHENTICATED,
        plain_only: grpc.StatusCode.PERMISSION_DENIED,  # of the system, and does not say who
        metadata("operator", b"x" * 32): grpc.StatusCode.UNAUTHENTICATED,
        metadata("operator", audience="databroker"): grpc.StatusCode.UNAUTHENTICATED,
        metadata("proxy"): grpc.StatusCode.PERMISSION_DENIED,
        metadata("databroker"): grpc.StatusCode.PERMISSION_DENIED,
    }
    async with grpc.aio.insecure_channel(f"127.0.0.1:{authorize.node.port}") as channel:
        stub = authorize_pb2_grpc.ExplainServiceStub(channel)
        request = authorize_pb2.ExplainRequest(session_id="s1", route="wiki")
        for shown, wanted in cases.items():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Explain(request, metadata=shown, timeout=60)
            assert caught.value.code() is wanted
        answer = await stub.Explain(request, metadata=metadata("operator"), timeout=60)
        assert answer.outcome == "allowed"


def test_the_command_says_why_it_cannot_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    keys: dict[str, Any] = {"route": "0", "session_id": "", "facts": {}, "address": "127.0.0.1:9"}
    config.write_text("address: [nonsense\n")
    assert explain_live(config, {}, **keys) == 2
    config.write_text("databroker_storage_type: memory\n")
    assert explain_live(config, {}, **keys) == 2
    assert "shared_secret" in capsys.readouterr().err
    secret = base64.b64encode(SECRET).decode()
    config.write_text(f"databroker_storage_type: memory\nshared_secret: {secret}\n")
    assert explain_live(config, {}, **keys) == 1
