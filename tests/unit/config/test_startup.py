"""What a process pays for reading its settings: nothing that only other parts need."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW_AND_NOT_NEEDED = (
    *("grpc", "httpx", "psycopg", "starlette", "hypercorn", "rich", "jinja2", "structlog"),
    *("asyncio", "authlib", "nacl", "dns", "typer", "prometheus_client"),
)


@pytest.mark.parametrize("module", ["resolve", "watch", "hub"])
def test_imports_stay_light(module: str) -> None:
    program = (
        f"import sys, gatehouse.common.config.{module}\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    allowed = set() if module == "resolve" else {"asyncio"}
    assert set(run.stdout.split()) & (set(SLOW_AND_NOT_NEEDED) - allowed) == set()
