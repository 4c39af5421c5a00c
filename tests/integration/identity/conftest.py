"""A hostile provider and a client of it, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.identity.provider import Provider, make_provider
from tests.support.identity import HostileProvider, hostile_provider, provider_settings


@pytest.fixture
async def idp() -> AsyncIterator[HostileProvider]:
    async with hostile_provider() as provider:
        yield provider


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


@pytest.fixture
def client(idp: HostileProvider, http: httpx.AsyncClient) -> Provider:
    return make_provider(provider_settings(idp.issuer), http, SystemClock(), SystemRng())
