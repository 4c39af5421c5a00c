"""`gatehouse sessions` over a real databroker, and what a real authorize makes of it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gatehouse.cli import sessions
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.records import record_of, unpack
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.ids import SESSION
from gatehouse.common.observability.logging import configure_logging
from gatehouse.pb.session_pb2 import Session
from tests.integration.authorize.conftest import (
    Checker,
    running_authorize,
    running_databroker,
    writer_to,
)
from tests.support.check import (
    SECRET,
    check_request,
    handle_token,
    resolved_settings,
    route,
    status_of,
)
from tests.support.policy import policy_of, session_record, user_record

LATER_S = 4_000_000_000
TOKENS = ("raw-id-token-value", "access-token-value", "refresh-token-value")


@dataclass
class Desk:
    """An operator's configuration file, and the services it speaks of."""

    config: Path
    client: DatabrokerClient
    authorize: Checker
    printed: io.StringIO
    console: Console

    async def run(self, command: Callable[..., int], **options: Any) -> int:
        """The commands run an event loop of their own: in a thread."""
        return await asyncio.to_thread(command, self.config, {}, **options)

    async def refused(self, session_id: str) -> None:
        """Return once authorize lets the session in no more."""
        changed = asyncio.Event()
        unsubscribe = self.authorize.service._replica.subscribe(lambda _change: changed.set())
        try:
            async with asyncio.timeout(60):
                while await self.status(session_id) == 200:
                    await changed.wait()
                    changed.clear()
        finally:
            unsubscribe()

    async def status(self, session_id: str) -> int:
        cookie = f"_pomerium={handle_token(SECRET, session_id)}"
        return status_of(await self.authorize.check(check_request(headers={"cookie": cookie})))


def with_tokens(session_id: str, user_id: str, email: str = "") -> Any:
    record = session_record(session_id, user_id, expires_at_s=LATER_S)
    session = unpack(record, Session)
    session.id_token.raw = TOKENS[0]
    session.oauth_token.access_token = TOKENS[1]
    session.oauth_token.refresh_token = TOKENS[2]
    session.claims["access_token"].extend(["claim-of-that-name"])
    session.claims["odd"].extend([f"Bearer {TOKENS[1]}", "[red]kept[/red]\x1b[2J"])
    if email:
        session.claims["email"].extend([email])
    return record_of(session, session_id)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    configure_logging("info", stream=io.StringIO())  # the databroker's lines are not the command's
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as client:
        config = tmp_path / "config.yaml"
        config.write_text(
            f"""
            services: authorize
            shared_secret: {base64.b64encode(SECRET).decode()}
            authenticate_service_url: https://authenticate.example.com
            databroker_service_url: http://localhost:{broker.port}
            idp_provider: oidc
            idp_provider_url: https://idp.example.com
            idp_client_id: client
            idp_client_secret: secret
            """
        )
        await client.put(
            [
                user_record("u1", "ann@example.com"),
                user_record("u2", "bob@example.com"),
                with_tokens("s1", "u1", "ann@example.com"),
                with_tokens("s2", "u1", "ann@example.com"),
                with_tokens("s3", "u2", "bob@example.com"),
                session_record("old", "u3", expires_at_s=1_000_000_000),
            ]
        )
        settings = resolved_settings(
            route(policy_of("allow: {or: [{authenticated_user: true}]}")),
            databroker_urls=(f"http://127.0.0.1:{broker.port}",),
        )
        async with running_authorize(tmp_path / "a", settings) as authorize:
            printed = io.StringIO()
            yield Desk(config, client, authorize, printed, Console(file=printed, width=400))


async def ids(desk: Desk) -> list[str]:
    return [one.id async for one in sessions.all_sessions(desk.client)]


async def test_r36_lists_and_shows_without_tokens(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    used = {(SESSION, "s1"): 1_700_000_000.0}
    await desk.client.put_access_times(used)
    assert await desk.run(sessions.list_sessions, console=desk.console) == 0
    assert await desk.run(sessions.show_session, session_id="s1", console=desk.console) == 0
    table = desk.printed.getvalue()
    for text in ("ann@example.com", "2023-11-14 22:13:20Z", "(expired)", "[red]kept[/red]"):
        assert text in table
    assert "\x1b" not in table
    assert await desk.run(sessions.list_sessions, as_json=True) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in listed] == ["s1", "s2", "s3", "old"]
    assert listed[3]["expired"]
    assert await desk.run(sessions.show_session, session_id="s1", as_json=True) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown)["claims"]["email"] == ["ann@example.com"]
    everything = table + json.dumps(listed) + shown
    assert not [token for token in (*TOKENS, "claim-of-that-name") if token in everything]
    for user in ("u1", "ann@example.com"):
        assert await desk.run(sessions.list_sessions, user=user, as_json=True) == 0
        found = json.loads(capsys.readouterr().out)
        assert [one["id"] for one in found] == ["s1", "s2"]
    assert await desk.run(sessions.show_session, session_id="none") == 1
    assert "there is no session" in capsys.readouterr().err


async def test_r44_what_is_revoked_is_refused(desk: Desk) -> None:
    assert [await desk.status(one) for one in ("s1", "s2", "s3")] == [200, 200, 200]
    assert await desk.run(sessions.revoke, choice=sessions.Choice(("s1",))) == 0
    await desk.refused("s1")
    assert [await desk.status(one) for one in ("s2", "s3")] == [200, 200]
    assert await desk.run(sessions.revoke, choice=sessions.Choice(user="u1")) == 0
    await desk.refused("s2")
    assert await desk.status("s3") == 200
    assert await desk.run(sessions.revoke, choice=sessions.Choice(everybody=True)) == 0
    await desk.refused("s3")
    assert await ids(desk) == []


async def test_revoking_by_email_address(desk: Desk) -> None:
    choice = sessions.Choice(user="bob@example.com")
    assert await desk.run(sessions.revoke, choice=choice) == 0
    assert await ids(desk) == ["old", "s1", "s2"]


async def test_asks_first_and_says_what_there_was(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def no(question: str) -> bool:
        asked.append(question)
        return False

    for choice in (
        sessions.Choice(("s1", "s2")),
        sessions.Choice(user="u1"),
        sessions.Choice(everybody=True),
    ):
        assert await desk.run(sessions.revoke, choice=choice, ask=no) == 1
    assert asked == [
        "End 2 sessions?",
        "End every session of user u1?",
        "End every session of everybody?",
    ]
    assert len(await ids(desk)) == 4
    # One id that is wrong ends none of the others.
    assert await desk.run(sessions.revoke, choice=sessions.Choice(("s1", "wrong"))) == 1
    assert len(await ids(desk)) == 4
    assert await desk.run(sessions.revoke, choice=sessions.Choice(user="nobody")) == 1
    assert "ended 0 sessions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "user", "everybody"),
    [((), "", False), (("s",), "u", False), (("s",), "", True), ((), "u", True)],
)
def test_exactly_one_choice(
    given: tuple[str, ...], user: str, everybody: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidArgumentError):
        sessions.Choice(given, user, everybody)
    assert sessions.chosen(given, user=user, everybody=everybody) == 2
    assert "exactly one" in capsys.readouterr().err
