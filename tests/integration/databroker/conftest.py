"""Every test that asks for `case` runs on all three stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.storage import BACKENDS, StorageCase, storage_case

ON_ALL = [
    pytest.param(name, marks=[pytest.mark.postgres] if name == "postgres" else [])
    for name in BACKENDS
]


@pytest.fixture(params=ON_ALL)
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def case(backend: str, tmp_path: Path) -> AsyncIterator[StorageCase]:
    async with storage_case(backend, tmp_path) as opened:
        yield opened
