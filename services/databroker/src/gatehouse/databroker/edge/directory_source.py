"""How the directory's document is read: a file, or a URL over verified TLS; bounded both ways."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Final

import httpx

from gatehouse.common.errors import GatehouseError, UnavailableError
from gatehouse.common.identity.http_client import http_client
from gatehouse.databroker.core.directory import MAX_DOCUMENT_BYTES, DirectoryError

FETCH_S: Final = 60.0
"""For the whole document, from connecting to the last byte."""


class DirectoryUnavailableError(UnavailableError):
    """The document cannot be had at present."""

    default_reason = "directory-unavailable"


async def read_source(source: str, *, token: str = "", ca_bundle_pem: bytes | None) -> bytes:
    """The document at a path or an https URL. Raises GatehouseError; it names no query and token.

    `token`: sent as a bearer token, to that URL alone: redirects are not followed.
    """
    if source.startswith("https://"):
        return await _fetched(source, token, ca_bundle_pem)
    return await asyncio.to_thread(_read_file, Path(source))


async def _fetched(url: str, token: str, ca_bundle_pem: bytes | None) -> bytes:
    where = url.partition("?")[0]
    headers = {"accept": "application/json, text/csv;q=0.9"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    try:
        async with (
            asyncio.timeout(FETCH_S),
            http_client(ca_bundle_pem) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise DirectoryUnavailableError(
                    f"{where} answered {response.status_code}, expected 200"
                )
            found = bytearray()
            async for chunk in response.aiter_bytes():
                found += chunk
                if len(found) > MAX_DOCUMENT_BYTES:
                    raise _too_large(where)
            return bytes(found)
    except TimeoutError as error:
        raise DirectoryUnavailableError(f"{where}: no whole answer in {FETCH_S:g} s") from error
    except GatehouseError:
        raise
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise DirectoryUnavailableError(f"{where}: {type(error).__name__}: {error}") from error


def _read_file(path: Path) -> bytes:
    try:
        # A pipe without a writer would make a plain open wait for ever.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DirectoryUnavailableError(f"{path} is no regular file")
            found = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise DirectoryUnavailableError(f"{path} cannot be read: {error.strerror}") from error
    if len(found) > MAX_DOCUMENT_BYTES:
        raise _too_large(str(path))
    return found


def _too_large(where: str) -> DirectoryError:
    return DirectoryError(f"{where} has more than {MAX_DOCUMENT_BYTES >> 20} MiB")
