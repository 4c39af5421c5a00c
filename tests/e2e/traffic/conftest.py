"""What every test of real traffic starts from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.traffic import Product
from tests.support.traffic_upstreams import Application, Background


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory, provider: str) -> Product:
    """Not yet running, for a module that starts and changes it as a whole."""
    return Product(tmp_path_factory.mktemp("traffic"), provider)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, provider: str) -> Iterator[Product]:
    """Running for all modules that only give it routes and settings of their own."""
    product = Product(tmp_path_factory.mktemp("shared"), provider)
    with product.serving([]):
        yield product


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    with Background() as running:
        yield running


@pytest.fixture(scope="module")
def application(background: Background) -> Iterator[Application]:
    with Application(background).running() as running:
        yield running
