"""Settings that must be in place before anything is imported."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# gRPC reads it when it is imported; its own chatter is no part of any test.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# How long an example takes is the machine's affair: a busy one must not fail a property.
settings.register_profile(
    "gatehouse",
    settings.default,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gatehouse")
