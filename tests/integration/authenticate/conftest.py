"""One world for each test: it is up in a fraction of a second and shares nothing."""

from __future__ import annotations

import pytest

from tests.support.sign_in_world import running_provider, running_world
from tests.support.web_settings import provider, route, settings


@pytest.fixture
async def issuer():
    async with running_provider() as url:
        yield url


@pytest.fixture
async def world(issuer):
    made = settings(
        idp=provider(issuer),
        routes=(route(), route("https://other.example.com")),
        databroker_storage_type="memory",
    )
    async with running_world(made) as running:
        yield running
