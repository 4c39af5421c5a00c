"""Which sessions end together: all of a person's, or those that an identity provider has ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gatehouse.common.databroker.records import is_deleted, timestamp_of, unpack
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.ids import SESSION
from gatehouse.pb.databroker_pb2 import Record
from gatehouse.pb.session_pb2 import Session


@dataclass(frozen=True, slots=True)
class Ending:
    """What is to end. Every part that is set must fit, and one that says whose sessions must be.

    `user_id`: this person's sessions. `idp_ids`: only sessions of these providers. `subject` and
    `provider_session`: what the provider calls the person (`sub`) and its own session (`sid`); a
    subject means somebody else at each provider. `except_id`: a session that goes on.
    """

    user_id: str = ""
    provider_session: str = ""
    idp_ids: frozenset[str] | None = None
    subject: str = ""
    except_id: str = ""

    def __post_init__(self) -> None:
        of_provider = bool(self.subject) and self.idp_ids is not None
        if not self.user_id and not self.provider_session and not of_provider:
            raise InvalidArgumentError(
                "an ending of sessions needs a user, a session of the provider, or a subject and "
                "its providers: nothing else may end everybody's"
            )

    def query(self) -> dict[str, object]:
        """The filter that finds them, by indexed fields, and perhaps a few more."""
        if self.provider_session:
            return {"idp_session_id": self.provider_session}
        if self.user_id:
            return {"user_id": self.user_id}
        return {"id_token.subject": self.subject}

    def includes(self, session: Session) -> bool:
        """Whether this session is one of them."""
        return (
            (not self.user_id or session.user_id == self.user_id)
            and (not self.provider_session or session.idp_session_id == self.provider_session)
            and (self.idp_ids is None or session.idp_id in self.idp_ids)
            and (not self.subject or session.id_token.subject == self.subject)
            and session.id != self.except_id
        )


@dataclass(frozen=True, slots=True)
class EndingPlan:
    """What ends, and the tombstones that end it; these keep the sessions' data."""

    sessions: tuple[Session, ...]
    tombstones: tuple[Record, ...]


def plan_ending(records: Iterable[Record], ending: Ending, *, now_s: float) -> EndingPlan:
    """The part of `records` that is to end. What is no readable session is left alone."""
    sessions: list[Session] = []
    tombstones: list[Record] = []
    for record in records:
        if record.type != SESSION or is_deleted(record):
            continue
        try:
            session = unpack(record, Session)
        except InvalidArgumentError:
            continue
        if session.id != record.id or not ending.includes(session):
            continue
        tombstone = Record()
        tombstone.CopyFrom(record)
        tombstone.deleted_at.CopyFrom(timestamp_of(now_s))
        sessions.append(session)
        tombstones.append(tombstone)
    return EndingPlan(tuple(sessions), tuple(tombstones))
