"""Names for the identifiers that travel between modules, so that they cannot be mixed up."""

from __future__ import annotations

from typing import Final, NewType

SessionId = NewType("SessionId", str)
UserId = NewType("UserId", str)
RouteId = NewType("RouteId", str)
TypeUrl = NewType("TypeUrl", str)

SESSION: Final = TypeUrl("type.googleapis.com/session.Session")
USER: Final = TypeUrl("type.googleapis.com/user.User")
SERVICE_ACCOUNT: Final = TypeUrl("type.googleapis.com/user.ServiceAccount")
DIRECTORY_USER: Final = TypeUrl("pomerium.io/DirectoryUser")
DIRECTORY_GROUP: Final = TypeUrl("pomerium.io/DirectoryGroup")
