"""Settings that must be in place before anything is imported."""

from __future__ import annotations

import os

# gRPC reads it when it is imported; its own chatter is no part of any test.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
