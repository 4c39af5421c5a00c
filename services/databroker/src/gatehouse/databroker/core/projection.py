"""How much of a record a stream carries: all of it, all but the tokens, or its key and version.

A reader that does without tokens never gets them, so that what it leaks or keeps is not worth
stealing. What cannot be looked into is left out rather than passed on.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.databroker.core.records import StoredRecord
from gatehouse.pb.databroker_pb2 import FULL, KEYS_ONLY, WITHOUT_TOKENS, Projection, Record
from gatehouse.pb.session_pb2 import Session

PROJECTIONS: Final = frozenset({FULL, WITHOUT_TOKENS, KEYS_ONLY})

_SESSION: Final = Session.DESCRIPTOR.full_name
_TOKENS_ONLY: Final = "oauth21."  # the package of records that exist to hold tokens


def accept_projection(value: int) -> Projection.ValueType:
    """Return a projection that a request names. Raises InvalidArgumentError for an unknown one.

    A reader that asks for less than everything must not be given everything.
    """
    for known in PROJECTIONS:
        if value == known:
            return known
    raise InvalidArgumentError(
        f"projection {value} is unknown; FULL, WITHOUT_TOKENS or KEYS_ONLY is wanted"
    )


def project(record: StoredRecord, projection: Projection.ValueType) -> Record:
    """Return the wire form of a record, as far as `projection` shows it."""
    if projection == FULL:
        return record.to_message()
    if projection == KEYS_ONLY:
        return _key_of(record)
    message = record.to_message()
    _drop_tokens(message)
    return message


def _key_of(record: StoredRecord) -> Record:
    key = Record(version=record.version, type=record.type, id=record.id)
    # With its version it says which log this is: a reader goes on from here, heartbeat or not.
    key.modified_at.FromMicroseconds(record.modified_at_us)
    if record.deleted_at_us is not None:
        key.deleted_at.FromMicroseconds(record.deleted_at_us)
    return key


def _drop_tokens(record: Record) -> None:
    if not record.data.value:
        return
    names = {record.type.rpartition("/")[2], record.data.type_url.rpartition("/")[2]}
    if any(name.startswith(_TOKENS_ONLY) for name in names):
        record.ClearField("data")
        return
    if _SESSION not in names:
        return
    try:
        session = Session.FromString(record.data.value)
    except DecodeError:
        record.ClearField("data")
        return
    record.data.CopyFrom(
        Any(type_url=record.data.type_url, value=without_tokens(session).SerializeToString())
    )


def without_tokens(session: Session) -> Session:
    """Return the session, stripped in place of what would let its holder act for the user.

    When it was last used goes too: that is no reason for a reader to hear of a session.
    """
    # Fields that this release does not know might be tokens of a newer one.
    session.DiscardUnknownFields()
    if session.HasField("id_token"):
        session.id_token.ClearField("raw")
    if session.HasField("oauth_token"):
        token = session.oauth_token
        token.has_refresh_token = bool(token.refresh_token)
        token.ClearField("access_token")
        token.ClearField("refresh_token")
    session.ClearField("accessed_at")
    return session
