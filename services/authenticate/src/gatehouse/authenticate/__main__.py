"""`gatehouse-authenticate`: the authenticate service in a process of its own."""

from __future__ import annotations

from gatehouse.authenticate.service import build
from gatehouse.common.runtime import process


def main() -> None:
    """Run until a stop signal."""
    process.main("authenticate", build)


if __name__ == "__main__":
    main()
