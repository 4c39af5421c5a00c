"""Answers which databroker a service talks to, and how that follows the settings.

A process that runs the databroker itself uses its own, over the Unix socket; every other follows
`databroker_service_urls`, with the trust the settings name.
"""

from __future__ import annotations

from typing import Final

from gatehouse.common.config.resolved import ResolvedSettings, ServiceName
from gatehouse.common.extauthz_context import DATABROKER_SERVICE
from gatehouse.common.rpc.service_connection import (
    CLOSE_GRACE_S,
    Called,
    ServiceConnection,
    Target,
    target_of,
)
from gatehouse.common.runtime.context import ProcessContext

_DATABROKER: Final = Called(
    ServiceName.DATABROKER,
    "databroker_service_url",
    lambda settings: settings.databroker_urls,
    DATABROKER_SERVICE,
)


def databroker_target(context: ProcessContext, settings: ResolvedSettings) -> Target:
    """The target that `settings` name. Raises ConfigError when they name none."""
    return target_of(_DATABROKER, context, settings)


class DatabrokerConnection(ServiceConnection):
    """The channel that a DatabrokerClient asks. Belongs to one event loop."""

    def __init__(
        self, context: ProcessContext, subject: str, *, close_grace_s: float = CLOSE_GRACE_S
    ) -> None:
        """`subject` is the calling service. Raises ConfigError without a databroker to call."""
        super().__init__(context, subject, _DATABROKER, close_grace_s=close_grace_s)
