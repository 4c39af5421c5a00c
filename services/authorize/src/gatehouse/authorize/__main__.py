"""The `gatehouse-authorize` command."""

from __future__ import annotations

from gatehouse.authorize.service import build
from gatehouse.common.runtime.process import main as run_service


def main() -> None:
    """Run authorize alone until it is told to stop."""
    run_service("authorize", build)


if __name__ == "__main__":
    main()
