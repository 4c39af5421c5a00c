"""`gatehouse sessions`: who is signed in, and how to end that. Tokens are never shown."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from gatehouse.cli.listing import cell, listing
from gatehouse.cli.operator import EXIT_FAILED, moment_text, with_databroker
from gatehouse.common.clock import Clock, SystemClock
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.records import seconds_of, tombstone_of, unpack
from gatehouse.common.databroker.session_ending import end_sessions
from gatehouse.common.errors import InvalidArgumentError, NotFoundError
from gatehouse.common.ids import SESSION
from gatehouse.common.pages.user_info import shown_claims
from gatehouse.common.runtime.process import EXIT_CONFIG, EXIT_OK
from gatehouse.common.session.ending import Ending
from gatehouse.common.session.handle import MAX_ID_LENGTH
from gatehouse.pb.databroker_pb2 import WITHOUT_TOKENS
from gatehouse.pb.session_pb2 import Session

MAX_LISTED: Final = 100_000
_BATCH: Final = 500

Ask = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which sessions to end: these, those of one user, or all."""

    ids: tuple[str, ...] = ()
    user: str = ""
    everybody: bool = False

    def __post_init__(self) -> None:
        if bool(self.ids) + bool(self.user) + self.everybody != 1:
            raise InvalidArgumentError("give session ids, or --user, or --all: exactly one of them")

    @property
    def text(self) -> str:
        """What is about to end, in words."""
        if self.everybody:
            return "every session of everybody"
        if self.user:
            return f"every session of user {self.user}"
        return f"{len(self.ids)} session{'s' if len(self.ids) > 1 else ''}"


def list_sessions(
    config: Path | None,
    environ: Mapping[str, str],
    *,
    user: str = "",
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Print the sessions that there are, those of `user` (an id, or an email address) only."""
    console = console or Console()

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        del settings
        sessions = [one async for one in all_sessions(client) if not user or _is_of(one, user)]
        sessions.sort(key=lambda one: (one.user_id, one.issued_at.seconds, one.id))
        used = await _last_uses(client, sessions)
        now_s = SystemClock().now_s()
        documents = [document(one, used.get(one.id), now_s) for one in sessions]
        if as_json:
            print(json.dumps(documents, indent=2))
        else:
            console.print(_table(documents))
        return EXIT_OK

    return with_databroker(config, environ, work)


def show_session(
    config: Path | None,
    environ: Mapping[str, str],
    *,
    session_id: str,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Print one session with its claims. 1 when there is none of that id."""
    console = console or Console()

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        del settings
        session = await one_session(client, session_id)
        used = await _last_uses(client, [session])
        found = document(session, used.get(session.id), SystemClock().now_s())
        found["claims"] = shown_claims(session)
        if as_json:
            print(json.dumps(found, indent=2))
            return EXIT_OK
        table = Table(box=None, show_header=False)
        for name, value in found.items():
            if name != "claims":
                table.add_row(name.replace("_", " "), cell(value))
        for name, values in shown_claims(session).items():
            table.add_row(cell(f"claim {name}"), cell(", ".join(values)))
        console.print(table)
        return EXIT_OK

    return with_databroker(config, environ, work)


def revoke(
    config: Path | None,
    environ: Mapping[str, str],
    *,
    choice: Choice,
    ask: Ask | None = None,
) -> int:
    """End the chosen sessions; every service refuses them from then on.

    `ask` is put the question first; None: no question. What the identity provider has given
    (tokens, its own sign-on session) stays as it is there. 1 when nothing was there to end, or the
    answer is no.
    """

    async def work(client: DatabrokerClient, settings: ResolvedSettings) -> int:
        del settings
        if ask is not None and not ask(f"End {choice.text}?"):
            print("nothing was ended", file=sys.stderr)
            return EXIT_FAILED
        ended = await end_chosen(client, choice, SystemClock())
        print(f"ended {ended} session{'' if ended == 1 else 's'}", file=sys.stderr)
        return EXIT_OK if ended or choice.everybody else EXIT_FAILED

    return with_databroker(config, environ, work)


def chosen(ids: Sequence[str], *, user: str, everybody: bool) -> Choice | int:
    """The choice of a command line, or the exit status after saying why it is none."""
    try:
        return Choice(tuple(dict.fromkeys(ids)), user, everybody)
    except InvalidArgumentError as error:
        print(str(error), file=sys.stderr)
        return EXIT_CONFIG


async def all_sessions(client: DatabrokerClient) -> AsyncIterator[Session]:
    """Every session, without its tokens. Raises GatehouseError."""
    count = 0
    async for message in client.sync_latest(SESSION, WITHOUT_TOKENS):
        if message.WhichOneof("response") != "record":
            continue
        count += 1
        if count > MAX_LISTED:
            raise InvalidArgumentError(f"more than {MAX_LISTED} sessions: choose a user by --user")
        yield unpack(message.record, Session)


async def one_session(client: DatabrokerClient, session_id: str) -> Session:
    """The session of that id. NotFoundError when there is none."""
    if not 0 < len(session_id) <= MAX_ID_LENGTH:
        raise InvalidArgumentError(f"a session id has 1 to {MAX_ID_LENGTH} characters")
    record = await client.get(SESSION, session_id)
    if record is None:
        raise NotFoundError(
            f"there is no session {session_id!r}; gatehouse sessions list shows those there are"
        )
    return unpack(record, Session)


async def end_chosen(client: DatabrokerClient, choice: Choice, clock: Clock) -> int:
    """End what was chosen; how many there were. NotFoundError names an id that is none's."""
    ids, ended = choice.ids, 0
    for session_id in ids:
        await one_session(client, session_id)
    if choice.user:
        ended = len(await end_sessions(client, Ending(user_id=choice.user), clock))
    if choice.everybody or "@" in choice.user:
        ids = tuple(
            [
                session.id
                async for session in all_sessions(client)
                if choice.everybody or _is_of(session, choice.user)
            ]
        )
    for first in range(0, len(ids), _BATCH):
        await client.put(
            [tombstone_of(SESSION, id_, now_s=clock.now_s()) for id_ in ids[first : first + _BATCH]]
        )
    return len(ids) + ended


def document(session: Session, used_s: float | None, now_s: float) -> dict[str, object]:
    """What is told of a session."""
    expires_s = seconds_of(session.expires_at) if session.HasField("expires_at") else None
    return {
        "id": session.id,
        "user": session.user_id,
        "email": next(iter(shown_claims(session).get("email", ())), ""),
        "provider": session.idp_id,
        "signed_in": _when(session, "issued_at"),
        "ends": "never" if expires_s is None else moment_text(expires_s),
        "expired": expires_s is not None and expires_s <= now_s,
        "last_used": "" if used_s is None else moment_text(used_s),
        "impersonates": session.impersonate_session_id,
    }


def _table(documents: Sequence[Mapping[str, object]]) -> Table:
    table = listing("id", "user", "email", "signed in", "ends", "last used")
    for one in documents:
        ends = f"{one['ends']}{' (expired)' if one['expired'] else ''}"
        cells = (one["id"], one["user"], one["email"], one["signed_in"], ends, one["last_used"])
        table.add_row(*map(cell, cells))
    return table


def _is_of(session: Session, user: str) -> bool:
    return user == session.user_id or user in shown_claims(session).get("email", ())


async def _last_uses(client: DatabrokerClient, sessions: Sequence[Session]) -> Mapping[str, float]:
    """When sessions were last used, Unix seconds; written down once a minute."""
    used: dict[str, float] = {}
    for first in range(0, len(sessions), _BATCH):
        ids = [session.id for session in sessions[first : first + _BATCH]]
        used.update(await client.access_times(SESSION, ids))
    return used


def _when(session: Session, name: str) -> str:
    if not session.HasField(name):  # type: ignore[arg-type]  # a field chosen by name
        return ""
    return moment_text(seconds_of(getattr(session, name)))
