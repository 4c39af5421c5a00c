"""What the RPCs about sessions have in common: who may call them, and whose session it is."""

from __future__ import annotations

from typing import Any

import grpc.aio

from gatehouse.authorize.core.identity import ANONYMOUS, Identity
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from gatehouse.common.rpc.credentials import verify_call
from gatehouse.common.session.handle import MAX_ID_LENGTH, Handle


def check_caller(
    context: grpc.aio.ServicerContext[Any, Any],
    settings: ResolvedSettings,
    now_s: float,
    *,
    only: str,
    what: str,
) -> None:
    """Let nobody but `only` ask for `what`. Raises UnauthenticatedError, PermissionDeniedError.

    The server's own list lets a caller pass that does not say who it is: here it must.
    """
    caller = verify_call(
        context.invocation_metadata() or (), settings.shared_secrets, "authorize", now_s
    )
    if caller.subject is None:
        raise UnauthenticatedError(f"{what} are for {only}: the call must say who calls")
    if caller.subject != only:
        raise PermissionDeniedError(f"{caller.subject!r} may not ask for {what}")


async def live_identity(
    source: IdentitySource, session_id: str, now_s: float, max_staleness_s: float
) -> Identity:
    """Whose session or service account this is. Raises InvalidArgumentError, NotFoundError."""
    if not 0 < len(session_id) <= MAX_ID_LENGTH:
        raise InvalidArgumentError(f"session_id has 1 to {MAX_ID_LENGTH} characters")
    handle = Handle(session_id, "", "", None, None, "", (), 0, "api")
    identity = source.held(handle, now_s, max_staleness_s)
    if identity is None:
        identity = await source.fetch(handle, now_s, max_staleness_s)
    if identity is ANONYMOUS:
        raise NotFoundError("there is no live session or service account of that id")
    return identity
