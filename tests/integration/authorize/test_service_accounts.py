"""Service accounts from the command line to a decision, over a real databroker and authorize."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path

import pytest
from rich.console import Console

from gatehouse.cli import service_account
from gatehouse.common.clock import SystemRng
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.ids import SERVICE_ACCOUNT
from gatehouse.common.jose.hs256 import decode_hs256
from gatehouse.common.observability.logging import configure_logging
from tests.integration.authorize.conftest import (
    Checker,
    running_authorize,
    running_databroker,
    writer_to,
)
from tests.support.check import SECRET, check_request, resolved_settings, route, status_of
from tests.support.clock import FakeClock
from tests.support.policy import policy_of, user_record

POLICY = policy_of("allow: {and: [{user: robot}, {email: robot@example.com}]}")


async def status(authorize: Checker, **request) -> int:
    return status_of(await authorize.check(check_request(**request)))


async def until(authorize: Checker, wanted: int, **request) -> None:
    changed = asyncio.Event()
    unsubscribe = authorize.service._replica.subscribe(lambda _change: changed.set())
    try:
        async with asyncio.timeout(60):
            while await status(authorize, **request) != wanted:
                await changed.wait()
                changed.clear()
    finally:
        unsubscribe()


async def test_an_account_works_everywhere_a_program_may_show_it_until_it_is_revoked(
    tmp_path: Path,
) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as client:
        await client.put([user_record("robot", "robot@example.com")])
        account, token = await service_account.create_account(
            client,
            SECRET,
            user_id="robot",
            lifetime_s=3600,
            description="nightly",
            clock=broker.context.clock,
            rng=SystemRng(),
        )
        settings = resolved_settings(
            route(POLICY), databroker_urls=(f"http://127.0.0.1:{broker.port}",)
        )
        async with running_authorize(tmp_path / "a", settings) as authorize:
            for headers, path in (
                ({"x-pomerium-authorization": token}, "/"),
                ({"authorization": f"Pomerium {token}"}, "/"),
                ({"authorization": f"Bearer Pomerium-{token}"}, "/"),
                ({}, f"/?pomerium_session={token}"),
            ):
                assert await status(authorize, headers=headers, path=path) == 200
            cookie = {"cookie": f"_pomerium={token}"}
            assert await status(authorize, headers=cookie) == 302
            listed = [one.id async for one in service_account.all_accounts(client)]
            assert listed == [account.id]
            await service_account.revoke_account(client, account.id)
            await until(authorize, 401, headers={"authorization": f"Pomerium {token}"})
            assert [one async for one in service_account.all_accounts(client)] == []


async def test_r44_an_account_ends_at_its_time_even_if_its_token_says_otherwise(
    tmp_path: Path,
) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as client:
        past = FakeClock(broker.context.clock.now_s() - 7200)
        _, token = await service_account.create_account(
            client,
            SECRET,
            user_id="robot",
            lifetime_s=3600,
            description="",
            clock=past,
            rng=SystemRng(),
        )
        claims = decode_hs256(token, (SECRET,))
        assert (claims["exp"], claims["nbf"], claims["use"]) == (
            int(past.now) + 3600,
            int(past.now),
            "api",
        )
        settings = resolved_settings(
            route(policy_of("allow: {or: [{user: robot}]}")),
            databroker_urls=(f"http://127.0.0.1:{broker.port}",),
        )
        async with running_authorize(tmp_path / "a", settings) as authorize:
            assert await status(authorize, headers={"authorization": f"Pomerium {token}"}) == 401


async def test_accounts_need_a_user(tmp_path: Path) -> None:
    async with running_databroker(tmp_path / "d") as broker, writer_to(broker.port) as client:
        for user_id in ("", "a\nb", "x" * 600):
            with pytest.raises(InvalidArgumentError):
                await service_account.create_account(
                    client,
                    SECRET,
                    user_id=user_id,
                    lifetime_s=None,
                    description="",
                    clock=FakeClock(),
                    rng=SystemRng(),
                )


async def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They run an event loop of their own, so each runs in a thread."""
    configure_logging("info", stream=io.StringIO())  # the databroker's lines are not theirs
    async with running_databroker(tmp_path / "d") as broker:
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
        printed = io.StringIO()
        console = Console(file=printed, width=300)

        async def run(command, **options) -> int:
            return await asyncio.to_thread(command, config, {}, **options)

        made = await run(
            service_account.create,
            user="robot",
            expires_in="12h",
            description="nightly job",
            console=console,
        )
        token = capsys.readouterr().out.strip()
        assert made == 0
        account_id = decode_hs256(token, (SECRET,))["jti"]
        assert account_id in printed.getvalue()
        assert token not in printed.getvalue()

        async with writer_to(broker.port) as client:
            await client.put_access_times({(SERVICE_ACCOUNT, account_id): 1_700_000_000.0})
        assert await run(service_account.list_accounts, console=console) == 0
        assert "nightly job" in printed.getvalue()
        assert "2023-11-14 22:13:20Z" in printed.getvalue()
        # However narrow the terminal: the id is what revoke asks for.
        narrow = Console(file=(narrowed := io.StringIO()), width=50)
        assert await run(service_account.list_accounts, console=narrow) == 0
        assert account_id in narrowed.getvalue()
        assert await run(service_account.revoke, account_id=account_id) == 0
        assert await run(service_account.revoke, account_id=account_id) == 1
        assert "there is no service account" in capsys.readouterr().err
        assert await run(service_account.create, user="robot", expires_in="soon") == 2

    config.write_text("services: all\n")
    status_without_secret = await asyncio.to_thread(service_account.list_accounts, config, {})
    assert status_without_secret == 2
    assert "shared_secret is not set" in capsys.readouterr().err
