"""What can go wrong in the proxy service.

UnavailableError
+-- EnvoyUnavailableError   Envoy does not answer on its admin socket
FailedPreconditionError
+-- EnvoyBinaryError        no Envoy that can be run
+-- EnvoyRefusedError       Envoy takes nothing of the first configuration
+-- SnapshotError           the settings do not make a consistent set of resources
InternalError
+-- EnvoyGaveUpError        Envoy ended too often; the process ends too
"""

from __future__ import annotations

from gatehouse.common.errors import FailedPreconditionError, InternalError, UnavailableError


class EnvoyUnavailableError(UnavailableError):
    """Envoy's admin interface does not answer, or not in time."""

    default_reason = "envoy-unavailable"


class EnvoyBinaryError(FailedPreconditionError):
    """There is no Envoy binary, or it cannot be run here."""

    default_reason = "envoy-binary"


class EnvoyRefusedError(FailedPreconditionError):
    """Envoy refused the listeners or routes of the first configuration: nothing is served."""

    default_reason = "envoy-refused"


class EnvoyGaveUpError(InternalError):
    """Envoy ended unexpectedly too often in a short time."""

    default_reason = "envoy-gave-up"


class SnapshotError(FailedPreconditionError):
    """The settings do not make a set of resources that Envoy could use as a whole."""

    default_reason = "snapshot"
