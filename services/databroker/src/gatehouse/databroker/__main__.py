"""The `gatehouse-databroker` command."""

from __future__ import annotations

from gatehouse.common.runtime import process
from gatehouse.databroker.service import build


def main() -> None:
    """Run the databroker alone in this process."""
    process.main("databroker", build)


if __name__ == "__main__":
    main()
