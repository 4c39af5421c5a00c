"""`gatehouse-proxy`: the proxy service in a process of its own."""

from __future__ import annotations

from gatehouse.common.runtime import process
from gatehouse.proxy.service import build


def main() -> None:
    """Run until a stop signal."""
    process.main("proxy", build)


if __name__ == "__main__":
    main()
