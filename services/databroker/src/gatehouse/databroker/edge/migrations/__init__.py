"""Schemas of the SQL stores, as numbered steps; how they are applied is with each backend."""

from __future__ import annotations

from importlib import resources
from typing import Final

POSTGRES_VERSION: Final = 4
SQLITE_VERSION: Final = 4
SEALED_SINCE: Final = 3  # stores of earlier versions may hold payloads in clear


def read_step(dialect: str, version: int) -> str:
    """Return the SQL that brings a schema from `version - 1` to `version`."""
    name = f"{dialect}_{version:04d}.sql"
    return (resources.files(__name__) / name).read_text(encoding="utf-8")
