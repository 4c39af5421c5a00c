"""`gatehouse service-account`: accounts for programs, and the tokens they show.

A token is a JWT signed with the shared secret (HS256): `jti` is the account's id, `sub` its user,
`use` says that it belongs in headers or a query and never in a cookie. The record decides about its
life: deleting the record revokes the token at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from gatehouse.cli.listing import cell, listing
from gatehouse.cli.operator import moment_text, with_databroker
from gatehouse.common.clock import Clock, Rng, SystemClock, SystemRng
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.config.values import parse_go_duration
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.records import (
    record_of,
    seconds_of,
    timestamp_of,
    unpack,
)
from gatehouse.common.errors import InvalidArgumentError, NotFoundError
from gatehouse.common.ids import SERVICE_ACCOUNT
from gatehouse.common.jose.hs256 import encode_hs256
from gatehouse.common.runtime.process import EXIT_OK
from gatehouse.common.session.handle import MAX_ID_LENGTH
from gatehouse.pb.user_pb2 import ServiceAccount

_PAGE: Final = 500
_MAX_LISTED: Final = 100_000


def create(
    config: Path | None,
    environ: Mapping[str, str],
    *,
    user: str,
    expires_in: str = "",
    description: str = "",
    console: Console | None = None,
) -> int:
    """Make an account that acts as `user` and print its token, the only time it is shown.

    `user`: the user id that policies see (criterion `user`). `expires_in`: a duration such as
    2160h; empty means never. The token alone goes to standard output, the rest to standard error.
    """
    console = console or Console(stderr=True)

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        account, token = await create_account(
            client,
            settings.shared_secrets[0],
            user_id=user,
            lifetime_s=_lifetime_s(expires_in),
            description=description,
            clock=SystemClock(),
            rng=SystemRng(),
        )
        console.print(f"service account {account.id} of user {account.user_id}", markup=False)
        if not account.HasField("expires_at"):
            console.print("its token never expires; revoke it by its id", style="yellow")
        print(token)
        return EXIT_OK

    return with_databroker(config, environ, work)


def list_accounts(
    config: Path | None, environ: Mapping[str, str], *, console: Console | None = None
) -> int:
    """Print every account: id, user, description, when made, when it ends, when last used."""
    console = console or Console()

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        del settings
        table = listing("id", "user", "description", "made", "ends", "last used")
        now_s = SystemClock().now_s()
        accounts = [account async for account in all_accounts(client)]
        used = await _last_uses(client, accounts)
        for account in accounts:
            ends = _when(account, "expires_at") or "never"
            if account.HasField("expires_at") and seconds_of(account.expires_at) <= now_s:
                ends += " (expired)"
            last = moment_text(used[account.id]) if account.id in used else ""
            texts = (account.user_id, account.description, _when(account, "issued_at"), ends, last)
            table.add_row(*map(cell, (account.id, *texts)))
        console.print(table)
        return EXIT_OK

    return with_databroker(config, environ, work)


def revoke(config: Path | None, environ: Mapping[str, str], *, account_id: str) -> int:
    """Delete an account by its id; its token is refused from then on. 1 when there is none."""

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        del settings
        await revoke_account(client, account_id)
        print(f"revoked {account_id}", file=sys.stderr)
        return EXIT_OK

    return with_databroker(config, environ, work)


async def create_account(
    client: DatabrokerClient,
    key: bytes,
    *,
    user_id: str,
    lifetime_s: float | None,
    description: str,
    clock: Clock,
    rng: Rng,
) -> tuple[ServiceAccount, str]:
    """Store a new account and sign its token. Raises GatehouseError."""
    if not user_id or len(user_id) > MAX_ID_LENGTH or not user_id.isprintable():
        raise InvalidArgumentError(
            f"a service account needs a user id of at most {MAX_ID_LENGTH} printable characters"
        )
    now_s = math.floor(clock.now_s())
    account = ServiceAccount(id=rng.uuid4(), user_id=user_id)
    account.issued_at.CopyFrom(timestamp_of(now_s))
    if description:
        account.description = description
    claims: dict[str, Any] = {
        "jti": account.id,
        "sub": user_id,
        "iat": now_s,
        "nbf": now_s,
        "use": "api",
    }
    if lifetime_s is not None:
        expires_at_s = math.ceil(now_s + lifetime_s)
        account.expires_at.CopyFrom(timestamp_of(expires_at_s))
        claims["exp"] = expires_at_s
    await client.put([record_of(account, account.id)])
    return account, encode_hs256(claims, key)


async def all_accounts(client: DatabrokerClient) -> AsyncIterator[ServiceAccount]:
    """Every account, by id."""
    for offset in range(0, _MAX_LISTED, _PAGE):
        page = await client.query(SERVICE_ACCOUNT, limit=_PAGE, offset=offset)
        for record in page.records:
            yield unpack(record, ServiceAccount)
        if len(page.records) < _PAGE:
            return


async def revoke_account(client: DatabrokerClient, account_id: str) -> None:
    """Delete an account. NotFoundError when there is none with this id."""
    if await client.get(SERVICE_ACCOUNT, account_id) is None:
        raise NotFoundError(
            f"there is no service account {account_id!r}; "
            "gatehouse service-account list shows those there are"
        )
    await client.delete(SERVICE_ACCOUNT, account_id)


async def _last_uses(
    client: DatabrokerClient, accounts: Sequence[ServiceAccount]
) -> Mapping[str, float]:
    """When accounts were last used, Unix seconds; written down once a minute."""
    used: dict[str, float] = {}
    for first in range(0, len(accounts), _PAGE):
        ids = [account.id for account in accounts[first : first + _PAGE]]
        used.update(await client.access_times(SERVICE_ACCOUNT, ids))
    return used


def _lifetime_s(text: str) -> float | None:
    if not text:
        return None
    seconds = parse_go_duration(text)
    if seconds is None or seconds < 1:
        raise InvalidArgumentError(f"{text!r} is no duration, expected such as 12h or 2160h")
    return seconds


def _when(account: ServiceAccount, name: str) -> str:
    if not account.HasField(name):  # type: ignore[arg-type]  # a field chosen by name
        return ""
    return moment_text(seconds_of(getattr(account, name)))
